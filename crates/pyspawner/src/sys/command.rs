//! Starting another program with exactly one inherited descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::descriptors;

/// Lets `command` run in its own session (a Ctrl-C in the terminal does not reach it) with `socket` as the only descriptor
/// above 2.
pub(crate) fn isolate(command: &mut Command, socket: BorrowedFd<'_>) {
    let number = socket.as_raw_fd();
    // SAFETY: runs between fork and exec, where only system calls are allowed. It makes three, and allocates only on kernels
    // before 5.11, where glibc's fork has left malloc usable. The descriptor is open until the caller drops it, after spawn.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            descriptors::close_on_exec_above_stdio(BorrowedFd::borrow_raw(number).as_fd())?;
            Ok(())
        });
    }
}
