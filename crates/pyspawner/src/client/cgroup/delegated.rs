//! Which part of the tree of cgroups the caller may divide.
//!
//! A cgroup with processes in it cannot hand out controllers, so the caller's own serves only if it is the root of the whole tree. Mostly it is
//! the one above: the caller is in a subgroup of what was delegated to it. Nothing is taken that belongs to somebody else, systemd above all.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, getxattr, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::{lock, open_directory, read_file, write_file};
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;

/// What a child's cgroup needs; `cpu` is welcome.
const NEEDED: [&str; 2] = ["memory", "pids"];

/// How the directories of callers begin.
const PREFIX: &str = "pyspawner-";

/// How many names to try: another process, or an earlier life of this one, may have some.
const NAMES: u32 = 1000;

/// What the caller knows of its part of the tree. Looked for when the first child asks.
#[derive(Debug, Default)]
pub(in crate::client) struct Delegation(Mutex<Option<Result<Arc<Delegated>, Failure>>>);

impl Delegation {
    /// The part; looked for again if it was not there and `is_required`.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub(in crate::client) fn find(&self, is_required: bool) -> Result<Arc<Delegated>, Failure> {
        let mut found = lock(&self.0);
        match &*found {
            Some(Ok(delegated)) => Ok(Arc::clone(delegated)),
            Some(Err(failure)) if !is_required => Err(*failure),
            _ => found.insert(Delegated::new().map(Arc::new)).clone(),
        }
    }
}

/// The cgroup of a Client, above those of its children. It is locked by flock(2) while the Client or one of its children is in use, so that
/// others know which are left over.
#[derive(Debug)]
pub(in crate::client) struct Delegated {
    pub(super) directory: OwnedFd,
    name: String,
    owner: u32,
    children: AtomicU64,
}

impl Delegated {
    fn new() -> Result<Self, Failure> {
        let path = find_base().fail_at(Layer::Cgroup, Step::FindCgroup)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat(CWD, &path, flags, Mode::empty()).fail_at(Layer::Cgroup, Step::FindCgroup)?;
        sweep(&parent);
        Self::make_in(&parent).fail_at(Layer::Cgroup, Step::MakeCgroup)
    }

    fn make_in(parent: &OwnedFd) -> rustix::io::Result<Self> {
        for number in 0..NAMES {
            let name = format!("{PREFIX}{}-{number}", std::process::id());
            match mkdirat(parent, &name, Mode::from_raw_mode(0o755)) {
                Err(Errno::EXIST) => continue,
                made => made?,
            }
            // Somebody who sweeps may take it before it is locked.
            let Ok(directory) = open_directory(parent.as_fd(), &name) else { continue };
            if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let delegated = Self { directory, name, owner: std::process::id(), children: AtomicU64::new(0) };
            enable(&delegated.directory)?;
            return Ok(delegated);
        }
        Err(Errno::EXIST)
    }

    pub(super) fn next_name(&self) -> String {
        self.children.fetch_add(1, Ordering::Relaxed).to_string()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // A fork has the same directory, and the same lock.
        if self.owner != std::process::id() {
            return;
        }
        // What still has somebody in it is swept by the next one.
        if let Ok(parent) = open_directory(self.directory.as_fd(), "..") {
            let _ = unlinkat(&parent, &self.name, AtFlags::REMOVEDIR);
        }
        let _ = flock(&self.directory, FlockOperation::Unlock);
    }
}

/// The first cgroup that can be divided; `EBUSY` if it could be but for the caller that is in it.
fn find_base() -> rustix::io::Result<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(|error| errno(&error))?;
    let cgroup = fs::read_to_string("/proc/self/cgroup").map_err(|error| errno(&error))?;
    let (top, own) = locate(&mountinfo, &cgroup).ok_or(Errno::NODEV)?;
    let above = own.parent().filter(|above| above.starts_with(&top));
    let candidates = [Some(own.as_path()), above];
    let mut problem = Errno::ACCESS;
    for candidate in candidates.into_iter().flatten() {
        match can_divide(candidate, &top, candidate == own) {
            Ok(()) => return Ok(candidate.to_owned()),
            // What keeps the caller from its own says more than what keeps it from its neighbours.
            Err(errno) if problem == Errno::ACCESS => problem = errno,
            Err(_) => {}
        }
    }
    Err(problem)
}

