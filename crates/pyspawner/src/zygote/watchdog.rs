//! The watchdog: when the caller dies without closing its Client, every child it started dies too, and so does the zygote.
//!
//! Who runs this: a copy of the zygote from before its imports, and a child of the caller. It holds the caller's pidfd, the zygote's and
//! every child's, and mostly does one thing: SIGKILL by pidfd, which for pid 1 of a pid namespace ends everything in it. So it also ends a
//! child that has used its CPU time. The caller may have it run a program that ends with a child; see `companions.rs`. It is a process of its own because the zygote may be killed first, and because `PR_SET_PDEATHSIG` would fire
//! when a mere *thread* of the caller ends. Closing a Client ends its watchdog first: children then live on.

use std::collections::BTreeMap;
use std::fs::File;
use std::iter;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, pidfd_send_signal, setrlimit};

use crate::channel::{Channel, ChannelError};
use crate::protocol::{self, CpuBudget, Watch};
use crate::sys::clone::{Cloned, ThreadFacts, clone_plain_sibling};
use crate::sys::kernel::{block_all_signals, exit_now, set_comm};
use crate::sys::{descriptors, title::Title};

use super::budget::Budget;
use super::companions::{Companions, TOKENS};
use super::{ZygoteError, own_pidfd};

/// The zygote's line to its watchdog.
#[derive(Debug)]
pub(super) struct Watchdog {
    channel: Channel,
}

/// What the caller is told of its watchdog.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// The caller's own line to it.
    pub(super) line: Channel,
}

impl Watchdog {
    /// Clones the watchdog off the young, still single-threaded zygote.
    #[expect(unsafe_code, reason = "the fork guard")]
    pub(super) fn start(
        caller: &OwnedFd,
        thread: ThreadFacts,
        title: Option<Title>,
    ) -> Result<(Self, Started), ZygoteError> {
        let doing = "starting the watchdog";
        let zygote = own_pidfd().map_err(ZygoteError::io(doing))?;
        let (ours, theirs) = Channel::pair().map_err(ZygoteError::io(doing))?;
        let (callers, of_caller) = Channel::pair().map_err(ZygoteError::io(doing))?;
        let proc = File::open("/proc").map_err(ZygoteError::io(doing))?;
        let names = super::threads::others().map_err(ZygoteError::io(doing))?;
        if !names.is_empty() {
            return Err(ZygoteError::Threads { names: names.join(", "), modules: String::new() });
        }
        // SAFETY: single-threaded: counted on the line above.
        match unsafe { clone_plain_sibling(thread) }.map_err(ZygoteError::io(doing))? {
            Cloned::Parent { pid, pidfd } => {
                Ok((Self { channel: ours }, Started { pid, pidfd, line: callers }))
            }
            Cloned::Child => {
                std::mem::forget((ours, callers));
                let proc = ManuallyDrop::new(proc);
                // SAFETY: the owners of all other descriptors are forgotten, or frames above this one, to which this process never returns.
                let closed = unsafe {
                    descriptors::close_all_except(
                        proc.as_fd(),
                        &[theirs.as_fd(), of_caller.as_fd(), caller.as_fd(), zygote.as_fd()],
                    )
                };
                set_comm(c"pyspawner-watch");
                if let Some(title) = title {
                    title.set(b"pyspawner: watchdog");
                }
                let watched = closed.and_then(|()| watch_until_the_end(&theirs, &of_caller, caller, zygote));
                exit_now(i32::from(watched.is_err()))
            }
        }
    }

