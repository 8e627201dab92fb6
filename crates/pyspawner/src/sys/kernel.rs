//! Small system calls without a safe face in rustix.

use std::ffi::CStr;
use std::time::Duration;

use rustix::io::{Errno, Result};

use super::check;

/// Leaves the caller's session keyring for a new, empty, anonymous one; keyctl(2).
///
/// # Errors
///
/// `ENOSYS` where the kernel has no keyrings; else what keyctl(2) said.
pub(crate) fn join_new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    })
    .map(drop)
}

/// The version of Landlock that the kernel has, 0 if none; `landlock_create_ruleset(2)`.
pub(crate) fn landlock_abi() -> u8 {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_long = 1;
    // SAFETY: with this flag the call takes no memory and answers a number.
    let version = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    });
    version.map_or(0, |version| u8::try_from(version).unwrap_or(u8::MAX))
}

/// Drops every capability that the kernel knows from the bounding set; capabilities(7).
///
/// # Errors
///
/// What prctl(2) said about a capability that exists.
pub(crate) fn drop_bounding_set() -> Result<()> {
    for capability in 0..64_u64 {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into()) {
            Ok(_) => {}
            // The first number after CAP_LAST_CAP. Capability 0 always exists.
            Err(Errno::INVAL) if capability > 0 => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// One instruction of classic BPF, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Installs a system-call filter on the calling thread; seccomp(2).
///
/// # Errors
///
/// `EACCES` without `no_new_privs` and without `CAP_SYS_ADMIN`; else what seccomp(2) said.
pub(crate) fn install_filter(filter: &[Instruction]) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const Instruction,
    }
    const SECCOMP_SET_MODE_FILTER: libc::c_long = 1;
    let length = libc::c_ushort::try_from(filter.len()).map_err(|_| Errno::TOOBIG)?;
    let program = Program { length, filter: filter.as_ptr() };
    // SAFETY: `Program` has the layout of `struct sock_fprog`; the slice outlives the call, and the kernel copies it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
        .map(drop)
}

/// Ends the process at once: no destructor, no buffer, no handler.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Blocks every signal that can be blocked.
pub(crate) fn block_all_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set before sigprocmask reads it.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// Does `work` while this thread gets no signal that can be blocked.
pub(crate) fn without_signals<T>(work: impl FnOnce() -> T) -> T {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the one set before it is read, pthread_sigmask the other.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let done = work();
    // SAFETY: initialised above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    done
}

/// Does `work` while this thread gets no SIGPIPE from what it writes, whatever the process does about that signal.
pub(crate) fn without_sigpipe<T>(work: impl FnOnce() -> T) -> T {
    let mut sets = [std::mem::MaybeUninit::<libc::sigset_t>::uninit(); 3];
    let [sigpipe, before, pending] = &mut sets;
    // SAFETY: every set is initialised before it is read: by sigemptyset, by pthread_sigmask, by sigpending.
    let was_pending = unsafe {
        libc::sigemptyset(sigpipe.as_mut_ptr());
        libc::sigaddset(sigpipe.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, sigpipe.as_ptr(), before.as_mut_ptr());
        libc::sigpending(pending.as_mut_ptr());
        libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1
    };
    let done = work();
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the sets were initialised above; a null siginfo_t is allowed.
    unsafe {
        if !was_pending {
            libc::sigtimedwait(sigpipe.as_ptr(), std::ptr::null_mut(), &raw const at_once);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
    }
    done
}

/// The CPU time that a process has used, all its threads together and exactly; `clock_getcpuclockid(3)`. `None` when there is none.
pub(crate) fn cpu_time(pid: i32) -> Option<Duration> {
    // As the kernel has it: the pid, and CPUCLOCK_SCHED.
    let clock = (!pid) << 3 | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to a live local.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) }.into()).ok()?;
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// How many CPUs can ever run at once, at least 1; sysconf(3).
pub(crate) fn configured_cpus() -> u32 {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) };
    u32::try_from(count).unwrap_or(1).max(1)
}

/// Whether a process of this pid exists; kill(2) with signal 0.
pub(crate) fn process_exists(pid: i32) -> bool {
    // SAFETY: signal 0 is only a check.
    unsafe { libc::kill(pid, 0) == 0 || *libc::__errno_location() == libc::EPERM }
}

/// Sets `comm`, at most 15 bytes of it; see `PR_SET_NAME` in prctl(2).
pub(crate) fn set_comm(name: &CStr) {
    // The kernel truncates, and cannot fail with a valid pointer.
    let _ = rustix::thread::set_name(name);
}

/// Puts the allocator's free memory in order: `malloc_trim(3)` merges it, and one larger allocation sorts what was merged. Otherwise the
/// first larger allocation of every clone would do both, and copy each page of the heap that holds a free chunk.
pub(crate) fn settle_heap() {
    // SAFETY: malloc_trim has no preconditions, and free gets what malloc gave, be it null.
    unsafe {
        libc::malloc_trim(0);
        libc::free(std::hint::black_box(libc::malloc(64 * 1024)));
    }
}
