//! CPU time, after which the watchdog kills a child: of all in its cgroup, or where it has none, of its first process. The kernel itself limits
//! the pace of a cgroup and not the sum, and counts that of a process in ticks, between which a hostile one can run.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::sys::kernel::{cpu_time, online_cpus};

/// How often to look at most.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// What may be used.
#[derive(Debug)]
pub(super) struct Budget {
    user: User,
    limit: Duration,
    look_at: Instant,
}

/// By whom.
#[derive(Debug)]
enum User {
    /// Those in a cgroup: its `cpu.stat`.
    Cgroup(File),
    /// One process.
    Process(i32),
}

impl Budget {
    pub(super) fn of_cgroup(stat: File, microseconds: u64) -> Self {
        Self::new(User::Cgroup(stat), microseconds)
    }

    pub(super) fn of_process(pid: i32, microseconds: u64) -> Self {
        Self::new(User::Process(pid), microseconds)
    }

    fn new(user: User, microseconds: u64) -> Self {
        Self { user, limit: Duration::from_micros(microseconds), look_at: Instant::now() }
    }

    /// When to look at it.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Whether it is used up. Looks only when it can be.
    pub(super) fn is_spent(&mut self) -> bool {
        let now = Instant::now();
        if now < self.look_at {
            return false;
        }
        let used = match &self.user {
            User::Cgroup(stat) => used(stat),
            User::Process(pid) => cpu_time(*pid),
        };
        // One that is gone uses nothing.
        let left = used.map_or(self.limit, |used| self.limit.saturating_sub(used));
        // It cannot be used up faster than by every CPU. Time that does not fit never comes.
        let pause = (left / online_cpus()).max(LEAST_PAUSE);
        self.look_at = now.checked_add(pause).unwrap_or_else(|| now + Duration::from_secs(3600));
        left.is_zero()
    }
}

fn used(stat: &File) -> Option<Duration> {
    let mut text = [0; 512];
    let length = stat.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?;
    let microseconds = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(Duration::from_micros(microseconds.parse().ok()?))
}
