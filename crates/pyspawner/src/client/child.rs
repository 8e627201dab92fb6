//! A child, as its caller holds it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::error::Error;
use crate::layer::Layer;
use crate::sandbox::seccomp::table::trapped_name;
use crate::sys::sigsys::blocked_call;
use crate::sys::wait::{Waited, wait_pidfd};
use crate::uncaught::UNCAUGHT;

use super::cgroup::Cgroup;
use super::living::release_ended;
use super::{Interrupt, lock, readable_within};

/// A running child. Dropping it leaves the child running.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    layers: Vec<(Layer, String)>,
    layer_times: Vec<(Layer, u32)>,
    /// Its directory in `/proc`, open so that Landlock's rule for it lasts; only of a child without namespaces.
    _proc: Option<OwnedFd>,
    cgroup: Option<Arc<Cgroup>>,
    rules: Rules,
    started: Instant,
    /// The signals that were sent through this object, a bit each.
    signalled: AtomicU64,
    /// If one of them ends it, that is because its time was over.
    timed_out: AtomicBool,
    /// Who reaps the child holds the lock until this is known.
    ended: Mutex<Option<Ended>>,
}

/// What the end of a child can mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// What it may use.
    pub(super) cpu_time: Option<Duration>,
    /// It can get SIGSYS in no other way than by a call that its filter has blocked.
    pub(super) sigsys_is_blocked_call: bool,
}

/// Why a child ended: by what the kernel says and the caller has done. Of its own word there is only [`Cause::Exception`], which anybody
/// can bring about who wants to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// It came to its end, whatever its exit code.
    Exited,
    /// The same, by an exception that nobody has caught.
    Exception,
    /// A signal, of its own or of a stranger's.
    Signaled,
    /// Killed by the caller when its time was over.
    TimedOut,
    /// The signal was sent through its [`Child`] while it lived.
    Killed,
    /// Its CPU time was used up.
    CpuTime,
    /// The memory of its cgroup was.
    OutOfMemory,
    /// It made a system call that the filter does not let through.
    BlockedSyscall,
}

impl Cause {
    /// The cause's name as users read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Exception => "exception",
            Self::Signaled => "signaled",
            Self::TimedOut => "timed_out",
            Self::Killed => "killed",
            Self::CpuTime => "cpu_time",
            Self::OutOfMemory => "out_of_memory",
            Self::BlockedSyscall => "blocked_syscall",
        }
    }
}

/// How a child ended, and what it used: with a cgroup, all of it; else it and those descendants that were waited for.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// As of waitpid(2).
    pub status: i32,
    /// Why.
    pub cause: Cause,
    /// Which call it was, if that is the cause: the word of the handler that every child has. A hostile child can name another one, as it
    /// could by making that one.
    pub blocked_syscall: Option<&'static str>,
    /// From the spawn to the moment when it was reaped.
    pub wall: Duration,
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// The most memory at one time, in bytes. Without a cgroup: of one of its processes, what it shares with the zygote included.
    pub peak_memory: u64,
    /// The most processes and threads at one time.
    pub peak_processes: Option<u64>,
    /// How many processes and threads could not be made for the limit.
    pub refused_processes: Option<u64>,
}

/// The caller's ends of a child's three pipes, all close-on-exec.
#[derive(Debug)]
pub struct Pipes {
    /// To write.
    pub stdin: OwnedFd,
    /// To read.
    pub stdout: OwnedFd,
    /// To read.
    pub stderr: OwnedFd,
}

impl Child {
    pub(super) fn new(
        pid: i32,
        pidfd: OwnedFd,
        layers: Vec<(Layer, String)>,
        layer_times: Vec<(Layer, u32)>,
        proc: Option<OwnedFd>,
        cgroup: Option<Arc<Cgroup>>,
        rules: Rules,
    ) -> Self {
        Self {
            pid,
            pidfd,
            layers,
            layer_times,
            _proc: proc,
            cgroup,
            rules,
            started: Instant::now(),
            signalled: AtomicU64::new(0),
            timed_out: AtomicBool::new(false),
            ended: Mutex::new(None),
        }
    }

    /// The child's pid as the caller sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable when the child has ended; see `pidfd_open(2)`.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The layers that are on, in order, each with a few words on what it does here.
    #[must_use]
    pub fn layers(&self) -> &[(Layer, String)] {
        &self.layers
    }

    /// The layers that are on, each with the nanoseconds that the child took to apply it.
    #[must_use]
    pub fn layer_times(&self) -> &[(Layer, u32)] {
        &self.layer_times
    }

    /// SIGKILL, to this child and never to another process that got its pid.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the child has been reaped.
    pub fn kill(&self) -> Result<(), Error> {
        self.send_signal(Signal::KILL)
    }

    /// A signal, likewise.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the child has been reaped.
    pub fn send_signal(&self, signal: Signal) -> Result<(), Error> {
        // What has ended already does not end by this.
        if !readable_within(self.pidfd.as_fd(), 0) {
            self.signalled.fetch_or(bit(signal.as_raw()), Ordering::SeqCst);
        }
        pidfd_send_signal(&self.pidfd, signal).map_err(Error::io("kill"))
    }

