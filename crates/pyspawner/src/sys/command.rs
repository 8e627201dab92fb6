//! Starting another program with exactly one inherited descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::descriptors;

/// Signals that a caller has ignored or blocked would stay so across exec, in the zygote and in every child: `subprocess` in a child
/// could not tell how a program ended, for example, because its caller ignores SIGCHLD.
fn reset_signals() {
    // SAFETY: sigemptyset initialises the set before it is read. SIGKILL, SIGSTOP and those of glibc's own are refused, which is fine.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Lets `command` run in its own session (a Ctrl-C in the terminal does not reach it) with `socket` as the only descriptor
/// above 2.
pub(crate) fn isolate(command: &mut Command, socket: BorrowedFd<'_>) {
    let number = socket.as_raw_fd();
    // SAFETY: runs between fork and exec, where only system calls are allowed. It makes no others, and allocates only on kernels
    // before 5.11, where glibc's fork has left malloc usable. The descriptor is open until the caller drops it, after spawn.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            reset_signals();
            descriptors::close_on_exec_above_stdio(BorrowedFd::borrow_raw(number).as_fd())?;
            Ok(())
        });
    }
}
