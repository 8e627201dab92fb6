//! One parked child: whether it can still be used, and how it is woken.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::channel::{Channel, ChannelError};
use crate::client::child::Child;
use crate::client::descriptors::ChildDescriptors;
use crate::client::living::Living;
use crate::client::spawn::Inside;
use crate::client::{Interrupt, channel_error, readable_within, wait_for, wait_until};
use crate::config::{DEFAULT_PROCESS_NAME, Network, SandboxConfig};
use crate::error::Error;
use crate::protocol::{Order, Report};
use crate::sys::wait::wait_pidfd;

use super::Bells;
use super::surroundings::Surroundings;

/// How long a child that is woken may take to answer before another one is cloned in its place.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long one with a managed network can be used: its policy is made of addresses that names had when it was parked.
const MAX_AGE: Duration = Duration::from_secs(60);

/// How long one may take that has read its order: only what stops or kills it can keep it from answering.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// A child that waits to be woken. Dropped, it is killed and reaped.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) token: u64,
    inside: Inside,
    /// What it was given of the filesystem.
    surroundings: Surroundings,
    /// Until when it can be used, if not for ever.
    until: Option<Instant>,
}

impl Parked {
    /// One that has said that it is ready.
    pub(super) fn new(inside: Inside, sandbox: &SandboxConfig, surroundings: Surroundings) -> Self {
        let is_managed = matches!(sandbox.network, Some(Network::Managed(_)));
        let until = is_managed.then(|| Instant::now() + MAX_AGE);
        Self { token: 0, inside, surroundings, until }
    }

    /// How long it can be used; `None`: for ever.
    pub(super) fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        // It has one until it is released.
        self.inside.newborn.pidfd.as_ref().map_or_else(|| self.inside.newborn.private.as_fd(), AsFd::as_fd)
    }

    pub(super) fn kill(&self) {
        // One that has ended is only to be reaped.
        let _ = pidfd_send_signal(self.pidfd(), Signal::KILL);
    }

    /// Whether it lives, is not stopped, and has been given what the paths of its sandbox lead to now.
    pub(super) fn is_usable(&self, sandbox: &SandboxConfig, bells: &Bells) -> bool {
        let look = libc::WNOHANG | libc::WNOWAIT | libc::WUNTRACED;
        let lives = matches!(wait_pidfd(self.pidfd(), look), Ok(None));
        lives
            && bells.look(sandbox).is_ok_and(|found| found == self.surroundings)
            && self.left() != Some(Duration::ZERO)
            && self.inside.holds.as_ref().is_none_or(Living::network_is_current)
    }

    /// Gives it what it is to run. `None`: it does not answer, has run nothing, and is ended.
    pub(super) fn wake(
        self,
        process_name: Option<&str>,
        descriptors: &ChildDescriptors,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<Child>, Error> {
        let Inside { newborn, first_id, child_id, .. } = &self.inside;
        if let Some(first_id) = first_id {
            descriptors.give_to(first_id + child_id);
        }
        let process_name = process_name.unwrap_or(DEFAULT_PROCESS_NAME).to_owned();
        match newborn.private.try_send(&Order::Wake { process_name }, &descriptors.all()) {
            Ok(()) => {}
            // It has died this moment.
            Err(ChannelError::Io(Errno::PIPE | Errno::CONNRESET)) => return Ok(None),
            Err(error) => return Err(channel_error(error)),
        }
        if !self.answers_within(PATIENCE, interrupt)? {
            let has_not_read = newborn.its_end.as_ref().is_some_and(|end| end.take_back() == Ok(true));
            if has_not_read
                || !(self.answers_within(LAST_PATIENCE, interrupt)? || self.has_answered_at_last()?)
            {
                return Ok(None);
            }
        }
        self.inside.release().map(Some)
    }

    /// Whether it says in time that user code runs next.
    fn answers_within(&self, patience: Duration, interrupt: Interrupt<'_>) -> Result<bool, Error> {
        let private = &self.inside.newborn.private;
        let deadline = Some(Instant::now() + patience);
        let [answers, _] = wait_until(deadline, [private.as_fd(), self.pidfd()], interrupt)?;
        Ok(answers && is_running(private)?)
    }

    /// The same when it has been ended, so that it cannot say it later: if it has, it is its user's, ended or not.
    fn has_answered_at_last(&self) -> Result<bool, Error> {
        self.kill();
        let [_ended] = wait_for([self.pidfd()], &|| Ok(()))?;
        let private = &self.inside.newborn.private;
        Ok(readable_within(private.as_fd(), 0) && is_running(private)?)
    }
}

fn is_running(private: &Channel) -> Result<bool, Error> {
    let received = private.recv::<Report>().map_err(channel_error)?;
    Ok(received.is_some_and(|received| received.message == Report::Running))
}