    /// Its time is over: if the caller kills it from now on, that is why.
    pub fn time_out(&self) {
        self.timed_out.store(true, Ordering::SeqCst);
    }

    /// As waitpid(2) on the child's pid: `(pid, status)`, or `(0, 0)` when `WNOHANG` finds it running.
    ///
    /// # Errors
    ///
    /// `ECHILD` when the child has been reaped already; `EINVAL` for `WNOWAIT` and unknown options, as waitpid(2) has it; whatever `interrupt`
    /// answers when a signal comes.
    pub fn wait(&self, options: i32, interrupt: Interrupt<'_>) -> Result<(i32, i32), Error> {
        if options & libc::WNOWAIT != 0 {
            return Err(Error::io("wait")(Errno::INVAL));
        }
        loop {
            // Waits without the lock, and leaves the child as it is.
            match wait_pidfd(&self.pidfd, options | libc::WNOWAIT) {
                Ok(None) => return Ok((0, 0)),
                Ok(Some(_)) => match self.take(&mut lock(&self.ended), options) {
                    // Another thread was faster.
                    Ok(None) | Err(Errno::INTR) => {}
                    Ok(Some(waited)) => {
                        release_ended();
                        return Ok((waited.pid, waited.status));
                    }
                    Err(errno) => return Err(Error::io("wait")(errno)),
                },
                Err(Errno::INTR) => interrupt()?,
                Err(errno) => return Err(Error::io("wait")(errno)),
            }
        }
    }

    /// How it ended, if it has, by whatever call of this object it was found out. It is reaped then.
    ///
    /// # Errors
    ///
    /// `ECHILD` when it was reaped by other means than this object.
    pub fn poll(&self) -> Result<Option<Ended>, Error> {
        let mut ended = lock(&self.ended);
        while ended.is_none() {
            match self.take(&mut ended, 0) {
                Ok(Some(waited)) if waited.has_ended() => release_ended(),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("wait")(errno)),
            }
        }
        Ok(*ended)
    }

    /// What earlier calls have found out.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        *lock(&self.ended)
    }

    fn take(&self, ended: &mut Option<Ended>, options: i32) -> rustix::io::Result<Option<Waited>> {
        let options = options | libc::WNOHANG;
        let Some(seen) = wait_pidfd(&self.pidfd, options | libc::WNOWAIT)? else { return Ok(None) };
        // While it is a zombie, its name and its limits can be read.
        let has_thrown = exit_code(seen.status) == Some(1) && self.last_name() == UNCAUGHT.to_bytes();
        let blocked = (signal(seen.status) == Some(libc::SIGSYS)).then(|| blocked_call(self.pid)).flatten();
        let waited = wait_pidfd(&self.pidfd, options)?;
        if let Some(waited) = waited.filter(Waited::has_ended) {
            *ended = Some(self.judge(&waited, has_thrown, blocked));
        }
        Ok(waited)
    }

    fn last_name(&self) -> Vec<u8> {
        let mut name = std::fs::read(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        // The end of the line.
        name.pop();
        name
    }

    fn judge(&self, waited: &Waited, has_thrown: bool, blocked: Option<u32>) -> Ended {
        let account = self.cgroup.as_ref().map(|cgroup| cgroup.finish()).unwrap_or_default();
        let (user, system) = account.cpu.unwrap_or((waited.user, waited.system));
        let signal = signal(waited.status);
        let by_caller = signal.is_some_and(|signal| self.signalled.load(Ordering::SeqCst) & bit(signal) != 0);
        let cause = match signal {
            None if has_thrown => Cause::Exception,
            None => Cause::Exited,
            Some(_) if by_caller && self.timed_out.load(Ordering::SeqCst) => Cause::TimedOut,
            Some(_) if by_caller => Cause::Killed,
            Some(libc::SIGKILL) if account.out_of_memory => Cause::OutOfMemory,
            Some(libc::SIGKILL) if self.rules.is_spent(user + system) => Cause::CpuTime,
            Some(libc::SIGSYS) if self.rules.sigsys_is_blocked_call => Cause::BlockedSyscall,
            Some(_) => Cause::Signaled,
        };
        Ended {
            status: waited.status,
            cause,
            blocked_syscall: blocked.filter(|_| cause == Cause::BlockedSyscall).and_then(trapped_name),
            wall: self.started.elapsed(),
            user,
            system,
            peak_memory: account.peak_memory.unwrap_or(waited.peak_memory),
            peak_processes: account.peak_processes,
            refused_processes: account.refused_processes,
        }
    }
}

impl Rules {
    /// The kernel rounds both of the times down of which `used` is the sum.
    fn is_spent(&self, used: Duration) -> bool {
        self.cpu_time.is_some_and(|limit| used + Duration::from_micros(2) >= limit)
    }
}

fn exit_code(status: i32) -> Option<i32> {
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}

fn signal(status: i32) -> Option<i32> {
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

fn bit(signal: i32) -> u64 {
    u32::try_from(signal).ok().and_then(|signal| 1_u64.checked_shl(signal - 1)).unwrap_or_default()
}
