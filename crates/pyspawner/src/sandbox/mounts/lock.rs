//! Read-only, nosuid, nodev, private: a tree of mounts, every mount in it.
//!
//! `mount_setattr(2)` does it in one call, before the tree is mounted anywhere. Linux 5.10 and 5.11 do not have it: there the tree is
//! mounted first, and each of its mounts is then changed by mount(2), found in `/proc/self/mountinfo`. In between nobody but the zygote
//! can reach them.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, mount_remount, move_mount,
    unmount,
};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::mount::{Access, restrict_mount_tree};

use super::{mountinfo, stage};

/// Mounts the detached tree `copy` at `target`, locked. A relative target is on the stage, the working directory: paths from the root do not
/// lead there, and `/proc` is there too.
pub(crate) fn attach_locked(copy: &OwnedFd, target: &Path) -> Result<(), Failure> {
    match restrict_mount_tree(copy, Access::ReadOnly) {
        Err(Errno::NOSYS) => attach_then_lock(copy, target),
        Err(errno) => Err(errno).fail_at(Layer::Mounts, Step::SetMountAttributes),
        Ok(()) => attach(copy, target),
    }
}

fn attach(copy: &OwnedFd, target: &Path) -> Result<(), Failure> {
    move_mount(copy, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .fail_at(Layer::Mounts, Step::MoveMount)
}

fn attach_then_lock(copy: &OwnedFd, target: &Path) -> Result<(), Failure> {
    // Both before the mount, which may cover /proc.
    let proc = if target.is_relative() { Path::new(stage::PROC) } else { Path::new("/proc") };
    let id = mount_id(copy, proc).fail_at(Layer::Mounts, Step::SetMountAttributes)?;
    let mountinfo =
        File::open(proc.join("self/mountinfo")).fail_at(Layer::Mounts, Step::SetMountAttributes)?;
    attach(copy, target)?;
    lock(id, mountinfo, target).fail_at(Layer::Mounts, Step::SetMountAttributes).inspect_err(|_| {
        // Rather nothing than something that is not locked.
        let _ = unmount(target, UnmountFlags::DETACH);
    })
}

/// More than the table of any host.
const TABLE_ROOM: usize = 1024 * 1024;

fn lock(id: u32, mut mountinfo: File, target: &Path) -> io::Result<()> {
    // Room for any table at once, so that all of it can be wiped: it names what was copied, and the zygote is to keep nothing of a child.
    let mut table = Vec::with_capacity(TABLE_ROOM);
    mountinfo.read_to_end(&mut table)?;
    let mounts = mountinfo::below(id, &table);
    black_box(table.as_mut_slice()).fill(0);
    mount_change(target, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let locks = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    for mount in mounts {
        let staged = mount.path.strip_prefix(stage::PLACE).unwrap_or(&mount.path);
        let path = if target.is_relative() { staged } else { &mount.path };
        mount_remount(path, locks | mount.flags, c"")?;
    }
    Ok(())
}

/// The mount's id, as mountinfo has it.
fn mount_id(mount: impl AsFd, proc: &Path) -> io::Result<u32> {
    let info = fs::read_to_string(proc.join(format!("self/fdinfo/{}", mount.as_fd().as_raw_fd())))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODATA))
}
