//! The zygote's side: from its first line to the children it clones.
//!
//! Who runs this: a Python interpreter that the caller started, with the caller's rights and none of its secrets. [`Boot`] is its start,
//! while it imports; [`Zygote`] its life as a single-threaded process that clones itself. It is copied into every child, so it learns
//! nothing about any of them.

mod budget;
mod clone;
mod companions;
mod derive;
mod host;
mod huge_pages;
mod mappings;
mod memory_image;
mod parking;
mod plan;
pub mod scout;
mod shared_memory;
mod template;
mod threads;
mod watchdog;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, getppid, pidfd_open};

use crate::channel::{Channel, ChannelError, Received};
use crate::protocol::{FromZygote, MAX_TRACEBACK, Message, Start, ToZygote};
use crate::sys::arenas;
use crate::sys::clone::ThreadFacts;
use crate::sys::descriptors;
use crate::sys::kernel::{set_comm, settle_heap};
use crate::sys::title::Title;

pub use clone::{ChildStart, ForkHooks, Served, Zygote};
use memory_image::{OwnTables, Planned};
pub use parking::Parking;
use plan::Plan;
pub use template::Needs;
use template::Rights;
use threads::Census;
use watchdog::Watchdog;

/// Why the zygote gave up. Its standard error is where this goes: the caller may be gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZygoteError {
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What the zygote was doing.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The caller does not speak our protocol: another version of pyspawner, or not started by pyspawner at all.
    #[error("the caller: {0}")]
    Protocol(#[from] crate::protocol::ProtocolError),
    /// The caller went away.
    #[error("the caller closed the connection")]
    CallerGone,
    /// A thread is left that a clone would leave behind with its locks held.
    #[error(
        "cannot clone safely: after the fork of the zygote, threads run in it: {names}. Imports that started threads: {modules}. Remove \
         them from preload_imports, or import them in child_main"
    )]
    Threads {
        /// Their names.
        names: String,
        /// The modules whose imports started threads.
        modules: String,
    },
    /// Memory is left that every child could write to and every other child would read, and that cannot be copied.
    #[error(
        "imports have mapped memory of devices, through which children could reach each other: {names}. Open the device in child_main"
    )]
    DeviceMemory {
        /// Of which devices.
        names: String,
    },
    /// The caller could not be made the parent of the zygote's second generation.
    #[error("the caller did not adopt the zygote: can it not be a child subreaper?")]
    NotAdopted,
}

impl ZygoteError {
    fn io<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { doing, source: error.into() }
    }

    fn channel(doing: &'static str) -> impl FnOnce(ChannelError) -> Self {
        move |error| match error {
            ChannelError::Io(Errno::PIPE | Errno::CONNRESET) => Self::CallerGone,
            ChannelError::Io(errno) => Self::Io { doing, source: errno.into() },
            ChannelError::Protocol(error) => Self::Protocol(error),
        }
    }
}

/// The zygote while it imports.
#[derive(Debug)]
pub struct Boot {
    channel: Channel,
    start: Start,
    watchdog: Watchdog,
    title: Option<Title>,
    census: Census,
    origin: Origin,
}

/// What a zygote begins with.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// Itself: it is an interpreter that has just started.
    Interpreter,
    /// A zygote that has served: much of its memory is shared with that one.
    Clone(Rights),
}

impl Boot {
    /// Takes the socket that the caller left open as `number`, learns what to do, and starts the watchdog.
    ///
    /// Until here the standard error is a pipe to the caller, so that nothing an interpreter says in its last moments is lost; from
    /// here on, standard output and error are the caller's, and standard input is empty.
    ///
    /// # Errors
    ///
    /// Not started by this version of pyspawner; or the watchdog cannot be made.
    pub fn begin(number: RawFd, arena_setter: &CStr) -> Result<Self, ZygoteError> {
        let channel = Channel::from(
            descriptors::inherit(number).map_err(ZygoteError::io("taking the caller's socket"))?,
        );
        let boot = Self::on(channel, Title::find(), Origin::Interpreter)?;
        if boot.start.memory_image {
            arenas::lend(arena_setter);
        }
        Ok(boot)
    }

