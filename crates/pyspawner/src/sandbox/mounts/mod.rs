//! Layer `mounts`: what the child sees of the filesystem.
//!
//! With `chroot_dir`, a read-only, nosuid, nodev bind of that directory becomes the root by `pivot_root(2)`, and the old root is
//! unmounted: unlike after chroot(2), there is no way out to walk. The caller opens the directory and copies its mounts
//! ([`open_chroot`]), so that nobody can swap it between check and use. The zygote holds the copy in its own mount namespace during
//! the clone (`stage`): copied from there into a less privileged namespace, its flags are locked, and not even a child with every
//! capability in its own namespaces could make it writable again. The child puts it in place ([`enter`]).

mod lock;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
pub(crate) use lock::attach_locked;

/// Where the zygote holds a root during the clone: a directory that every system has, and that nobody needs meanwhile. Not `/`: a process
/// whose root is covered may not make user namespaces.
const STAGE: &str = "/proc";

/// A detached copy of the mounts below `directory`, which must be a directory and not a symbolic link.
///
/// # Errors
///
/// A path that is missing or no directory; a kernel that refuses to mount.
pub fn open_chroot(directory: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory =
        rustix::fs::openat(CWD, directory, flags, Mode::empty()).fail_at(Layer::Mounts, Step::OpenChroot)?;
    detached_copy(directory.as_fd(), Step::CloneChroot)
}

/// A detached copy of the mounts below `at`.
pub(crate) fn detached_copy(at: impl AsFd, step: Step) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(at, "", flags).fail_at(Layer::Mounts, step)
}

/// A root for the next clone. Dropped, it is unmounted.
#[derive(Debug)]
pub(crate) struct Staged(());

/// Holds `root` where the next clone finds it.
pub(crate) fn stage(root: &OwnedFd) -> Result<Staged, Failure> {
    attach_locked(root, Path::new(STAGE))
        .map_err(|failure| Failure { step: Step::StageChroot, ..failure })?;
    Ok(Staged(()))
}

impl Drop for Staged {
    fn drop(&mut self) {
        // The mount is there, and a lazy unmount has no reason to fail.
        let _ = unmount(STAGE, UnmountFlags::DETACH);
    }
}

/// Makes the staged root the child's only filesystem, with `/` as its working directory. Without one the zygote's view stays: its mount
/// namespace was made private, and stripped of what children may not see, before the first clone.
///
/// # Errors
///
/// What the kernel refused.
pub fn enter(staged: bool) -> Result<(), Failure> {
    if !staged {
        return Ok(());
    }
    // The staged mount itself is locked in its place, a copy of it is not; both keep the flags. The copy is mounted over the old root,
    // then the two change places, and the old root goes with all that is mounted on it.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let root = open_tree(CWD, STAGE, flags).fail_at(Layer::Mounts, Step::CloneChroot)?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .fail_at(Layer::Mounts, Step::MoveMount)?;
    fchdir(&root).fail_at(Layer::Mounts, Step::ChangeDirectory)?;
    pivot_root(".", ".").fail_at(Layer::Mounts, Step::PivotRoot)?;
    unmount(".", UnmountFlags::DETACH).fail_at(Layer::Mounts, Step::UnmountOldRoot)?;
    chdir("/").fail_at(Layer::Mounts, Step::ChangeDirectory)
}
