//! The keeper: a thread of the Client's own that keeps its pools full, one child after the other, and notices which of them have died.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::epoll;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{AT_ONCE, Bells, NUDGE, Parked, Pool, Pools, State, ZYGOTE, lock};
use crate::channel::Channel;
use crate::client::child::Rules;
use crate::client::spawn::{Inside, Then};
use crate::client::{Client, channel_error};
use crate::config::SandboxConfig;
use crate::error::Error;
use crate::protocol::{CpuBudget, ProtocolError, Report};
use crate::sys::flat_keyed::used;
use crate::sys::kernel::{block_all_signals, cpu_time};

/// How long a child may take to get ready.
const WARM_UP_PATIENCE: Duration = Duration::from_secs(60);

/// What the keeper does next.
enum Task {
    Park(Box<SandboxConfig>),
    /// End what has become too old.
    Renew,
    /// Until something happens, or this has passed.
    Wait(Option<Duration>),
    End,
}

impl Client {
    /// Has the keeper look after the pools. Where it cannot be started, that is why no child of this sandbox is parked, and no more: who
    /// spawns has a child, or gets one that is cloned.
    pub(super) fn keep_warm(self: &Arc<Self>, sandbox: &SandboxConfig) {
        if let Err(failure) = self.start_keeper() {
            self.pools.fail(sandbox, failure);
        }
    }

    /// It is started when there is something to do for the first time.
    fn start_keeper(self: &Arc<Self>) -> Result<(), Error> {
        let bells = {
            let mut state = lock(&self.pools.state);
            if state.has_keeper || state.is_closed || !state.pools.iter().any(Pool::is_lacking) {
                if let Some(bells) = &state.bells {
                    bells.nudge_in(AT_ONCE);
                }
                return Ok(());
            }
            let bells =
                match &state.bells {
                    Some(bells) => Arc::clone(bells),
                    None => Arc::new(Bells::new(self.zygote.pidfd()).map_err(|source| Error::Io {
                        doing: "starting the keeper of warm children",
                        source,
                    })?),
                };
            state.bells = Some(Arc::clone(&bells));
            state.has_keeper = true;
            bells
        };
        let (pools, client) = (Arc::clone(&self.pools), Arc::downgrade(self));
        let keeper = thread::Builder::new().name("pyspawner-warm".to_owned());
        keeper.spawn(move || keep(&pools, &bells, &client)).map(drop).map_err(|source| {
            self.pools.lose_keeper();
            Error::Io { doing: "starting a thread", source }
        })
    }

    /// A child that is ready to run.
    fn park(&self, sandbox: &SandboxConfig, bells: &Bells) -> Result<Parked, Error> {
        let pools = &self.pools;
        // Before it is made: what changes meanwhile makes it unusable.
        let surroundings = bells.look(sandbox);
        let mut inside = self.lock_in(sandbox, Then::Park, &|| {
            if pools.is_closed() { Err(Error::Closed) } else { Ok(()) }
        })?;
        inside.newborn.its_end = Some(await_parked(&inside, bells)?);
        inside.rules = self.limit_cpu(&inside)?;
        let surroundings =
            surroundings.map_err(|source| Error::Io { doing: "looking at what is mounted", source })?;
        Ok(Parked::new(inside, sandbox, surroundings))
    }

    /// What it has used until now does not count.
    fn limit_cpu(&self, inside: &Inside) -> Result<Rules, Error> {
        let Inside { newborn, cgroup, rules, .. } = inside;
        let Some(limit) = rules.cpu_time else { return Ok(*rules) };
        let stat = cgroup.as_ref().map(|cgroup| cgroup.cpu_stat()).transpose();
        let stat = stat.map_err(Error::io("opening cpu.stat"))?;
        let used = match &stat {
            Some(stat) => used(stat),
            None => cpu_time(newborn.pid),
        };
        let limit = limit.saturating_add(used.unwrap_or_default());
        // More does not fit, and never comes.
        if let (Ok(microseconds), Some(pidfd)) = (u64::try_from(limit.as_micros()), &newborn.pidfd) {
            let budget = CpuBudget { microseconds, of_cgroup: stat.is_some(), pid: newborn.pid };
            self.companions.limit(budget, pidfd.as_fd(), stat.as_ref().map(AsFd::as_fd))?;
        }
        Ok(Rules { cpu_time: Some(limit), ..*rules })
    }
}

/// Waits until it is ready, for as long as there is sense in it. Its own end of the conversation.
fn await_parked(inside: &Inside, bells: &Bells) -> Result<Channel, Error> {
    let private = &inside.newborn.private;
    let mut polled = [private.as_fd(), bells.closing.as_fd()]
        .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
    let patience = Timespec::try_from(WARM_UP_PATIENCE).unwrap_or_default();
    // This thread gets no signals.
    let ready = poll(&mut polled, Some(&patience)).map_err(Error::io("poll"))?;
    if !polled[1].revents().is_empty() {
        return Err(Error::Closed);
    }
    if ready == 0 {
        let summary = format!("it was not done after {} seconds", WARM_UP_PATIENCE.as_secs());
        return Err(Error::WarmUp { summary });
    }
    let Some(received) = private.recv::<Report>().map_err(channel_error)? else {
        return Err(Error::WarmUp { summary: "the child has ended".to_owned() });
    };
    match (received.message, received.descriptors.into_iter().next()) {
        (Report::Parked, Some(its_end)) => Ok(its_end.into()),
        (Report::Parked, None) => Err(channel_error(Errno::MFILE.into())),
        (Report::WarmUpFailed { summary }, _) => Err(Error::WarmUp { summary }),
        _ => Err(ProtocolError::OutOfOrder { waiting_for: "a child to park" }.into()),
    }
}

