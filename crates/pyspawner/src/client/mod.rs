//! The caller's side.
//!
//! Who runs this: the process of the user, with all its threads, signal handlers and secrets. It starts the zygote (`start.rs`), asks for
//! children (`spawn.rs`) and holds them (`child.rs`). Children are its own, by `CLONE_PARENT`; no SIGCHLD handler, no named socket, no
//! temporary file. Nothing that a child sends after its sandbox is up is ever interpreted here.

mod cgroup;
mod child;
mod communicate;
mod companions;
mod derive;
mod descriptors;
mod layers;
mod living;
mod mounts;
mod network;
mod newborn;
mod process;
mod results;
mod spawn;
mod start;
mod uppers;
mod warm;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

use crate::channel::{Channel, ChannelError};
use crate::error::Error;

pub use cgroup::Account;
use cgroup::Delegation;
pub use child::{Cause, Child, Ended, Pipes};
pub use communicate::{Completed, Conversation, OptionalPipes, Output};
use companions::Companions;
pub use derive::DeriveOptions;
use derive::PendingClone;
use network::Networks;
use newborn::PendingSpawn;
use process::Process;
pub use results::{open_beneath, open_directory};
pub use rustix::process::Signal;
pub use spawn::SpawnRequest;
pub use start::StartOptions;
use warm::Pools;

/// Asked when a signal interrupts a wait: `Err` gives the operation up.
pub type Interrupt<'a> = &'a dyn Fn() -> Result<(), Error>;

/// How long a zygote may take to notice that its Client is closed, in seconds.
const CLOSE_PATIENCE: u64 = 2;

/// A running zygote. Thread-safe: requests need no lock and no turn.
///
/// Dropped without [`Client::close`], the zygote ends and stays a zombie, and its children are killed when the caller ends.
#[derive(Debug)]
pub struct Client {
    owner: u32,
    connection: Mutex<Option<Channel>>,
    zygote: Process,
    watchdog: Process,
    threads: Vec<(String, Vec<String>)>,
    memory_image: bool,
    no_memory_image: Option<String>,
    /// The private writable memory that every child begins with, in bytes.
    data_bytes: u64,
    delegation: Delegation,
    networks: Networks,
    /// The line to the watchdog.
    companions: Arc<Companions>,
    /// Children that wait for requests.
    pools: Arc<Pools>,
    /// Children that were asked for and then not waited for, because a signal handler raised.
    abandoned: Mutex<Vec<PendingSpawn>>,
    /// The same of zygotes.
    abandoned_clones: Mutex<Vec<PendingClone>>,
}

impl Client {
    /// The zygote's pid.
    #[must_use]
    pub fn zygote_pid(&self) -> i32 {
        self.zygote.pid()
    }

    /// The watchdog's pid.
    #[must_use]
    pub fn watchdog_pid(&self) -> i32 {
        self.watchdog.pid()
    }

    /// The threads that imports started in the zygote, as `(module, thread names)`. They do not exist in children, and a library that has
    /// *used* its threads before the clone hangs in every child.
    #[must_use]
    pub fn threads(&self) -> &[(String, Vec<String>)] {
        &self.threads
    }

    /// Why the zygote has no image of its memory, if it should have one. It serves all the same; clones take longer.
    #[must_use]
    pub fn no_memory_image(&self) -> Option<&str> {
        self.no_memory_image.as_deref()
    }

    /// Ends the zygote and its watchdog. Children live on, without their managed networks. Again it does nothing more; in another process than
    /// the one that made the Client it only closes that process's copy of the connection.
    pub fn close(&self) {
        if self.check_owner().is_err() {
            // A thread that held the lock at the fork does not exist here.
            if let Ok(mut connection) = self.connection.try_lock() {
                connection.take();
            }
            self.networks.forget();
            return;
        }
        self.retire();
        // While there is somebody who can.
        self.networks.close();
        // It dies before the caller can, so it will not kill the children.
        self.watchdog.kill();
    }

    /// Ends the zygote alone. Children live on, with their watchdog and their managed networks, until [`Self::has_ended`].
    pub fn retire(&self) {
        self.pools.close();
        let Some(connection) = lock(&self.connection).take() else { return };
        // What other threads have asked for is still done: the zygote reads end of file after it.
        connection.shut_down();
        self.zygote.end_within(CLOSE_PATIENCE);
        self.reap_abandoned();
    }

    /// Whether the zygote and all its children have ended. Then nothing of them is left.
    pub fn has_ended(&self) -> bool {
        // The watchdog ends with the last of those that it watches.
        if self.check_owner().is_err() || !readable_within(self.watchdog.pidfd(), 0) {
            return false;
        }
        self.close();
        true
    }

    fn check_owner(&self) -> Result<(), Error> {
        let here = std::process::id();
        if here == self.owner { Ok(()) } else { Err(Error::Forked { owner: self.owner, here }) }
    }

    fn reap_abandoned(&self) {
        lock(&self.abandoned).retain_mut(|pending| !pending.end_within(0));
        lock(&self.abandoned_clones).retain_mut(|pending| !pending.end_within(0));
    }
}

fn channel_error(error: ChannelError) -> Error {
    match error {
        ChannelError::Io(errno) => Error::io("talking to the zygote")(errno),
        ChannelError::Protocol(error) => error.into(),
    }
}

/// A panic while a lock was held leaves nothing half done in these collections.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until one of `descriptors` is readable or at its end, and says which are.
///
/// A signal that comes just before poll(2) does not interrupt it, so `interrupt` is asked now and then too; not at once, because to ask
/// a caller written in Python takes a lock that its other threads may hold.
fn wait_for<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    interrupt: Interrupt<'_>,
) -> Result<[bool; N], Error> {
    wait_until(None, descriptors, interrupt)
}

/// The same, but for no longer than `deadline`: then none is.
fn wait_until<const N: usize>(
    deadline: Option<Instant>,
    descriptors: [BorrowedFd<'_>; N],
    interrupt: Interrupt<'_>,
) -> Result<[bool; N], Error> {
    const TENTH: Duration = Duration::from_millis(100);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = left.unwrap_or(TENTH).min(TENTH);
        // A tenth of a second fits.
        let timeout = Timespec::try_from(patience).unwrap_or_default();
        let mut polled = descriptors.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) if left == Some(patience) => return Ok([false; N]),
            Ok(0) | Err(Errno::INTR) => interrupt()?,
            Ok(_) => return Ok(polled.map(|one| !one.revents().is_empty())),
            Err(errno) => return Err(Error::io("poll")(errno)),
        }
    }
}

/// Whether `descriptor` is readable or at its end within `seconds`.
fn readable_within(descriptor: BorrowedFd<'_>, seconds: u64) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // No patience of ours is so long that it does not fit.
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], Some(&timeout)) {
            Err(Errno::INTR) => {}
            answer => return answer.is_ok_and(|ready| ready > 0),
        }
    }
}
