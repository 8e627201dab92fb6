//! Layer `id_map`: every living child has its own 65,536 host ids, so that no two children, and no child and the host,
//! share a uid anywhere: not on files, not for kill(2), not for per-user limits and keyrings.
//!
//! The parent's half: the zygote writes the maps; `user_namespaces(7)`. Without the right to map foreign ids (rootless) it can map one: the
//! child's user is then the caller's user in the host's eyes.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::thread::Gid;

use crate::config::CHILD_ID;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sandbox::setuid::become_user;
use crate::sys::kernel::process_exists;
use crate::sys::proc_file::write_file;

/// Ids in the range of one child.
pub const RANGE: u32 = 65_536;

/// Ranges from 65,536 upwards that lie wholly below the reserved last id.
const RANGES: u32 = u32::MAX / RANGE - 1;

/// Chooses ranges without asking anybody: pids are unique among the living, so a range that follows from the pid is too. A pid
/// namespace of its own (another container on this host) starts elsewhere, by its inode.
#[derive(Debug)]
pub struct IdRanges {
    proc: File,
    offset: u32,
    pid_max: u32,
}

impl IdRanges {
    /// Reads what the choice depends on.
    ///
    /// # Errors
    ///
    /// An unreadable `/proc`.
    pub fn new() -> io::Result<Self> {
        let mut hasher = DefaultHasher::new();
        fs::metadata("/proc/self/ns/pid")?.ino().hash(&mut hasher);
        let offset = u32::try_from(hasher.finish() % u64::from(RANGES)).unwrap_or_default();
        let pid_max = fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse().unwrap_or(u32::MAX);
        Ok(Self { proc: File::open("/proc")?, offset, pid_max })
    }

    /// `/proc`, as it was opened.
    #[must_use]
    pub fn proc(&self) -> &File {
        &self.proc
    }

    /// The first host id of the range of the child `pid`.
    #[must_use]
    pub fn first_id(&self, pid: u32) -> u32 {
        (1 + (pid + self.offset) % RANGES) * RANGE
    }

    /// Whether the range of `pid` may belong to another living process. Only where `kernel.pid_max` is above the number of
    /// ranges can two living pids share one.
    #[must_use]
    pub fn is_shared(&self, pid: u32) -> bool {
        let first = pid % RANGES;
        (first..self.pid_max)
            .step_by(RANGES as usize)
            .any(|other| other != pid && other != 0 && i32::try_from(other).is_ok_and(process_exists))
    }

    /// Writes the maps of the child `pid` and returns the first host id of its range. `setgroups` is denied before the gid map is
    /// written, for good: the supplementary groups are already gone.
    ///
    /// # Errors
    ///
    /// `EPERM` without the capabilities to map foreign ids; `ESRCH` or `ENOENT` when the child is dead.
    pub fn write(&self, pid: i32) -> Result<u32, Failure> {
        let first = self.first_id(pid.unsigned_abs());
        let map = format!("0 {first} {RANGE}\n");
        write_file(&self.proc, pid, "uid_map", &map).fail_at(Layer::IdMap, Step::WriteUidMap)?;
        write_file(&self.proc, pid, "setgroups", "deny").fail_at(Layer::IdMap, Step::DenySetgroups)?;
        write_file(&self.proc, pid, "gid_map", &map).fail_at(Layer::IdMap, Step::WriteGidMap)?;
        Ok(first)
    }

    /// Maps the child's user to the one id that there is in a rootless zygote's own namespace.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn write_single(&self, pid: i32) -> Result<(), Failure> {
        let map = format!("{CHILD_ID} 0 1\n");
        write_file(&self.proc, pid, "uid_map", &map).fail_at(Layer::IdMap, Step::WriteUidMap)?;
        write_file(&self.proc, pid, "gid_map", &map).fail_at(Layer::IdMap, Step::WriteGidMap)
    }
}

/// The child's half: becomes root of its own namespace. Until now it held that namespace's capabilities, but was still the host's user
/// that the zygote is, with all that this user's files allow.
///
/// # Errors
///
/// What the kernel refused.
pub fn enter() -> Result<(), Failure> {
    become_user(0).fail_at(Layer::IdMap, Step::BecomeRoot)
}

/// Drops the zygote's supplementary groups, once: every child inherits none.
///
/// # Errors
///
/// `EPERM` without `CAP_SETGID`.
pub fn drop_supplementary_groups() -> Result<(), Failure> {
    let none: [Gid; 0] = [];
    rustix::thread::set_thread_groups(&none).fail_at(Layer::IdMap, Step::DropGroups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(offset: u32, pid_max: u32) -> IdRanges {
        IdRanges { proc: File::open("/proc").expect("/proc"), offset, pid_max }
    }

    #[test]
    fn ranges_of_neighbouring_pids_do_not_overlap_and_stay_clear_of_host_users() {
        for offset in [0, 1, RANGES - 1] {
            let ranges = ranges(offset, 65_536);
            let mut firsts: Vec<u32> = (1..=RANGES).map(|pid| ranges.first_id(pid)).collect();
            assert!(firsts.iter().all(|first| *first >= RANGE && first.checked_add(RANGE).is_some()));
            firsts.sort_unstable();
            assert!(firsts.windows(2).all(|pair| pair[1] - pair[0] >= RANGE));
        }
    }

    #[test]
    fn a_living_process_whose_pid_shares_the_range_is_noticed() {
        let me = std::process::id();
        let ranges = ranges(0, me + RANGES + 1);
        assert!(ranges.is_shared(me + RANGES), "this process is alive and has the same range");
        assert!(!ranges.is_shared(me), "nobody but this process itself");
    }
}
