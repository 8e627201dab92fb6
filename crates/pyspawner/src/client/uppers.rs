//! The uppers of living children's overlays: overlayfs gives no promise for one that two have at once. Each is locked by flock(2), which other
//! processes see too, until its child has ended.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

/// A locked upper. Dropped, it is free, even if a fork of this process has its descriptor too.
#[derive(Debug)]
pub(super) struct Upper(OwnedFd);

impl Upper {
    /// Locks a directory.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a living child has it.
    pub(super) fn lock(directory: &OwnedFd) -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(directory, ".", flags, Mode::empty())?;
        match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Errno::BUSY),
            locked => locked.map(|()| Self(opened)),
        }
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        // Closing alone frees it only if no fork has it.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
