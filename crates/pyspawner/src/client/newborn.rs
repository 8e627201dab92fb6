//! A child that no user has seen yet: from the request to the inside of its sandbox. Dropped, it is killed and reaped.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::descriptors::ChildDescriptors;
use super::{Interrupt, channel_error, readable_within, wait_for};
use crate::channel::{Channel, ChannelError};
use crate::error::{Error, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{Order, Orders, ProtocolError, Report};
use crate::sys::wait::{kill_unreaped, reap_unreaped, wait_pidfd};

/// A child that was asked for and is not reported yet.
#[derive(Debug)]
pub(super) struct PendingSpawn {
    pub(super) private: Channel,
    /// The pid that the kernel gave with the child's first word.
    pub(super) born: Option<i32>,
    /// That process; `None` where there was no descriptor left for it.
    pub(super) pidfd: Option<OwnedFd>,
}

/// What comes through the private socket before the child is reported.
pub(super) enum Progress {
    /// The child exists.
    Born,
    /// It waits for its orders.
    Ready(OwnedFd, Option<u32>),
    /// The socket's other end is gone, and no child has it.
    NoChild,
}

impl PendingSpawn {
    pub(super) fn read(&mut self) -> Result<Progress, Error> {
        let Some(received) = self.private.recv::<Report>().map_err(channel_error)? else {
            return Ok(Progress::NoChild);
        };
        match received.message {
            Report::Born => {
                self.know(received.sender);
                Ok(Progress::Born)
            }
            Report::Spawned { pid, first_id } => {
                self.born = Some(pid);
                let (_, [pidfd]) = received.with().map_err(channel_error)?;
                Ok(Progress::Ready(pidfd, first_id))
            }
            Report::NotSpawned { failure, pid } => {
                self.born = pid;
                Err(failure.into())
            }
            // Its first act failed, before it could say that it is born.
            Report::Failed(failure) => {
                self.know(received.sender);
                Err(failure.into())
            }
            _ => Err(ProtocolError::OutOfOrder { waiting_for: "a child's birth" }.into()),
        }
    }

    /// Remembers a child that nobody has reported yet.
    fn know(&mut self, pid: Option<i32>) {
        self.born = pid;
        // A handler of SIGCHLD may reap any child, and its pid be another process's soon: from here on only this one is meant.
        self.pidfd = pid.and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    }

    pub(super) fn into_newborn(self, pidfd: OwnedFd) -> Newborn {
        let pid = self.born.unwrap_or_default();
        let owner = std::process::id();
        Newborn { pid, pidfd: Some(pidfd), private: self.private, its_end: None, owner }
    }

    /// Kills and reaps the child, if there is one.
    pub(super) fn end(&mut self) {
        if let Some(pid) = self.born.take() {
            kill_and_reap(pid, self.pidfd.as_ref());
        }
    }

    /// Does so if it turns out within some seconds whether there is one. `true`: it did, and it is done.
    pub(super) fn end_within(&mut self, seconds: u64) -> bool {
        while self.born.is_none() && readable_within(self.private.as_fd(), seconds) {
            match self.read() {
                Ok(Progress::Born) => {}
                Ok(Progress::NoChild) => return true,
                Ok(Progress::Ready(..)) | Err(_) => break,
            }
        }
        let is_known = self.born.is_some();
        self.end();
        is_known
    }
}

/// A child whose sandbox is not complete: dropped, it is killed and reaped.
#[derive(Debug)]
pub(super) struct Newborn {
    pub(super) pid: i32,
    /// `None` once it is released.
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) private: Channel,
    /// The other end of that, where an order may have to be taken back.
    pub(super) its_end: Option<Channel>,
    /// A process that was forked off the caller has a copy of this, and nothing to do with the child.
    owner: u32,
}

impl Newborn {
    pub(super) fn enter(&self, orders: Orders, sent: &[OwnedFd]) -> Result<(), Error> {
        let sent: Vec<_> = sent.iter().map(AsFd::as_fd).collect();
        self.order(&Order::Enter(orders), &sent)
    }

    pub(super) fn run(&self, descriptors: &ChildDescriptors) -> Result<(), Error> {
        self.order(&Order::Run, &descriptors.all())
    }

    fn order(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.private.send(order, descriptors) {
            // A child that has died meanwhile is noticed where its report is awaited, or by its user.
            Ok(()) | Err(ChannelError::Io(Errno::PIPE | Errno::CONNRESET)) => Ok(()),
            Err(error) => Err(channel_error(error)),
        }
    }

    pub(super) fn await_entered(&self, interrupt: Interrupt<'_>) -> Result<Vec<(Layer, u32)>, Error> {
        let private = &self.private;
        loop {
            wait_for([private.as_fd()], interrupt)?;
            match private.recv::<Report>().map_err(channel_error)?.map(|received| received.message) {
                Some(Report::Entered { layers }) => return Ok(layers),
                Some(Report::Failed(failure)) => return Err(failure.into()),
                Some(Report::Born) => {}
                Some(_) => {
                    return Err(ProtocolError::OutOfOrder { waiting_for: "the child's sandbox" }.into());
                }
                None => return Err(Failure::new(Layer::Namespaces, Step::ChildLost, libc::ECHILD).into()),
            }
        }
    }

    pub(super) fn duplicate_pidfd(&self) -> Result<OwnedFd, Error> {
        let pidfd = self.pidfd.as_ref().ok_or(Error::Closed)?;
        rustix::io::fcntl_dupfd_cloexec(pidfd, 3).map_err(Error::io("dup"))
    }

    /// The child, complete: from here on it lives until the caller or itself ends it.
    pub(super) fn release(mut self) -> Result<(i32, OwnedFd), Error> {
        Ok((self.pid, self.pidfd.take().ok_or(Error::Closed)?))
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.as_ref().filter(|_| self.owner == std::process::id()) {
            kill_and_reap(self.pid, Some(pidfd));
        }
    }
}

/// Ends a child that no user has seen. By number only where the caller had no descriptor left for a pidfd.
fn kill_and_reap(pid: i32, pidfd: Option<&OwnedFd>) {
    let Some(pidfd) = pidfd else {
        kill_unreaped(pid);
        reap_unreaped(pid);
        return;
    };
    // One that has ended is only to be reaped.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    while matches!(wait_pidfd(pidfd, 0), Err(Errno::INTR)) {}
}
