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
use crate::protocol::{Companion, CpuBudget, ProtocolError};

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
        self.ask(&Companion::Run { program, arguments }, &[child, stdout.as_fd(), stderr.as_fd()])
    }

    fn ask(&self, request: &Companion, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let line = lock(&self.line);
        let line = line.as_ref().ok_or(Error::Closed)?;
        line.send(request, descriptors).map_err(channel_error)?;
        match line.recv::<Companion>().map_err(channel_error)?.map(|received| received.message) {
            Some(Companion::Running) => Ok(()),
            Some(Companion::Refused { errno }) => {
                Err(Error::io("asking the watchdog for something")(Errno::from_raw_os_error(errno)))
            }
            Some(_) => Err(ProtocolError::OutOfOrder { waiting_for: "the watchdog" }.into()),
            None => Err(Error::io("talking to the watchdog")(Errno::PIPE)),
        }
    }

    /// Kills a child when its CPU time is used up. `stat` is that of its cgroup.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub(super) fn limit(
        &self,
        budget: CpuBudget,
        child: BorrowedFd<'_>,
        stat: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let descriptors: Vec<_> = std::iter::once(child).chain(stat).collect();
        self.ask(&Companion::Limit { budget }, &descriptors)
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
