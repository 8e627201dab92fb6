//! The keeper: a thread of the Client's own that keeps its pools full, one child after the other, and notices which of them have died.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Bells, NUDGE, Parked, Pools, State, ZYGOTE, lock, ring};
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
    /// Has the keeper look after the pools. It is started when there is something to do for the first time.
    pub(super) fn keep_warm(self: &Arc<Self>) -> Result<(), Error> {
        let bells = {
            let mut state = lock(&self.pools.state);
            if state.has_keeper || state.is_closed || state.lacks().is_none() {
                if let Some(bells) = &state.bells {
                    ring(&bells.nudge);
                }
                return Ok(());
            }
            let bells = match &state.bells {
                Some(bells) => Arc::clone(bells),
                None => Arc::new(Bells::new(self.zygote.pidfd()).map_err(Error::io("eventfd"))?),
            };
            state.bells = Some(Arc::clone(&bells));
            state.has_keeper = true;
            bells
        };
        let (pools, client) = (Arc::clone(&self.pools), Arc::downgrade(self));
        let keeper = thread::Builder::new().name("pyspawner-warm".to_owned());
        keeper.spawn(move || keep(&pools, &bells, &client)).map(drop).map_err(|source| {
            lock(&self.pools.state).has_keeper = false;
            Error::Io { doing: "starting a thread", source }
        })
    }

    /// A child that is ready to run.
    fn park(&self, sandbox: &SandboxConfig, bells: &Bells) -> Result<Parked, Error> {
        let pools = &self.pools;
        let mut inside = self.lock_in(sandbox, Then::Park, &|| {
            if pools.is_closed() { Err(Error::Closed) } else { Ok(()) }
        })?;
        await_parked(&inside, bells)?;
        inside.rules = self.limit_cpu(&inside)?;
        Ok(Parked::new(inside, sandbox))
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

/// Waits until it is ready, for as long as there is sense in it.
fn await_parked(inside: &Inside, bells: &Bells) -> Result<(), Error> {
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
    match private.recv::<Report>().map_err(channel_error)?.map(|received| received.message) {
        Some(Report::Parked) => Ok(()),
        Some(Report::WarmUpFailed { summary }) => Err(Error::WarmUp { summary }),
        Some(_) => Err(ProtocolError::OutOfOrder { waiting_for: "a child to park" }.into()),
        None => Err(Error::WarmUp { summary: "it has ended the child".to_owned() }),
    }
}

/// The thread.
fn keep(pools: &Pools, bells: &Bells, client: &Weak<Client>) {
    // They are for the caller's threads, and one of these may wait for them.
    block_all_signals();
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
    // Nobody would notice their end.
    let ended = lock(&pools.state).drain();
    pools.end_all(ended);
    lock(&pools.state).has_keeper = false;
    pools.changed.notify_all();
}

impl State {
    /// A sandbox of which fewer are parked than wanted; the one that was used last before others.
    fn lacks(&self) -> Option<&SandboxConfig> {
        self.pools.iter().rev().find(|pool| pool.parked.len() < pool.wanted).map(|pool| &pool.sandbox)
    }

    fn next_task(&self) -> Task {
        if self.is_closed {
            return Task::End;
        }
        let pause = self.retry_at.map(|time| time.saturating_duration_since(Instant::now()));
        match (self.lacks(), pause, self.next_aged()) {
            (Some(sandbox), None | Some(Duration::ZERO), _) => Task::Park(Box::new(sandbox.clone())),
            (Some(_), pause, _) => Task::Wait(pause),
            (None, _, Some(Duration::ZERO)) => Task::Renew,
            (None, _, next) => Task::Wait(next),
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
        let unwanted = {
            let mut state = lock(&self.state);
            match parked {
                Err(error) => {
                    state.failure = Some(error);
                    state.back_off();
                    None
                }
                Ok(mut parked) => {
                    (state.pause, state.retry_at) = (Duration::ZERO, None);
                    let is_closed = state.is_closed;
                    let token = state.next_token;
                    state.next_token += 1;
                    let pool = state.pools.iter_mut().find(|pool| pool.sandbox == *sandbox);
                    match pool.filter(|pool| !is_closed && pool.parked.len() < pool.wanted) {
                        Some(pool) => {
                            parked.token = token;
                            // Without it, its death is noticed when it is to be woken.
                            let _ = bells.watch(parked.pidfd(), token);
                            pool.parked.push_back(parked);
                            None
                        }
                        None => Some(parked),
                    }
                }
            }
        };
        drop(unwanted);
        self.changed.notify_all();
    }

    /// Waits until there may be something to do, and ends the children that have died. `false`: the zygote has.
    fn watch(&self, bells: &Bells, patience: Option<Duration>) -> bool {
        let timeout = patience.map(|time| {
            // To the end of the millisecond, so that epoll does not answer too early.
            Timespec::try_from(time + Duration::from_millis(1)).unwrap_or_default()
        });
        let mut space = [std::mem::MaybeUninit::uninit(); 64];
        let Ok((events, _)) = epoll::wait(&bells.epoll, &mut space[..], timeout.as_ref()) else {
            return true;
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
                        }
                    }
                }
            }
        }
        if !dead.is_empty() {
            // Whatever kills them may go on doing so.
            lock(&self.state).back_off();
            self.end_all(dead);
        }
        true
    }
}
