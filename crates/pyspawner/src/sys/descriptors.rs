//! Descriptor tables, whole: what a child inherits is decided here.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::{Errno, FdFlags, Result};

use super::check;

/// Takes a descriptor that was inherited by number.
///
/// # Errors
///
/// `EBADF` when it is not open.
pub(crate) fn inherit(number: RawFd) -> Result<OwnedFd> {
    if number < 3 {
        return Err(Errno::BADF);
    }
    // SAFETY: only fcntl(F_SETFD) is called on the number before we know that it is open.
    rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, FdFlags::CLOEXEC)?;
    // SAFETY: open, and ours alone: the caller passed it on the command line for this purpose.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor but those given, whatever its number: `close_range(2)`, or close(2) one by one where a profile hides it. They are
/// then listed through `proc`, an open `/proc`, because something else may be mounted there now. It is closed too.
///
/// # Safety
///
/// Owners of the closed descriptors, that of `proc` with them, must never be dropped or used again.
pub(crate) unsafe fn close_all_except(proc: BorrowedFd<'_>, keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    match close_between(&keep) {
        Err(Errno::NOSYS | Errno::PERM) => {
            for number in open_numbers(proc)? {
                if !keep.contains(&number) {
                    // SAFETY: closing numbers touches no memory; this function passes the duty on to its caller.
                    unsafe { libc::close(number) };
                }
            }
            Ok(())
        }
        other => other,
    }
}

fn close_between(keep: &[RawFd]) -> Result<()> {
    let mut first = 0;
    for number in keep {
        if *number > first {
            close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> Result<()> {
    // SAFETY: closing numbers touches no memory; `close_all_except` passes the duty on to its caller.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// The numbers in `self/fd` of an open `/proc`.
fn open_numbers(proc: impl AsFd) -> Result<Vec<RawFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(proc, "self/fd", flags, Mode::empty())?;
    let own = directory.as_raw_fd();
    let mut numbers = Vec::new();
    for entry in Dir::new(directory)? {
        numbers.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok()));
    }
    // A list of anything else would not have it.
    if numbers.contains(&own) { Ok(numbers) } else { Err(Errno::NOENT) }
}

/// Marks every descriptor above 2 close-on-exec, and one of them not.
///
/// # Errors
///
/// What `close_range(2)` or fcntl(2) said.
pub(crate) fn close_on_exec_above_stdio(but: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: sets flags on descriptors; touches no memory.
    let result =
        check(unsafe { libc::syscall(libc::SYS_close_range, 3, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC) });
    if let Err(errno) = result {
        // CLOSE_RANGE_CLOEXEC came with Linux 5.11.
        if !matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::PERM) {
            return Err(errno);
        }
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        for number in open_numbers(&proc)? {
            if number > 2 {
                // SAFETY: sets a flag; a number that has just been closed (the directory's own) gives EBADF.
                unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
        }
    }
    rustix::io::fcntl_setfd(but, FdFlags::empty())
}

/// Puts three descriptors on 0, 1 and 2.
///
/// # Errors
///
/// What dup2(2) said.
pub(crate) fn become_stdio(stdin: impl AsFd, stdout: impl AsFd, stderr: impl AsFd) -> Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)
}
