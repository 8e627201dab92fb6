//! Layer `rlimits`: what each process of a child may use; setrlimit(2). Soft and hard limit are one, so that no process has a way up.
//!
//! It is all that there is where the host gives no cgroup, and then memory and CPU time are of each process and not of all together.

use std::fs::File;

use rustix::process::{Resource, Rlimit, getrlimit, nice, setrlimit};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::Rlimits;
use crate::sys::kernel::cpu_time;
use crate::sys::proc_file::write_file;

/// The pid by which a process means itself.
const OWN: i32 = 0;

/// Sets them. A limit of the zygote that is lower stays. The CPU time of a child that parks is limited when it parks: [`limit_cpu`].
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn enter(limits: &Rlimits, parks: bool) -> Result<(), Failure> {
    for (resource, wanted) in [
        // What fork copied counts, shared or not; so the zygote's own is in the number.
        (Resource::Data, limits.data_bytes),
        // At the soft limit comes SIGXCPU, which pid 1 of a namespace does not get; at the hard one SIGKILL.
        (Resource::Cpu, limits.cpu_seconds.filter(|_| !parks)),
        // Counted for the child's user in its own user namespace.
        (Resource::Nproc, limits.processes),
        (Resource::Nofile, limits.open_files),
        // Of memfds too.
        (Resource::Fsize, limits.file_bytes),
    ] {
        if let Some(wanted) = wanted {
            lower(resource, wanted).fail_at(Layer::Rlimits, Step::SetRlimit)?;
        }
    }
    if limits.nice > 0 {
        nice(limits.nice.into()).fail_at(Layer::Rlimits, Step::SetNiceness)?;
    }
    Ok(())
}

/// Sets the limit of CPU time of a child that was parked: what it has used so far does not count.
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn limit_cpu(seconds: Option<u64>) -> rustix::io::Result<()> {
    let Some(seconds) = seconds else { return Ok(()) };
    // Rounded up.
    let used = cpu_time(OWN).map_or(0, |used| used.as_secs() + 1);
    lower(Resource::Cpu, seconds.saturating_add(used))
}

fn lower(resource: Resource, wanted: u64) -> rustix::io::Result<()> {
    let had = getrlimit(resource);
    let least = [had.current, had.maximum].into_iter().flatten().fold(wanted, u64::min);
    setrlimit(resource, Rlimit { current: Some(least), maximum: Some(least) })
}

/// The parent's half: makes the kernel end the child `pid` before anything else of the host's when memory is short; see proc(5). Written by
/// root, it is for good.
///
/// # Errors
///
/// `ESRCH` when the child is dead.
pub(crate) fn rank_for_oom(proc: &File, pid: i32) -> Result<(), Failure> {
    write_file(proc, pid, "oom_score_adj", "1000").fail_at(Layer::Rlimits, Step::RankForOom)
}
