//! What a child holds for as long as it lives, whoever waits for it: locks of uppers, a cgroup, a place in a network.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::cgroup::Cgroup;
use super::lock;
use super::network::Place;
use super::uppers::Upper;

/// Of all Clients: children outlive theirs.
static LIVING: Mutex<Vec<Living>> = Mutex::new(Vec::new());

/// What one child holds.
#[derive(Debug)]
pub(super) struct Living {
    /// Its pidfd.
    pub(super) child: OwnedFd,
    pub(super) uppers: Vec<Upper>,
    pub(super) cgroup: Option<Arc<Cgroup>>,
    pub(super) network: Option<Place>,
}

impl Living {
    /// Keeps it until the child's end.
    pub(super) fn keep(self) {
        lock(&LIVING).push(self);
    }

    /// Whether its managed network is what a new one would be.
    pub(super) fn network_is_current(&self) -> bool {
        self.network.as_ref().is_none_or(Place::is_current)
    }

    fn is_released(&mut self) -> bool {
        self.uppers.clear();
        self.network = None;
        self.cgroup.as_ref().is_none_or(|cgroup| cgroup.is_removed())
    }
}

/// Frees what children had that have ended.
pub(super) fn release_ended() {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut living = lock(&LIVING);
    let mut polled: Vec<_> =
        living.iter().map(|living| PollFd::from_borrowed_fd(living.child.as_fd(), PollFlags::IN)).collect();
    if polled.is_empty() || poll(&mut polled, Some(&AT_ONCE)).is_err() {
        return;
    }
    let ended: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
    let mut ended = ended.into_iter();
    living.retain_mut(|living| !(ended.next().unwrap_or_default() && living.is_released()));
}