    fn on(channel: Channel, title: Option<Title>, origin: Origin) -> Result<Self, ZygoteError> {
        let (message, [caller, stdout, stderr]) =
            receive::<ToZygote>(&channel)?.with().map_err(ZygoteError::channel("start"))?;
        let ToZygote::Start(start) = message else {
            return Err(out_of_order("waiting for the start message"));
        };
        set_comm(c"pyspawner");
        let thread =
            ThreadFacts::of_this_thread().map_err(ZygoteError::io("asking for the thread id's address"))?;
        let (watchdog, started) = Watchdog::start(&caller, thread, title)?;
        if let Some(title) = title {
            title.set(b"pyspawner: zygote");
        }
        channel
            .send(
                &FromZygote::Hello { watchdog: started.pid },
                &[started.pidfd.as_fd(), started.line.as_fd()],
            )
            .map_err(ZygoteError::channel("hello"))?;
        let empty = std::fs::File::open("/dev/null").map_err(ZygoteError::io("opening /dev/null"))?;
        descriptors::become_stdio(&empty, &stdout, &stderr)
            .map_err(ZygoteError::io("taking the caller's standard output"))?;
        let census = Census::new().map_err(ZygoteError::io("listing threads"))?;
        Ok(Self { channel, start, watchdog, title, census, origin })
    }

    /// What the caller wants imported and run.
    #[must_use]
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// Tells the caller whose import begins, so that it can name it if it ends the process, and to whom threads belong from now on.
    ///
    /// # Errors
    ///
    /// The caller is gone.
    pub fn importing(&mut self, module: &str) -> Result<(), ZygoteError> {
        self.census.begin(module).map_err(ZygoteError::io("listing threads"))?;
        self.tell(&FromZygote::Importing { module: module.to_owned() })
    }

    /// Tells the caller why there will be no zygote.
    ///
    /// # Errors
    ///
    /// The caller is gone.
    pub fn failed(&self, summary: &str, traceback: &str) -> Result<(), ZygoteError> {
        let summary = &summary[..floor(summary, MAX_TRACEBACK / 8)];
        // The end of a traceback says most.
        let traceback = &traceback[floor(traceback, traceback.len().saturating_sub(MAX_TRACEBACK))..];
        self.tell(&FromZygote::Failed { summary: summary.to_owned(), traceback: traceback.to_owned() })
    }

    /// Ends the imports. `true` when they left threads behind: then fork as Python does, so that every library's fork handlers run, and
    /// go on in the child with [`Self::take_over`]. The caller adopts it meanwhile.
    ///
    /// # Errors
    ///
    /// The caller is gone, or /proc is.
    pub fn must_hand_over(&mut self) -> Result<bool, ZygoteError> {
        self.census.end().map_err(ZygoteError::io("listing threads"))?;
        if threads::others().map_err(ZygoteError::io("listing threads"))?.is_empty() {
            return Ok(false);
        }
        self.tell(&FromZygote::HandOver)?;
        match receive::<ToZygote>(&self.channel)?.message {
            ToZygote::Proceed => Ok(true),
            ToZygote::Start(_) => Err(out_of_order("waiting to hand over")),
        }
    }

    /// After the fork, in the process that must end now: tells the caller who goes on.
    ///
    /// # Errors
    ///
    /// The caller is gone; `ESRCH` when the successor has not lived to hear it.
    pub fn hand_over(&self, successor: i32) -> Result<(), ZygoteError> {
        let doing = "opening the successor's pidfd";
        let pid = Pid::from_raw(successor).ok_or(Errno::SRCH).map_err(ZygoteError::io(doing))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(ZygoteError::io(doing))?;
        self.channel
            .send(&FromZygote::HandedOver { pid: successor }, &[pidfd.as_fd()])
            .map_err(ZygoteError::channel("handing over"))
    }

