//! A user namespace without a process in it: a map of ids that the kernel can be given by descriptor.

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result, write};
use rustix::process::{Signal, pidfd_send_signal};

use super::check;
use super::wait::wait_pidfd;

const CLONE_VM: libc::c_int = 0x100;
const CLONE_PIDFD: libc::c_int = 0x1000;
const CLONE_NEWUSER: libc::c_int = 0x1000_0000;

/// Enough for a function that calls nothing.
const STACK: usize = 16 * 1024;

/// Makes a user namespace with these maps, in the form of `user_namespaces(7)`.
///
/// # Errors
///
/// `EPERM` without the capabilities to map these ids; a limit of processes or namespaces.
pub(crate) fn make(uids: &str, gids: &str) -> Result<OwnedFd> {
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let mut pidfd: RawFd = -1;
    let signals = BlockedSignals::all();
    // SAFETY: the new process shares this memory, runs on a stack of its own, and executes nothing but one function that makes one
    // system call, which no signal can interrupt. It has ended when this function returns, so the stack outlives it. Its end sends no
    // signal.
    let pid = check(i64::from(unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast::<libc::c_void>();
        let flags = CLONE_VM | CLONE_PIDFD | CLONE_NEWUSER;
        let maker = std::process::id() as usize as *mut libc::c_void;
        libc::clone(wait_for_the_end, top, flags, maker, &raw mut pidfd)
    }));
    drop(signals);
    let pid = pid?;
    // SAFETY: with CLONE_PIDFD the kernel has written a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let made = write_maps(pid, uids, gids);
    // It cannot have ended by itself.
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    while matches!(wait_pidfd(pidfd.as_fd(), libc::__WALL), Err(Errno::INTR)) {}
    drop(stack);
    made
}

fn write_maps(pid: libc::c_long, uids: &str, gids: &str) -> Result<OwnedFd> {
    let process = openat(CWD, format!("/proc/{pid}"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    for (name, map) in [("uid_map", uids), ("gid_map", gids)] {
        let file = openat(&process, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write(&file, map.as_bytes())?;
    }
    openat(&process, "ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// The calling thread, deaf; dropped, it hears again. A process that it makes meanwhile stays deaf: a handler in it would run in the
/// memory, and with the thread-local variables, of the one that made it.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn all() -> Self {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the one set, pthread_sigmask the other; it cannot fail with a valid `how`.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the kernel gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Sleeps until it is killed, by its maker or with it. No call of these fails, so none touches `errno`, which is its maker's.
extern "C" fn wait_for_the_end(maker: *mut libc::c_void) -> libc::c_int {
    // SAFETY: system calls that take numbers only. To exit ends this process, which shares memory with its maker and nothing else.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        // It may have ended before it was to take this one along.
        if libc::syscall(libc::SYS_getppid) != maker as libc::c_long {
            libc::syscall(libc::SYS_exit, 0);
        }
    }
    loop {
        // SAFETY: a wait for nothing, for ever; no memory is passed.
        unsafe { libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0) };
    }
}
