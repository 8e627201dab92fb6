//! `clone3` of the calling process: fork(2) with namespaces, a pidfd, and the caller's own parent.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::{Errno, Result};

use super::check;

/// The namespaces of a child. Values from `linux/sched.h`; the `libc` crate's are of a signed type and partly wrong.
pub(crate) const CHILD_NAMESPACES: u64 = 0x1000_0000 // CLONE_NEWUSER
    | 0x2000_0000 // CLONE_NEWPID
    | 0x0002_0000 // CLONE_NEWNS
    | 0x4000_0000 // CLONE_NEWNET
    | 0x0800_0000 // CLONE_NEWIPC
    | 0x0400_0000 // CLONE_NEWUTS
    | 0x0200_0000; // CLONE_NEWCGROUP

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_CHILD_CLEARTID: u64 = 0x0020_0000;
const CLONE_CHILD_SETTID: u64 = 0x0100_0000;

/// A child of the caller's parent, with a pidfd, and glibc's cached thread id corrected.
const SIBLING: u64 = CLONE_PARENT | CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;

/// Into the cgroup that a descriptor leads to; Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` up to Linux 5.7, as in clone(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which of the two processes this is.
pub(crate) enum Cloned {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// What glibc keeps about the calling thread and the kernel does not copy on a raw clone: the address of its cached
/// thread id (recursive mutexes compare it) and its list of robust mutexes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadFacts {
    tid_address: u64,
    robust_list: usize,
    robust_list_size: usize,
}

impl ThreadFacts {
    /// Asks the kernel what glibc told it about the calling thread.
    pub(crate) fn of_this_thread() -> Result<Self> {
        let mut tid_address: *mut libc::c_int = ptr::null_mut();
        // SAFETY: PR_GET_TID_ADDRESS writes one pointer to the given address, which is a live local.
        check(unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut tid_address, 0, 0, 0) }.into())?;
        if tid_address.is_null() {
            return Err(Errno::NOSYS);
        }
        let mut robust_list: *mut libc::c_void = ptr::null_mut();
        let mut robust_list_size: libc::size_t = 0;
        // SAFETY: the kernel writes one pointer and one length to live locals; pid 0 is the calling thread.
        check(unsafe {
            libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust_list, &raw mut robust_list_size)
        })?;
        Ok(Self { tid_address: tid_address as u64, robust_list: robust_list as usize, robust_list_size })
    }

    fn restore_robust_list(self) {
        if self.robust_list != 0 {
            // SAFETY: the address is the one that glibc registered for this very thread, whose memory was copied as is.
            unsafe { libc::syscall(libc::SYS_set_robust_list, self.robust_list, self.robust_list_size) };
        }
    }
}

/// Clones the calling process into `namespaces`, and into `cgroup`, as a sibling: its parent is the caller's parent, and its exit signal the
/// caller's own (with `CLONE_PARENT` the kernel wants `exit_signal` 0). See clone(2).
///
/// # Safety
///
/// The calling process must be single-threaded: a lock that another thread holds would stay held in the copy for ever.
pub(crate) unsafe fn clone_sibling(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    thread: ThreadFacts,
) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = CloneArgs {
        flags: namespaces | into_cgroup | SIBLING,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: thread.tid_address,
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd().unsigned_abs().into()),
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM and no new stack, so both processes go on here, each with its own copy of everything; the
    // caller vouches that no other thread exists. The kernel writes one descriptor to `pidfd`, and the child's thread id
    // to the place where glibc expects it.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    // SAFETY: cloned on the lines above, with CLONE_PIDFD.
    unsafe { cloned(pid, pidfd, thread) }
}

/// The same without new namespaces, by `clone(2)`, which profiles allow that hide `clone3`.
///
/// # Safety
///
/// As [`clone_sibling`].
pub(crate) unsafe fn clone_plain_sibling(thread: ThreadFacts) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let (stack, tls) = (0_usize, 0_usize);
    // SAFETY: as in `clone_sibling`; with CLONE_PIDFD the third argument is where the descriptor goes. The last two are the other way
    // round on aarch64.
    let pid = check(unsafe {
        #[cfg(target_arch = "x86_64")]
        let pid = libc::syscall(libc::SYS_clone, SIBLING, stack, &raw mut pidfd, thread.tid_address, tls);
        #[cfg(target_arch = "aarch64")]
        let pid = libc::syscall(libc::SYS_clone, SIBLING, stack, &raw mut pidfd, tls, thread.tid_address);
        pid
    })?;
    // SAFETY: cloned on the lines above, with CLONE_PIDFD.
    unsafe { cloned(pid, pidfd, thread) }
}

/// What both processes do next.
///
/// # Safety
///
/// Right after a clone with `CLONE_PIDFD` that answered `pid` and wrote `pidfd`.
unsafe fn cloned(pid: libc::c_long, pidfd: RawFd, thread: ThreadFacts) -> Result<Cloned> {
    if pid == 0 {
        thread.restore_robust_list();
        return Ok(Cloned::Child);
    }
    // SAFETY: the clone succeeded, so it wrote a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: i32::try_from(pid).map_err(|_| Errno::OVERFLOW)?, pidfd })
}