/// The thread.
fn keep(pools: &Pools, bells: &Bells, client: &Weak<Client>) {
    // They are for the caller's threads, and one of these may wait for them.
    block_all_signals();
    let _end = End(pools);
    loop {
        let task = lock(&pools.state).next_task();
        match task {
            Task::End => break,
            Task::Wait(patience) => {
                if !pools.watch(bells, patience) {
                    break;
                }
            }
            Task::Renew => {
                let aged = lock(&pools.state).aged();
                pools.end_all(aged.into_iter().collect());
            }
            Task::Park(sandbox) => {
                let Some(client) = client.upgrade() else { break };
                let parked = client.park(&sandbox, bells);
                pools.put(bells, &sandbox, parked);
            }
        }
    }
}

/// However the keeper ends: who closes the Client waits for that.
struct End<'a>(&'a Pools);

impl Drop for End<'_> {
    fn drop(&mut self) {
        // Nobody would notice their end.
        let ended = lock(&self.0.state).drain();
        self.0.end_all(ended);
        self.0.lose_keeper();
    }
}

impl State {
    fn next_task(&self) -> Task {
        if self.is_closed {
            return Task::End;
        }
        // Of the sandbox that was used last before others.
        let lacking = self.pools.iter().rev().filter(|pool| pool.is_lacking());
        let next = lacking.map(|pool| (pool.left(), pool)).min_by_key(|(left, _)| *left);
        match (next, self.next_aged()) {
            (Some((Duration::ZERO, pool)), _) => Task::Park(Box::new(pool.sandbox.clone())),
            (_, Some(Duration::ZERO)) => Task::Renew,
            (next, aged) => Task::Wait(next.map(|(left, _)| left).into_iter().chain(aged).min()),
        }
    }

    /// How long until the first parked child is too old.
    fn next_aged(&self) -> Option<Duration> {
        self.pools.iter().flat_map(|pool| &pool.parked).filter_map(Parked::left).min()
    }

    /// The first that is. One at a time, so that others are ready meanwhile.
    fn aged(&mut self) -> Option<Parked> {
        let is_aged = |parked: &Parked| parked.left() == Some(Duration::ZERO);
        let pool = self.pools.iter_mut().find(|pool| pool.parked.iter().any(is_aged))?;
        let at = pool.parked.iter().position(is_aged)?;
        pool.parked.remove(at)
    }
}

impl Pools {
    /// Keeps a child that is ready, if it is still wanted, or remembers why there is none.
    fn put(&self, bells: &Bells, sandbox: &SandboxConfig, parked: Result<Parked, Error>) {
        match parked {
            Err(failure) => self.fail(sandbox, failure),
            Ok(parked) => drop(self.keep(bells, sandbox, parked)),
        }
        self.changed.notify_all();
    }

    /// The child, if nobody wants it.
    fn keep(&self, bells: &Bells, sandbox: &SandboxConfig, mut parked: Parked) -> Option<Parked> {
        let mut state = lock(&self.state);
        parked.token = state.next_token;
        state.next_token += 1;
        let is_closed = state.is_closed;
        let pool = state.pool(sandbox).filter(|pool| !is_closed && pool.is_lacking());
        let Some(pool) = pool else { return Some(parked) };
        (pool.pause, pool.next_at) = (Duration::ZERO, None);
        // Without it, its death is noticed when it is to be woken.
        let _ = bells.watch(parked.pidfd(), parked.token);
        pool.parked.push_back(parked);
        None
    }

    fn lose_keeper(&self) {
        lock(&self.state).has_keeper = false;
        self.changed.notify_all();
    }

    /// Waits until there may be something to do, and ends the children that have died. `false`: there will be no more.
    fn watch(&self, bells: &Bells, patience: Option<Duration>) -> bool {
        let timeout = patience.map(|time| {
            // To the end of the millisecond, so that epoll does not answer too early.
            Timespec::try_from(time + Duration::from_millis(1)).unwrap_or_default()
        });
        let mut space = [std::mem::MaybeUninit::uninit(); 64];
        let events = match epoll::wait(&bells.epoll, &mut space[..], timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return true,
            // A caller that has closed this descriptor has closed others too.
            Err(_) => return false,
        };
        let mut dead = Vec::new();
        for event in events {
            match event.data.u64() {
                ZYGOTE => return false,
                NUDGE => {
                    let _ = rustix::io::read(&bells.nudge, &mut [0; 8]);
                }
                token => {
                    for pool in &mut lock(&self.state).pools {
                        if let Some(at) = pool.parked.iter().position(|parked| parked.token == token) {
                            dead.extend(pool.parked.remove(at));
                            // Whatever kills them may go on doing so.
                            pool.back_off();
                        }
                    }
                }
            }
        }
        self.end_all(dead);
        true
    }
}
