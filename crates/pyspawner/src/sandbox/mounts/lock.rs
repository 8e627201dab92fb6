//! Read-only, nosuid, nodev, private: a tree of mounts, every mount in it.
//!
//! `mount_setattr(2)` does it in one call, before the tree is mounted anywhere. Linux 5.10 and 5.11 do not have it: there the tree is
//! mounted first, and each of its mounts is then changed by mount(2), found in `/proc/self/mountinfo`. In between nobody but the zygote
//! can reach them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, mount_remount, move_mount,
    unmount,
};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::kernel::lock_mount_tree;

/// A flag of mount(2) since Linux 5.10 that rustix does not name.
const MS_NOSYMFOLLOW: u32 = 0x100;

/// Mounts the detached tree `copy` at `target`, locked.
pub(crate) fn attach_locked(copy: &OwnedFd, target: &Path) -> Result<(), Failure> {
    match lock_mount_tree(copy) {
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
    let id = mount_id(copy).fail_at(Layer::Mounts, Step::SetMountAttributes)?;
    let mountinfo = File::open("/proc/self/mountinfo").fail_at(Layer::Mounts, Step::SetMountAttributes)?;
    attach(copy, target)?;
    lock(id, mountinfo, target).fail_at(Layer::Mounts, Step::SetMountAttributes).inspect_err(|_| {
        // Rather nothing than something that is not locked.
        let _ = unmount(target, UnmountFlags::DETACH);
    })
}

fn lock(id: u32, mut mountinfo: File, target: &Path) -> io::Result<()> {
    let mut table = Vec::new();
    mountinfo.read_to_end(&mut table)?;
    mount_change(target, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    for mount in below(id, &table) {
        mount_remount(&mount.path, mount.flags, c"")?;
    }
    Ok(())
}

/// The mount's id, as mountinfo has it.
fn mount_id(mount: impl AsFd) -> io::Result<u32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", mount.as_fd().as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODATA))
}

/// A mount to be changed.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    path: PathBuf,
    flags: MountFlags,
}

/// The mount of this id and all that are mounted in it, in a table like `proc_pid_mountinfo(5)`.
fn below(id: u32, table: &[u8]) -> Vec<Mount> {
    let mut wanted = BTreeSet::from([id]);
    // A mount is in the table after its parent only as a rule: moved ones are not. So until nothing is found any more.
    loop {
        let before = wanted.len();
        for (id, parent, _) in table.split(|byte| *byte == b'\n').filter_map(entry) {
            if wanted.contains(&parent) {
                wanted.insert(id);
            }
        }
        if wanted.len() == before {
            break;
        }
    }
    let entries = table.split(|byte| *byte == b'\n').filter_map(entry);
    entries.filter(|(id, ..)| wanted.contains(id)).map(|(.., mount)| mount).collect()
}

/// The id, the parent's id, and what to do: a remount forgets every flag that is not repeated.
fn entry(line: &[u8]) -> Option<(u32, u32, Mount)> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let number = |index: usize| std::str::from_utf8(fields.get(index)?).ok()?.parse().ok();
    let path = PathBuf::from(OsString::from_vec(unescaped(fields.get(4)?)));
    let mut flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    for option in fields.get(5)?.split(|byte| *byte == b',') {
        match option {
            b"noexec" => flags |= MountFlags::NOEXEC,
            b"nosymfollow" => flags |= MountFlags::from_bits_retain(MS_NOSYMFOLLOW),
            _ => {}
        }
    }
    Some((number(0)?, number(1)?, Mount { path, flags }))
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
90 91 0:9 / /proc/deep rw,noexec,nosuid - tmpfs none rw
91 22 254:0 /srv /proc rw,relatime shared:7 - ext4 /dev/vda rw
92 91 0:8 / /proc/a\\040name ro,nodev - tmpfs none rw
93 22 0:7 / /proc/covered rw - binfmt_misc none rw
";

    #[test]
    fn what_is_mounted_in_a_mount_is_found_and_what_it_covers_is_not() {
        let paths: Vec<_> = below(91, TABLE).into_iter().map(|mount| mount.path).collect();
        assert_eq!(paths, ["/proc/deep", "/proc", "/proc/a name"].map(PathBuf::from));
    }

    #[test]
    fn noexec_is_kept() {
        let noexec: Vec<_> =
            below(91, TABLE).iter().map(|mount| mount.flags.contains(MountFlags::NOEXEC)).collect();
        assert_eq!(noexec, [true, false, false]);
    }

    #[test]
    fn a_line_that_is_none_is_passed_over() {
        assert_eq!(below(1, b"\nnonsense\n1 x\n"), []);
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescaped(b"a\\134b\\9\\04"), b"a\\b\\9\\04");
    }
}
