//! Waiting for and signalling a process by pidfd, in the terms of waitpid(2).

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::io::Result;

use super::check;

/// What a wait has found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waited {
    pub(crate) pid: i32,
    /// As of waitpid(2).
    pub(crate) status: i32,
    /// CPU time of the process and of those below it that were waited for, in user mode and in the kernel.
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    /// The most memory that one of these processes had, in bytes.
    pub(crate) peak_memory: u64,
}

impl Waited {
    /// Not merely stopped or continued.
    pub(crate) fn has_ended(&self) -> bool {
        libc::WIFEXITED(self.status) || libc::WIFSIGNALED(self.status)
    }
}

/// waitid(2) on a pidfd, with the result of wait4(2): `None` when `WNOHANG` found nothing.
///
/// # Errors
///
/// `ECHILD` when somebody else has reaped the process; `EINTR` when a signal came first.
pub(crate) fn wait_pidfd(pidfd: impl AsFd, options: i32) -> Result<Option<Waited>> {
    // waitid wants to be told what to wait for; waitpid always waits for the end. WUNTRACED is waitid's WSTOPPED.
    let options = options | libc::WEXITED;
    let id = libc::id_t::try_from(pidfd.as_fd().as_raw_fd()).unwrap_or_default();
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills a live siginfo_t and a live rusage, which the C library's waitid does not ask for.
    check(unsafe {
        libc::syscall(libc::SYS_waitid, libc::P_PIDFD, id, info.as_mut_ptr(), options, usage.as_mut_ptr())
    })?;
    // SAFETY: zeroed is a valid value of both, and waitid filled them if it found a process.
    let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
    // SAFETY: waitid either left the zeroes or filled in the fields of SIGCHLD.
    let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let status = match info.si_code {
        libc::CLD_EXITED => (value & 0xff) << 8,
        libc::CLD_DUMPED => value | 0x80,
        libc::CLD_STOPPED | libc::CLD_TRAPPED => (value << 8) | 0x7f,
        libc::CLD_CONTINUED => 0xffff,
        _ => value,
    };
    Ok(Some(Waited {
        pid,
        status,
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024,
    }))
}

fn duration(time: libc::timeval) -> Duration {
    let microseconds = time.tv_sec * 1_000_000 + time.tv_usec;
    Duration::from_micros(u64::try_from(microseconds).unwrap_or_default())
}

/// SIGKILL by number, for a child of ours that is not reaped and has no pidfd.
pub(crate) fn kill_unreaped(pid: i32) {
    if pid > 0 {
        // SAFETY: a system call on a number. The process is our child and nobody has waited for it, so the number is its.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Waits for the end of a child by number, as [`kill_unreaped`].
pub(crate) fn reap_unreaped(pid: i32) {
    if pid > 0 {
        // SAFETY: a null status is allowed.
        while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } == -1
            && super::last_errno() == rustix::io::Errno::INTR
        {}
    }
}
