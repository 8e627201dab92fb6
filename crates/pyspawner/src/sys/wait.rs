//! Waiting for and signalling a process by pidfd, in the terms of waitpid(2).

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Result;

use super::check;

/// waitid(2) on a pidfd, with the result of waitpid(2): `None` when `WNOHANG` found nothing, else pid and status.
///
/// # Errors
///
/// `ECHILD` when somebody else has reaped the process; `EINTR` when a signal came first.
pub(crate) fn wait_pidfd(pidfd: impl AsFd, options: i32) -> Result<Option<(i32, i32)>> {
    // waitid wants to be told what to wait for; waitpid always waits for the end. WUNTRACED is waitid's WSTOPPED.
    let options = options | libc::WEXITED;
    let id = libc::id_t::try_from(pidfd.as_fd().as_raw_fd()).unwrap_or_default();
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel fills a live siginfo_t.
    check(unsafe { libc::waitid(libc::P_PIDFD, id, info.as_mut_ptr(), options) }.into())?;
    // SAFETY: zeroed is a valid siginfo_t, and waitid filled it if it found a process.
    let info = unsafe { info.assume_init() };
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
    Ok(Some((pid, status)))
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
