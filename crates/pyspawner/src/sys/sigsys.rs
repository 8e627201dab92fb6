//! The last words of a child whose system call was refused: one line on standard error and where in Python it was, then death by SIGSYS.

use std::fs;
use std::mem;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Result;

use super::check;

/// Numbers and names of the refused calls, sorted by number. Set in the zygote, before any clone.
static NAMES: OnceLock<Vec<(u32, &'static str)>> = OnceLock::new();

/// The handler that was there before, which says where in Python it was; `SIG_DFL` if none was.
static TRACEBACK: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

/// `SYS_SECCOMP`: the kernel sends it for a blocked call.
const BLOCKED: libc::c_int = 1;

/// The fields of `siginfo_t` that `SECCOMP_RET_TRAP` fills; sigaction(2).
#[repr(C)]
struct SigsysInfo {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    #[cfg(target_pointer_width = "64")]
    padding: libc::c_int,
    call_address: *const libc::c_void,
    number: libc::c_int,
    architecture: libc::c_uint,
}

/// Gives the handler its names. The first call counts.
pub(crate) fn set_names(names: Vec<(u32, &'static str)>) {
    let _ = NAMES.set(names);
}

/// Installs the handler in this process.
///
/// # Errors
///
/// What sigaction(2) said.
pub(crate) fn install() -> Result<()> {
    // SAFETY: zeroed is a valid sigaction; the handler is async-signal-safe (see there) and lives as long as the process.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let mut before: libc::sigaction = mem::zeroed();
        check(libc::sigaction(libc::SIGSYS, &raw const action, &raw mut before).into())?;
        // One that wants more than a number is not the interpreter's.
        if before.sa_flags & libc::SA_SIGINFO == 0 {
            TRACEBACK.store(before.sa_sigaction, Ordering::Relaxed);
        }
        let mut only_sigsys: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut only_sigsys);
        libc::sigaddset(&raw mut only_sigsys, libc::SIGSYS);
        check(libc::sigprocmask(libc::SIG_UNBLOCK, &raw const only_sigsys, ptr::null_mut()).into()).map(drop)
    }
}

/// Async-signal-safe: reads a table that no longer changes, writes, and makes one more call that the filter traps. SIGSYS is
/// blocked while its handler runs, and a forced signal that is blocked kills, even pid 1 of a namespace. A SIGSYS that is merely sent does
/// nothing.
extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, whose SIGSYS fields lie as in `SigsysInfo`.
    let (code, number) = unsafe { ((*info.cast::<SigsysInfo>()).code, (*info.cast::<SigsysInfo>()).number) };
    if code != BLOCKED {
        return;
    }
    let name = NAMES.get().and_then(|names| {
        let number = u32::try_from(number).ok()?;
        Some(names[names.binary_search_by_key(&number, |(number, _)| *number).ok()?].1)
    });
    let mut line = Line { bytes: [0; 128], length: 0 };
    line.push(b"pyspawner: blocked system call ");
    line.push(name.unwrap_or("of another architecture").as_bytes());
    line.push(b"\n");
    // SAFETY: writes initialised bytes of a local. The filter traps `unshare`; were there no filter, it does nothing with no
    // flags, and the process ends below.
    unsafe {
        tell_caller(number);
        libc::write(2, line.bytes.as_ptr().cast(), line.length);
        tell_where(signal);
        libc::syscall(libc::SYS_unshare, 0);
        libc::kill(libc::getpid(), libc::SIGKILL);
        libc::_exit(128 + libc::SIGSYS);
    }
}

/// Leaves the call's number where the caller finds it in a zombie, whichever thread this is and whatever the child's `/proc` is: in a limit
/// without effect, and the whole process's. See "Max file locks" in getrlimit(2).
fn tell_caller(number: libc::c_int) {
    // SAFETY: reads and writes a local; both are plain system calls.
    unsafe {
        let mut limit: libc::rlimit = mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_LOCKS, &raw mut limit) == 0 {
            limit.rlim_cur = libc::rlim_t::from(number.unsigned_abs());
            libc::setrlimit(libc::RLIMIT_LOCKS, &raw const limit);
        }
    }
}

/// The number of the blocked call that has ended a process which nobody has reaped yet: its handler's word.
pub(crate) fn blocked_call(pid: i32) -> Option<u32> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max file locks")?.split_whitespace().next()?.parse().ok())
}

/// Calls the handler of Python's faulthandler, which is made for this.
fn tell_where(signal: libc::c_int) {
    let handler = TRACEBACK.load(Ordering::Relaxed);
    if handler != libc::SIG_DFL && handler != libc::SIG_IGN {
        // SAFETY: it was installed as a handler that takes the signal's number, and faulthandler's is async-signal-safe.
        unsafe { mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal) }
    }
}

struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(slot) = self.bytes.get_mut(self.length) {
                *slot = *byte;
                self.length += 1;
            }
        }
    }
}
