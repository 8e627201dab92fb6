//! The scout's one need of the kernel. What it is: `_scout.py`.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::sys::kernel::exit_now;

/// Has this process, a fork of the zygote's only thread that may fork, end with the zygote: nobody else knows of it.
///
/// # Errors
///
/// What prctl(2) said.
pub fn end_with_zygote(zygote: i32) -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    if getppid() != Pid::from_raw(zygote) {
        exit_now(1);
    }
    Ok(())
}
