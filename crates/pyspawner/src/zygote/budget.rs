//! CPU time, after which the watchdog kills a child: of all in its cgroup, or where it has none, of its first process. The kernel itself limits
//! the pace of a cgroup and not the sum, and counts that of a process in ticks, between which a hostile one can run.

use std::fs::File;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::sys::flat_keyed::used;
use crate::sys::kernel::{configured_cpus, cpu_time};

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

    /// Of one that has used nothing yet.
    fn new(user: User, microseconds: u64) -> Self {
        let limit = Duration::from_micros(microseconds);
        Self { user, limit, look_at: soonest_end(limit, Instant::now()) }
    }

    /// When to look at it.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Whether it is used up. Looks only when it can be.
    pub(super) fn is_spent(&mut self, now: Instant) -> bool {
        if now < self.look_at {
            return false;
        }
        let used = match &self.user {
            User::Cgroup(stat) => used(stat),
            User::Process(pid) => cpu_time(*pid),
        };
        // One that is gone uses nothing.
        let left = used.map_or(self.limit, |used| self.limit.saturating_sub(used));
        self.look_at = soonest_end(left, now);
        left.is_zero()
    }
}

/// When `left` can be used up: no sooner than by every CPU. Time that does not fit never comes.
fn soonest_end(left: Duration, now: Instant) -> Instant {
    static CPUS: OnceLock<u32> = OnceLock::new();
    let pause = (left / *CPUS.get_or_init(configured_cpus)).max(LEAST_PAUSE);
    now.checked_add(pause).unwrap_or_else(|| now + Duration::from_secs(3600))
}
