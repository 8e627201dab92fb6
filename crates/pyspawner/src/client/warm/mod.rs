//! Warm children: cloned, locked in and ready to run before anybody asks for them.
//!
//! There is a [`Pool`] for each sandbox in use. Its children are parked: each is inside its sandbox, has done what its zygote's `warm_up` says,
//! and waits for the caller. A request takes one, and a thread of the Client's own, the *keeper*, parks another in its place.
//!
//! A parked child knows nothing of any request, and is used for one.

mod keeper;
mod parked;
mod surroundings;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::child::Child;
use super::descriptors::ChildDescriptors;
use super::spawn::SpawnRequest;
use super::{Client, Interrupt, lock};
use crate::config::{Mount, Network, SandboxConfig};
use crate::error::Error;

use parked::Parked;
use surroundings::{MountTable, Surroundings};

/// How many pools there are of sandboxes that were not asked to be warm but used.
const MAX_POOLS: usize = 4;

/// How long the keeper waits after a failure, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long the keeper leaves the processors to a child that was woken, before it has another one cloned.
const GRACE: Duration = Duration::from_millis(2);

/// The shortest time that a timer has.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// The tokens of what the keeper waits for beside parked children.
const NUDGE: u64 = 0;
const ZYGOTE: u64 = 1;

/// The pools of one Client.
#[derive(Debug)]
pub(super) struct Pools {
    state: Mutex<State>,
    /// Of what waits for a pool to be full, and of the keeper's end.
    changed: Condvar,
}

/// How the keeper is told of things.
#[derive(Debug)]
struct Bells {
    /// What the keeper waits for.
    epoll: OwnedFd,
    /// A timer that wakes it.
    nudge: OwnedFd,
    /// Readable when the Client is closed.
    closing: OwnedFd,
    /// Readable when the zygote has ended. The keeper's own: a Client that is dropped closes its pidfd, and epoll forgets what is closed.
    zygote: OwnedFd,
    mounts: Mutex<MountTable>,
}

#[derive(Debug)]
struct State {
    /// How many to park of a sandbox that is used.
    each: usize,
    /// The one that was used last is last.
    pools: Vec<Pool>,
    next_token: u64,
    /// From the first pool on, until the Client is closed.
    bells: Option<Arc<Bells>>,
    has_keeper: bool,
    is_closed: bool,
}

/// The parked children of one sandbox.
#[derive(Debug)]
struct Pool {
    sandbox: SandboxConfig,
    wanted: usize,
    /// It was asked for, and stays until it is asked to go.
    is_pinned: bool,
    /// The oldest first.
    parked: VecDeque<Parked>,
    /// Why the last one could not be parked, for whoever asks.
    failure: Option<Error>,
    /// After a failure. Each pool has its own: a sandbox that never works is no reason to neglect the others.
    pause: Duration,
    /// When the next one is to be parked: after that pause, or a little after one was woken.
    next_at: Option<Instant>,
}

