//! New filesystems of a child's own, detached: in memory, of its processes, of its terminals, of its changes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::inside;

use super::stage;

/// Nothing in it counts for more than a plain file.
const PLAIN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// A filesystem in memory.
pub(super) struct Tmpfs {
    pub(super) size_bytes: u64,
    pub(super) max_inodes: u64,
    pub(super) mode: u32,
    /// Uid and gid in the child's namespace; `None`: of whoever mounts it.
    pub(super) owner: Option<u32>,
}

pub(super) fn tmpfs(options: &Tmpfs) -> Result<OwnedFd, Failure> {
    let owner = options.owner.map(|owner| owner.to_string());
    let numbers = [
        ("size", options.size_bytes.to_string()),
        ("nr_inodes", options.max_inodes.to_string()),
        ("mode", format!("{:o}", options.mode)),
    ];
    let mut strings: Vec<(&str, &str)> = numbers.iter().map(|(key, value)| (*key, value.as_str())).collect();
    if let Some(owner) = &owner {
        strings.extend([("uid", owner.as_str()), ("gid", owner.as_str())]);
    }
    make("tmpfs", &strings, &[], PLAIN).fail_at(Layer::Mounts, Step::MountTmpfs)
}

/// Read-only as a whole: there is nothing in it that a child needs to write, and much that it should not.
pub(super) fn proc() -> Result<OwnedFd, Failure> {
    let flags = PLAIN | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_RDONLY;
    make("proc", &[], &[], flags).fail_at(Layer::Mounts, Step::MountProc)
}

/// Pseudoterminals that no other child has.
pub(super) fn devpts() -> Result<OwnedFd, Failure> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    make("devpts", &[("ptmxmode", "0666"), ("mode", "0600")], &[], flags)
        .fail_at(Layer::Mounts, Step::MountDevpts)
}

/// A view of `lower` whose changes go to `upper`.
pub(super) fn overlay(lower: OwnedFd, upper: OwnedFd) -> Result<OwnedFd, Failure> {
    let failed = Step::MountOverlay;
    let parts = [(lower, stage::LOWER), (upper, stage::UPPER)];
    for (part, place) in &parts {
        move_mount(part, "", CWD, *place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .fail_at(Layer::Mounts, failed)?;
    }
    let [(original, _), (upper, _)] = &parts;
    let [changes, work] = [CHANGES, WORK]
        .map(|name| part_of_upper(upper, name, original).fail_at(Layer::Mounts, Step::OpenUpper));
    let (changes, work) = (changes?, work?);
    // By descriptor: whatever their names mean by now. An earlier child may have had the same upper.
    let [upper_path, work_path] = [&changes, &work]
        .map(|directory| format!("{}/self/fd/{}", stage::PROC, directory.as_fd().as_raw_fd()));
    let options = [("lowerdir", stage::LOWER), ("upperdir", &upper_path), ("workdir", &work_path)];
    // Its own notes as attributes that root of a namespace may write.
    let made = make("overlay", &options, &["userxattr"], PLAIN).fail_at(Layer::Mounts, failed)?;
    // It holds its parts itself.
    for (_, place) in &parts {
        unmount(*place, UnmountFlags::DETACH).fail_at(Layer::Mounts, failed)?;
    }
    Ok(made)
}

/// A directory of the upper. The caller made it where it is to keep the changes; in memory it is made here, as like the original as the child
/// can make it.
fn part_of_upper(upper: &OwnedFd, name: &str, original: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let find = || {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        inside::find(upper, name, OFlags::DIRECTORY, resolve)
    };
    match find() {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let like = rustix::fs::fstat(original)?;
    mkdirat(upper, name, Mode::from_raw_mode(0o700))?;
    chmodat(upper, name, Mode::from_raw_mode(like.st_mode & 0o777), AtFlags::empty())?;
    // As the child sees them; what it cannot see stays its root's.
    let _ = chownat(
        upper,
        name,
        Some(Uid::from_raw(like.st_uid)),
        Some(Gid::from_raw(like.st_gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    );
    find()
}

/// Where an overlay keeps the changes, in the filesystem or directory given for them.
pub(crate) const CHANGES: &str = "changes";
/// Where it prepares them.
pub(crate) const WORK: &str = "work";

fn make(
    kind: &str,
    strings: &[(&str, &str)],
    switches: &[&str],
    flags: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let filesystem = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in strings {
        fsconfig_set_string(&filesystem, *key, *value)?;
    }
    for switch in switches {
        fsconfig_set_flag(&filesystem, *switch)?;
    }
    fsconfig_create(&filesystem)?;
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}
