//! A zygote that is no root: a user namespace of its own, in which it is, with the one id that it has.

use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, StatVfsMountFlags, accessat, statvfs};
use rustix::process::{getegid, geteuid, getgroups};
use rustix::thread::UnshareFlags;

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;

use super::needs::Needs;
use super::unshare;
use super::visible::visible;

/// Becomes root of a new user namespace, with a mount namespace of that one's.
pub(super) fn enter_namespaces() -> Result<(), Failure> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).fail_at(Layer::IdMap, Step::UnshareUser)?;
    // Denied for good: who may not give up groups could give up those that forbid something.
    write("setgroups", "deny", Step::DenySetgroups)?;
    write("uid_map", &format!("0 {uid} 1\n"), Step::WriteUidMap)?;
    write("gid_map", &format!("0 {gid} 1\n"), Step::WriteGidMap)
}

fn write(name: &str, text: &str, step: Step) -> Result<(), Failure> {
    fs::write(Path::new("/proc/self").join(name), text).fail_at(Layer::IdMap, step)
}

/// Who this process is outside of its user namespace, where it has but one id.
pub(super) fn user_outside() -> Result<u32, Failure> {
    let map = fs::read_to_string("/proc/self/uid_map").fail_at(Layer::IdMap, Step::ReadUidMap)?;
    let outside = map.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok());
    outside.ok_or(Failure::new(Layer::IdMap, Step::ReadUidMap, libc::EINVAL))
}

/// A child is the caller's user: through `/proc/self/exe` it could change the interpreter, but for the mount that the zygote was started from.
///
/// # Errors
///
/// `EROFS`: that mount is not read-only.
pub(super) fn check_program() -> Result<(), Failure> {
    let flags = statvfs("/proc/self/exe").fail_at(Layer::Mounts, Step::LockProgram)?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    Err(Failure::new(Layer::Mounts, Step::LockProgram, libc::EROFS))
}

/// Without root, supplementary groups stay. They must not open to children what strangers may not have. In a user namespace all foreign groups
/// look the same, so the kernel is asked what they open.
///
/// # Errors
///
/// `EACCES`: they do.
pub(super) fn check_groups(needs: &Needs, user_outside: u32) -> Result<(), Failure> {
    let (user, own) = (geteuid().as_raw(), getegid());
    let groups = getgroups().fail_at(Layer::IdMap, Step::CheckGroups)?;
    let mut unseen: Vec<PathBuf> = if groups.iter().all(|group| *group == own) {
        Vec::new()
    } else {
        visible(needs, user_outside).into_iter().map(to_path).collect()
    };
    while let Some(path) = unseen.pop() {
        // What cannot be looked at cannot be opened.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let is_own = metadata.uid() == user || metadata.gid() == own.as_raw();
        if !is_own && opens_more(&path, metadata.mode()) {
            return Err(Failure::new(Layer::IdMap, Step::CheckGroups, libc::EACCES));
        }
        if metadata.is_dir() {
            unseen.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    Ok(())
}

/// Whether this process may do something with a file that strangers may not. The permissions of a link count for nothing.
fn opens_more(path: &Path, mode: u32) -> bool {
    let bits = [(0o4, Access::READ_OK), (0o2, Access::WRITE_OK), (0o1, Access::EXEC_OK)];
    let (group, others) = (mode >> 3, mode);
    !FileType::from_raw_mode(mode).is_symlink()
        && bits.into_iter().any(|(bit, access)| {
            group & !others & bit != 0 && accessat(CWD, path, access, AtFlags::EACCESS).is_ok()
        })
}

fn to_path(path: CString) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.into_bytes()))
}
