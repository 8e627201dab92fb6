//! A helper process of a Client: the zygote or its watchdog.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::{lock, readable_within};
use crate::error::Status;
use crate::sys::wait::wait_pidfd;

/// A child process of ours, by pidfd. Reaped once, whoever asks first.
#[derive(Debug)]
pub(super) struct Process {
    pid: i32,
    pidfd: OwnedFd,
    end: Mutex<End>,
}

/// What is known of a process's end.
#[derive(Clone, Copy, Debug)]
enum End {
    NotYet,
    /// `None`: somebody else reaped it, a SIGCHLD handler of the caller's for example.
    Reaped(Option<Status>),
}

impl Process {
    pub(super) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, end: Mutex::new(End::NotYet) }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Reaps it, waiting for its end. `None`: somebody else was faster.
    pub(super) fn reap(&self) -> Option<Status> {
        let mut end = lock(&self.end);
        if let End::Reaped(status) = *end {
            return status;
        }
        let status = loop {
            match wait_pidfd(&self.pidfd, 0) {
                Ok(Some(waited)) => break Some(Status(waited.status)),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => break None,
            }
        };
        *end = End::Reaped(status);
        status
    }

    /// SIGKILL, then reaps.
    pub(super) fn kill(&self) -> Option<Status> {
        // One that has ended is only to be reaped.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.reap()
    }

    /// Lets it end by itself for some seconds, then kills; reaps either way.
    pub(super) fn end_within(&self, seconds: u64) -> Option<Status> {
        if readable_within(self.pidfd.as_fd(), seconds) { self.reap() } else { self.kill() }
    }
}