/// Where the tree is mounted, and the caller's own cgroup in it.
fn locate(mountinfo: &str, cgroup: &str) -> Option<(PathBuf, PathBuf)> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        if !filesystem.starts_with("cgroup2 ") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, target) = (fields.next()?, Path::new(fields.next()?));
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some((target.to_owned(), if below == Path::new("") { target.to_owned() } else { target.join(below) }))
    })
}

/// Whether `path` is the caller's to divide, and does hand out what is needed, now at the latest.
fn can_divide(path: &Path, top: &Path, is_own: bool) -> rustix::io::Result<()> {
    let is_root_of_all = !path.join("cgroup.type").exists();
    // Who manages a tree is not in its root.
    let is_unmanaged = is_root_of_all && is_own;
    // In a container, or wherever the tree is mounted in part, all of it is the caller's.
    let is_part = path == top && !is_root_of_all;
    let owner = fs::metadata(path).map_err(|error| errno(&error))?.uid();
    let is_given = !geteuid().is_root() && owner == geteuid().as_raw();
    if !(is_unmanaged || is_part || is_given || is_marked(path)) {
        return Err(Errno::ACCESS);
    }
    let directory = openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let there = read_file(directory.as_fd(), "cgroup.controllers")?;
    if NEEDED.iter().any(|needed| !names(&there, needed)) {
        return Err(Errno::NODEV);
    }
    enable(&directory)
}

/// systemd's mark of what is delegated: <https://systemd.io/CGROUP_DELEGATION>.
fn is_marked(path: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].into_iter().any(|name| {
        let mut value = [0; 8];
        getxattr(path, name, &mut value[..]).is_ok_and(|length| &value[..length] == b"1")
    })
}

/// Has a cgroup hand its controllers out.
fn enable(directory: &OwnedFd) -> rustix::io::Result<()> {
    let enabled = read_file(directory.as_fd(), "cgroup.subtree_control")?;
    if NEEDED.iter().any(|needed| !names(&enabled, needed)) {
        write_file(directory.as_fd(), "cgroup.subtree_control", "+memory +pids")?;
    }
    if !names(&enabled, "cpu") {
        // For `cpus` alone, which then says what is missing.
        let _ = write_file(directory.as_fd(), "cgroup.subtree_control", "+cpu");
    }
    Ok(())
}

fn names(list: &str, wanted: &str) -> bool {
    list.split_whitespace().any(|name| name == wanted)
}

/// Removes what callers have left that have crashed: their children are dead, and nobody holds the lock.
fn sweep(parent: &OwnedFd) {
    let Ok(entries) = rustix::fs::Dir::read_from(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let Ok(left) = open_directory(parent.as_fd(), &name) else { continue };
        if flock(&left, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        for child in rustix::fs::Dir::read_from(&left).into_iter().flatten().flatten() {
            // Only an empty cgroup can be removed; other entries are no directories.
            let _ = unlinkat(&left, child.file_name(), AtFlags::REMOVEDIR);
        }
        let _ = unlinkat(parent, &*name, AtFlags::REMOVEDIR);
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn located(mount_root: &str, own: &str) -> Option<(PathBuf, PathBuf)> {
        let mountinfo = format!(
            "22 1 0:20 / /proc rw - proc proc rw\n30 23 0:26 {mount_root} /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
        );
        locate(&mountinfo, &format!("1:cpu:/x\n0::{own}\n"))
    }

    #[test]
    fn the_callers_cgroup_is_found_wherever_the_tree_is_mounted() {
        let paths = |own: &str| Some((PathBuf::from("/sys/fs/cgroup"), PathBuf::from(own)));
        assert_eq!(located("/", "/a/b"), paths("/sys/fs/cgroup/a/b"));
        assert_eq!(located("/", "/"), paths("/sys/fs/cgroup"));
        assert_eq!(located("/a", "/a/b"), paths("/sys/fs/cgroup/b"));
        assert_eq!(located("/elsewhere", "/a/b"), None);
        assert_eq!(locate("", "0::/a\n"), None);
    }
}
