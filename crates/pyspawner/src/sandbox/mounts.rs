//! Layer `mounts`: what the child sees of the filesystem.
//!
//! With `chroot_dir`, a read-only, nosuid, nodev bind of that directory becomes the root by pivot_root(2), and the old root is
//! unmounted: unlike after chroot(2), there is no way out to walk. The caller opens the directory and makes the bind
//! ([`open_chroot`]), so that nobody can swap it between check and use; the child only puts it in place ([`enter`]).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::kernel::lock_mount_tree;

/// A detached, locked copy of the mounts below `directory`, which must be a directory and not a symbolic link.
///
/// # Errors
///
/// A path that is missing or no directory; a kernel that refuses to mount.
pub fn open_chroot(directory: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory =
        rustix::fs::openat(CWD, directory, flags, Mode::empty()).fail_at(Layer::Mounts, Step::OpenChroot)?;
    locked_copy(directory.as_fd(), Step::CloneChroot)
}

/// A detached copy of the mounts below `at`: read-only, nosuid, nodev, private.
pub(crate) fn locked_copy(at: impl AsFd, step: Step) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(at, "", flags).fail_at(Layer::Mounts, step)?;
    lock_mount_tree(&copy).fail_at(Layer::Mounts, Step::SetMountAttributes)?;
    Ok(copy)
}

/// Makes `root` the child's only filesystem, with `/` as its working directory. Without one the zygote's view stays: its mount
/// namespace was made private, and stripped of what children may not see, before the first clone.
///
/// # Errors
///
/// What the kernel refused.
pub fn enter(root: Option<OwnedFd>) -> Result<(), Failure> {
    let Some(root) = root else { return Ok(()) };
    // The copy is mounted over the old root, then the two change places, and the old one goes.
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .fail_at(Layer::Mounts, Step::MoveMount)?;
    fchdir(&root).fail_at(Layer::Mounts, Step::ChangeDirectory)?;
    pivot_root(".", ".").fail_at(Layer::Mounts, Step::PivotRoot)?;
    unmount(".", UnmountFlags::DETACH).fail_at(Layer::Mounts, Step::UnmountOldRoot)?;
    chdir("/").fail_at(Layer::Mounts, Step::ChangeDirectory)
}
