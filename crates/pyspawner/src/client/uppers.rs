//! The uppers of living children's overlays: overlayfs gives no promise for one that two have at once. Each is locked by flock(2), which other
//! processes see too, until its child has ended.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use super::{lock, readable_within};

/// Of all Clients: children outlive theirs.
static IN_USE: Mutex<Vec<InUse>> = Mutex::new(Vec::new());

struct InUse {
    child: OwnedFd,
    _uppers: Vec<Upper>,
}

/// A locked upper. Dropped, it is free, even if a fork of this process has its descriptor too.
pub(super) struct Upper(OwnedFd);

impl Upper {
    /// Locks a directory.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a living child has it.
    pub(super) fn lock(directory: &OwnedFd) -> rustix::io::Result<Self> {
        release_ended();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(directory, ".", flags, Mode::empty())?;
        match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Errno::BUSY),
            locked => locked.map(|()| Self(opened)),
        }
    }

    /// Keeps `uppers` locked while the process behind the pidfd `child` lives.
    pub(super) fn keep(uppers: Vec<Self>, child: OwnedFd) {
        lock(&IN_USE).push(InUse { child, _uppers: uppers });
    }
}

/// Frees what children had that have ended.
pub(super) fn release_ended() {
    lock(&IN_USE).retain(|in_use| !readable_within(in_use.child.as_fd(), 0));
}

impl Drop for Upper {
    fn drop(&mut self) {
        // Closing alone frees it only if no fork has it.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