    /// Has the watchdog watch one more process. It has it when this returns. `cgroup` is the process's own, if it has one.
    pub(super) fn watch(
        &self,
        pidfd: BorrowedFd<'_>,
        budget: Option<CpuBudget>,
        cgroup: Option<&OwnedFd>,
    ) -> rustix::io::Result<()> {
        let io = |error| match error {
            ChannelError::Io(errno) => errno,
            ChannelError::Protocol(_) => Errno::PROTO,
        };
        let stat = match cgroup.filter(|_| budget.is_some()) {
            Some(cgroup) => {
                Some(openat(cgroup, "cpu.stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
            }
            None => None,
        };
        let descriptors: Vec<_> = iter::once(pidfd).chain(stat.as_ref().map(AsFd::as_fd)).collect();
        self.channel.send(&Watch::This { budget }, &descriptors).map_err(io)?;
        match self.channel.recv::<Watch>().map_err(io)?.map(|received| received.message) {
            Some(Watch::Watching) => Ok(()),
            Some(Watch::Refused { errno }) => Err(Errno::from_raw_os_error(errno)),
            Some(Watch::This { .. }) => Err(Errno::PROTO),
            None => Err(Errno::PIPE),
        }
    }
}

/// A process that dies with the caller.
struct Watched {
    pidfd: OwnedFd,
    budget: Option<Budget>,
}

impl Watched {
    /// `None` where there was no descriptor left for it.
    fn new(budget: Option<CpuBudget>, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let pidfd = descriptors.next()?;
        let budget = match budget {
            Some(budget) if budget.of_cgroup => {
                Some(Budget::of_cgroup(descriptors.next()?.into(), budget.microseconds))
            }
            Some(budget) => Some(Budget::of_process(budget.pid, budget.microseconds)),
            None => None,
        };
        Some(Self { pidfd, budget })
    }

    fn kill(&self) {
        // One that has just ended is as good as killed.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// All of them, each by the token under which `epoll` tells of its end. One with a budget given later is here twice.
struct All<'a> {
    epoll: &'a OwnedFd,
    next_token: u64,
    watched: BTreeMap<u64, Watched>,
}

impl All<'_> {
    fn add(&mut self, process: Option<Watched>) -> rustix::io::Result<()> {
        let process = process.ok_or(Errno::MFILE)?;
        let token = self.next_token;
        epoll::add(self.epoll, process.pidfd.as_fd(), EventData::new_u64(token), EventFlags::IN)?;
        self.next_token += 1;
        self.watched.insert(token, process);
        Ok(())
    }

    /// Of a process that has ended. The caller may hold the same pidfd for as long as it likes, and epoll would report it for as long.
    fn remove(&mut self, token: u64) -> rustix::io::Result<()> {
        match self.watched.remove(&token) {
            Some(watched) => epoll::delete(self.epoll, watched.pidfd.as_fd()),
            None => Ok(()),
        }
    }
}

const CALLER: u64 = 0;
const ZYGOTE_SOCKET: u64 = 1;
const CALLER_SOCKET: u64 = 2;

/// Returns when there is nobody left to watch over: the caller has died and all are killed, or the zygote and every child have ended.
fn watch_until_the_end(
    zygote_socket: &Channel,
    caller_socket: &Channel,
    caller: &OwnedFd,
    zygote: OwnedFd,
) -> rustix::io::Result<()> {
    block_all_signals();
    // What is opened from here on is no standard stream: those of companions are put in their place.
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let null = fcntl_dupfd_cloexec(null, 3)?;
    descriptors::become_stdio(&null, &null, &null)?;
    // Room for as many children as the hard limit allows; children were cloned by the zygote and keep their own limits.
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;

    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let add = |descriptor: BorrowedFd<'_>, token| {
        epoll::add(&epoll, descriptor, EventData::new_u64(token), EventFlags::IN)
    };
    add(caller.as_fd(), CALLER)?;
    add(zygote_socket.as_fd(), ZYGOTE_SOCKET)?;
    add(caller_socket.as_fd(), CALLER_SOCKET)?;
    let mut companions = Companions::new(&epoll);
    let mut all = All { epoll: &epoll, next_token: CALLER_SOCKET + 1, watched: BTreeMap::new() };
    all.add(Some(Watched { pidfd: zygote, budget: None }))?;

    let mut zygote_talks = true;
    let mut space = [MaybeUninit::uninit(); 64];
    while zygote_talks || !all.watched.is_empty() || !companions.is_empty() {
        let look_at =
            all.watched.values().filter_map(|watched| watched.budget.as_ref().map(Budget::look_at)).min();
        let patience = look_at.map(|time| {
            // To the end of the millisecond, so that epoll does not answer too early.
            let left = time.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec::try_from(left).unwrap_or_default()
        });
        let (events, _) = match epoll::wait(&epoll, &mut space[..], patience.as_ref()) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        // A caller's death counts before anything that comes with it.
        if events.iter().any(|event| event.data.u64() == CALLER) {
            for watched in all.watched.values() {
                watched.kill();
            }
            companions.kill_all();
            // A child that the zygote has cloned and not yet registered reads end of file, because the caller is gone.
            return Ok(());
        }
        let now = Instant::now();
        for watched in all.watched.values_mut() {
            if watched.budget.as_mut().is_some_and(|budget| budget.is_spent(now)) {
                watched.kill();
            }
        }
        for event in events {
            let token = event.data.u64();
            if token >= TOKENS {
                companions.handle(token);
                continue;
            }
            if token == CALLER_SOCKET {
                match caller_socket.recv::<protocol::Companion>() {
                    Ok(Some(received)) => {
                        let answer = match received.message {
                            protocol::Companion::Limit { budget } => {
                                match all.add(Watched::new(Some(budget), received.descriptors)) {
                                    Ok(()) => protocol::Companion::Running,
                                    Err(errno) => {
                                        protocol::Companion::Refused { errno: errno.raw_os_error() }
                                    }
                                }
                            }
                            _ => companions.obey(received),
                        };
                        // A caller that is gone does not need the answer.
                        let _ = caller_socket.send(&answer, &[]);
                    }
                    _ => epoll::delete(&epoll, caller_socket.as_fd())?,
                }
                continue;
            }
            if token != ZYGOTE_SOCKET {
                all.remove(token)?;
                continue;
            }
            if let Ok(Some(received)) = zygote_socket.recv::<Watch>() {
                let process = match received.message {
                    Watch::This { budget } => Watched::new(budget, received.descriptors),
                    Watch::Watching | Watch::Refused { .. } => None,
                };
                let answer = match all.add(process) {
                    Ok(()) => Watch::Watching,
                    Err(errno) => Watch::Refused { errno: errno.raw_os_error() },
                };
                // A zygote that is gone does not need the answer.
                let _ = zygote_socket.send(&answer, &[]);
            } else {
                epoll::delete(&epoll, zygote_socket.as_fd())?;
                zygote_talks = false;
            }
        }
    }
    Ok(())
}
