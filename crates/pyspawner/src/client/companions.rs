//! Programs that a child needs, and that end with it: the watchdog runs them. See `zygote/companions.rs`.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;

use rustix::io::Errno;

use super::{CLOSE_PATIENCE, channel_error, lock, readable_within};
use crate::channel::Channel;
use crate::error::Error;
use crate::protocol::{Companion, ProtocolError};

/// The caller's line to the watchdog.
#[derive(Debug)]
pub(super) struct Companions {
    /// `None` once the Client is closed.
    line: Mutex<Option<Channel>>,
}

impl Companions {
    pub(super) fn new(line: Channel) -> Self {
        Self { line: Mutex::new(Some(line)) }
    }

    /// Runs a program until the child of this pidfd ends, or the caller, or [`end_all`](Self::end_all) is called.
    ///
    /// # Errors
    ///
    /// What the kernel said; `EPIPE` when the watchdog has died.
    pub(super) fn run(
        &self,
        program: &Path,
        arguments: Vec<String>,
        child: BorrowedFd<'_>,
        [stdout, stderr]: [OwnedFd; 2],
    ) -> Result<(), Error> {
        let program =
            CString::new(program.as_os_str().as_bytes()).map_err(|_| Error::io("exec")(Errno::INVAL))?;
        let line = lock(&self.line);
        let line = line.as_ref().ok_or(Error::Closed)?;
        line.send(&Companion::Run { program, arguments }, &[child, stdout.as_fd(), stderr.as_fd()])
            .map_err(channel_error)?;
        match line.recv::<Companion>().map_err(channel_error)?.map(|received| received.message) {
            Some(Companion::Running) => Ok(()),
            Some(Companion::Refused { errno }) => {
                Err(Error::io("running a program for a child")(Errno::from_raw_os_error(errno)))
            }
            Some(_) => Err(ProtocolError::OutOfOrder { waiting_for: "a program's start" }.into()),
            None => Err(Error::io("talking to the watchdog")(Errno::PIPE)),
        }
    }

    /// Ends them all; there will be no other.
    pub(super) fn end_all(&self) {
        let Some(line) = lock(&self.line).take() else { return };
        // A watchdog that has died has nobody left to ask.
        if line.send(&Companion::EndAll, &[]).is_ok() && readable_within(line.as_fd(), CLOSE_PATIENCE) {
            let _ = line.recv::<Companion>();
        }
    }

    /// Closes the line, in a process that was forked off the caller and has a copy of it.
    pub(super) fn forget(&self) {
        // A thread that held the lock at the fork does not exist here.
        if let Ok(mut line) = self.line.try_lock() {
            line.take();
        }
    }
}