impl Pools {
    pub(super) fn new(each: usize) -> Self {
        let state = State {
            each,
            pools: Vec::new(),
            next_token: ZYGOTE + 1,
            bells: None,
            has_keeper: false,
            is_closed: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Ends all parked children and the keeper.
    pub(super) fn close(&self) {
        let (ended, bells) = {
            let mut state = lock(&self.state);
            state.is_closed = true;
            (state.drain(), state.bells.take())
        };
        if let Some(bells) = bells {
            let _ = rustix::io::write(&bells.closing, &1_u64.to_ne_bytes());
            bells.nudge_in(AT_ONCE);
        }
        for one in &ended {
            one.kill();
        }
        drop(ended);
        let mut state = lock(&self.state);
        while state.has_keeper {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Ends all parked children, so that others can have what they hold; the keeper waits a while. `false`: there was none.
    pub(super) fn make_room(&self) -> bool {
        let ended = {
            let mut state = lock(&self.state);
            let ended = state.drain();
            if !ended.is_empty() {
                state.pools.iter_mut().for_each(Pool::back_off);
            }
            ended
        };
        let has_ended = !ended.is_empty();
        self.end_all(ended);
        has_ended
    }

    /// Why no child of one of the sandboxes could be parked, if that was not asked since.
    fn take_failure(&self) -> Option<Error> {
        lock(&self.state).pools.iter_mut().rev().find_map(|pool| pool.failure.take())
    }

    /// Remembers why no child could be parked.
    fn fail(&self, sandbox: &SandboxConfig, failure: Error) {
        if let Some(pool) = lock(&self.state).pool(sandbox) {
            pool.failure = Some(failure);
            pool.back_off();
        }
    }

    fn is_closed(&self) -> bool {
        lock(&self.state).is_closed
    }

    /// Kills all before it waits for the first.
    fn end_all(&self, parked: Vec<Parked>) {
        if parked.is_empty() {
            return;
        }
        let bells = lock(&self.state).bells.clone();
        for one in &parked {
            if let Some(bells) = &bells {
                bells.forget(one);
            }
            one.kill();
        }
        drop(parked);
    }

    /// A parked child of a sandbox. From here on there is a pool for it.
    fn take(&self, sandbox: &SandboxConfig) -> Option<(Parked, Arc<Bells>)> {
        let mut state = lock(&self.state);
        let bells = state.bells.clone();
        let taken = match state.pools.iter().position(|pool| pool.sandbox == *sandbox) {
            Some(at) => {
                state.pools[at..].rotate_left(1);
                state.pools.last_mut().and_then(|pool| {
                    let was_full = !pool.is_lacking();
                    let taken = pool.parked.pop_front()?;
                    // If one was missing already, the keeper knows when to look.
                    if let (true, Some(bells)) = (was_full, &bells) {
                        pool.next_at = Some(Instant::now() + GRACE);
                        bells.nudge_in(GRACE);
                    }
                    Some(taken)
                })
            }
            None if state.each > 0 => {
                let wanted = state.each;
                state.pools.push(Pool::new(sandbox, wanted));
                let ended = state.drop_least_used();
                drop(state);
                self.end_all(ended);
                None
            }
            None => None,
        };
        let (parked, bells) = (taken?, bells?);
        bells.forget(&parked);
        Some((parked, bells))
    }
}

impl Bells {
    fn new(zygote: BorrowedFd<'_>) -> io::Result<Self> {
        let bells = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            nudge: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?,
            closing: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            zygote: fcntl_dupfd_cloexec(zygote, 3)?,
            mounts: Mutex::new(MountTable::open()?),
        };
        bells.watch(bells.nudge.as_fd(), NUDGE)?;
        bells.watch(bells.zygote.as_fd(), ZYGOTE)?;
        Ok(bells)
    }

    fn watch(&self, descriptor: BorrowedFd<'_>, token: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token), EventFlags::IN)
    }

    /// Wakes the keeper after a while. Whoever spawns does not pay for its waking up.
    fn nudge_in(&self, time: Duration) {
        let never_again = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec::try_from(time).unwrap_or_default();
        let timer = Itimerspec { it_interval: never_again, it_value: value };
        // Such a timer can be set.
        let _ = timerfd_settime(&self.nudge, TimerfdTimerFlags::empty(), &timer);
    }

    /// What a sandbox leads to now.
    fn look(&self, sandbox: &SandboxConfig) -> io::Result<Surroundings> {
        Surroundings::look(sandbox, &mut lock(&self.mounts))
    }

    /// To close a pidfd is not enough: a process that was forked off the caller has it too, and as long as it does, epoll would tell of it.
    fn forget(&self, parked: &Parked) {
        let _ = epoll::delete(&self.epoll, parked.pidfd());
    }
}

impl State {
    /// All that are parked.
    fn drain(&mut self) -> Vec<Parked> {
        self.pools.iter_mut().flat_map(|pool| pool.parked.drain(..)).collect()
    }

    /// Gives up the pools that nobody has asked for or used for longest. Their children.
    fn drop_least_used(&mut self) -> Vec<Parked> {
        let mut ended = Vec::new();
        while self.pools.iter().filter(|pool| !pool.is_pinned).count() > MAX_POOLS {
            let Some(oldest) = self.pools.iter().position(|pool| !pool.is_pinned) else { break };
            ended.extend(self.pools.remove(oldest).parked);
        }
        ended
    }

    fn pool(&mut self, sandbox: &SandboxConfig) -> Option<&mut Pool> {
        self.pools.iter_mut().find(|pool| pool.sandbox == *sandbox)
    }
}

impl Pool {
    fn new(sandbox: &SandboxConfig, wanted: usize) -> Self {
        Self {
            sandbox: sandbox.clone(),
            wanted,
            is_pinned: false,
            parked: VecDeque::new(),
            failure: None,
            pause: Duration::ZERO,
            next_at: None,
        }
    }

    fn is_lacking(&self) -> bool {
        self.parked.len() < self.wanted
    }

    fn back_off(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.next_at = Some(Instant::now() + self.pause);
    }

    /// How long until the next one is to be parked.
    fn left(&self) -> Duration {
        self.next_at.map_or(Duration::ZERO, |time| time.saturating_duration_since(Instant::now()))
    }
}

/// Not of a sandbox that only one child at a time can have.
fn is_parkable(sandbox: &SandboxConfig) -> bool {
    let is_single = |mount: &Mount| matches!(mount, Mount::Overlay { upper: Some(_), .. });
    !matches!(sandbox.network, Some(Network::Veth(_))) && !sandbox.mounts.iter().any(is_single)
}

impl Client {
    /// Sees to it that `count` children of a sandbox are parked from now on, however often they are used, and waits until they are. With 0
    /// it ends them.
    ///
    /// # Errors
    ///
    /// What a spawn of it would fail with; a sandbox that only one child at a time can have: an overlay with an upper, or a veth pair of a name.
    pub fn prewarm(
        self: &Arc<Self>,
        sandbox: &SandboxConfig,
        count: usize,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        self.want_warm(sandbox, count)?;
        self.await_full(sandbox, count, interrupt)
    }

    /// The same without waiting.
    ///
    /// # Errors
    ///
    /// A sandbox that makes no sense, or that only one child at a time can have.
    pub fn want_warm(self: &Arc<Self>, sandbox: &SandboxConfig, count: usize) -> Result<(), Error> {
        self.check_owner()?;
        sandbox.validate()?;
        if !is_parkable(sandbox) {
            return Err(crate::config::ConfigError::NotParkable.into());
        }
        let ended = {
            let mut state = lock(&self.pools.state);
            if state.is_closed {
                return Err(Error::Closed);
            }
            let at = state.pools.iter().position(|pool| pool.sandbox == *sandbox);
            let mut pool = at.map_or_else(|| Pool::new(sandbox, count), |at| state.pools.remove(at));
            (pool.wanted, pool.is_pinned) = (count, true);
            (pool.failure, pool.next_at) = (None, None);
            let kept = pool.parked.len().min(count);
            let ended = pool.parked.split_off(kept);
            if count > 0 {
                state.pools.push(pool);
            }
            ended
        };
        self.pools.end_all(ended.into());
        self.keep_warm(sandbox);
        Ok(())
    }

    fn await_full(
        &self,
        sandbox: &SandboxConfig,
        count: usize,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        const TENTH: Duration = Duration::from_millis(100);
        loop {
            {
                let mut state = lock(&self.pools.state);
                if state.is_closed {
                    return Err(Error::Closed);
                }
                // Another thread may have asked for something else meanwhile.
                let Some(pool) = state.pool(sandbox) else { return Ok(()) };
                if pool.parked.len() >= count.min(pool.wanted) {
                    return Ok(());
                }
                if let Some(failure) = pool.failure.take() {
                    return Err(failure);
                }
                if !state.has_keeper {
                    return Err(self.died());
                }
                let waited = self.pools.changed.wait_timeout(state, TENTH);
                drop(waited.unwrap_or_else(std::sync::PoisonError::into_inner));
            }
            interrupt()?;
        }
    }

    /// A child that was parked for what is asked for, running. `None`: there is none.
    pub(super) fn wake(
        self: &Arc<Self>,
        request: &SpawnRequest<'_>,
        descriptors: &ChildDescriptors,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<Child>, Error> {
        if !self.pools.is_in_use() || !is_parkable(request.sandbox) {
            return Ok(None);
        }
        let mut woken = Ok(None);
        let mut unusable = Vec::new();
        let mut found = false;
        while let Some((parked, bells)) = self.pools.take(request.sandbox) {
            if parked.is_usable(request.sandbox, &bells) {
                found = true;
                woken = parked.wake(request.process_name, descriptors, interrupt);
                // Where one does not answer, the next may not either.
                break;
            }
            unusable.push(parked);
        }
        if !found {
            self.keep_warm(request.sandbox);
        }
        self.pools.end_all(unusable);
        woken
    }

    /// Why no child of one of the sandboxes could be parked, if that was so and is not told yet.
    #[must_use]
    pub fn parking_failure(&self) -> Option<Error> {
        self.pools.take_failure()
    }

    /// How many children are parked.
    #[must_use]
    pub fn parked(&self) -> usize {
        lock(&self.pools.state).pools.iter().map(|pool| pool.parked.len()).sum()
    }
}

impl Pools {
    fn is_in_use(&self) -> bool {
        let state = lock(&self.state);
        state.each > 0 || !state.pools.is_empty()
    }
}