    /// In the fork: waits until its parent, `predecessor`, has ended and the caller is the parent. Then children cloned with `CLONE_PARENT`
    /// are the caller's.
    ///
    /// # Errors
    ///
    /// The caller is not the parent: it cannot be a child subreaper.
    pub fn take_over(&self, predecessor: RawFd) -> Result<(), ZygoteError> {
        let doing = "waiting for the zygote's first generation";
        let predecessor = descriptors::inherit(predecessor).map_err(ZygoteError::io(doing))?;
        wait_readable(predecessor.as_fd()).map_err(ZygoteError::io(doing))?;
        if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != self.start.caller) {
            return Err(ZygoteError::NotAdopted);
        }
        let pidfd = own_pidfd().map_err(ZygoteError::io(doing))?;
        self.watchdog.watch(pidfd.as_fd(), None, None).map_err(ZygoteError::io(doing))
    }

    /// Ends the start: hides what children may not see, says that it is ready, and is a zygote.
    ///
    /// # Errors
    ///
    /// A second thread is left; the caller is gone.
    pub fn ready(self, needs: Needs) -> Result<Zygote, ZygoteError> {
        let refused = |error: ZygoteError, channel: &Channel| {
            // The caller may be what is gone; the error goes to standard error either way.
            let message = FromZygote::Failed { summary: error.to_string(), traceback: String::new() };
            let _ = channel.send(&message, &[]);
            error
        };
        let names = threads::others().map_err(ZygoteError::io("listing threads"))?;
        if !names.is_empty() {
            let modules: Vec<_> = self.census.report().iter().map(|(module, _)| module.as_str()).collect();
            let error = ZygoteError::Threads { names: names.join(", "), modules: modules.join(", ") };
            return Err(refused(error, &self.channel));
        }
        // The heap's end is where it stays.
        settle_heap();
        let mappings = mappings::read()
            .map_err(|error| refused(ZygoteError::io("listing mappings")(error), &self.channel))?;
        let devices = shared_memory::make_all_private(&mappings).map_err(|error| {
            refused(ZygoteError::io("making shared memory private")(error), &self.channel)
        })?;
        if !devices.is_empty() {
            return Err(refused(ZygoteError::DeviceMemory { names: devices.join(", ") }, &self.channel));
        }
        let arenas = arenas::close();
        let image = self.start.memory_image.then(|| Planned::new(OwnTables::open()?, &mappings, arenas));
        let planned = image.as_ref().and_then(|planned| planned.as_ref().ok());
        let stay = mappings.iter().filter(|mapping| planned.is_none_or(|planned| !planned.touches(mapping)));
        let rights = match self.origin {
            Origin::Interpreter => {
                huge_pages::gather(stay);
                Rights::of_this_process()
            }
            Origin::Clone(rights) => {
                huge_pages::gather_own(stay);
                rights
            }
        };
        drop(mappings);
        let plan = Plan::new(needs, rights).map_err(|error| refused(error, &self.channel))?;
        let threads = self.census.into_report();
        // From here on, whatever is written is written in all clones.
        settle_heap();
        let image = image.map(|planned| planned.and_then(Planned::take));
        let no_memory_image = image.as_ref().and_then(|taken| taken.as_ref().err()).map(ToString::to_string);
        self.channel
            .send(&FromZygote::Ready { threads, no_memory_image }, &[])
            .map_err(ZygoteError::channel("ready"))?;
        Ok(Zygote::new(self.channel, self.watchdog, self.title, plan, image.and_then(Result::ok)))
    }

    fn tell(&self, message: &FromZygote) -> Result<(), ZygoteError> {
        self.channel.send(message, &[]).map_err(ZygoteError::channel("telling the caller"))
    }
}

/// The last place at or before `index` where a character begins.
pub(crate) fn floor(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|index| text.is_char_boundary(*index)).unwrap_or_default()
}

fn own_pidfd() -> rustix::io::Result<OwnedFd> {
    pidfd_open(getpid(), PidfdFlags::empty())
}

fn wait_readable(descriptor: rustix::fd::BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], None))
        .map(drop)
}

fn receive<M: Message>(channel: &Channel) -> Result<Received<M>, ZygoteError> {
    channel.recv().map_err(ZygoteError::channel("receiving"))?.ok_or(ZygoteError::CallerGone)
}

fn out_of_order(waiting_for: &'static str) -> ZygoteError {
    crate::protocol::ProtocolError::OutOfOrder { waiting_for }.into()
}
