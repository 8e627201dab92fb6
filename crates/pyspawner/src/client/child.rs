//! A child, as its caller holds it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::error::Error;
use crate::layer::Layer;
use crate::sys::wait::wait_pidfd;

use super::Interrupt;
use super::uppers::release_ended;

/// A running child. Dropping it leaves the child running.
#[derive(Debug)]
pub struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) layers: Vec<(Layer, String)>,
    pub(super) layer_times: Vec<(Layer, u32)>,
    /// Its directory in `/proc`, open so that Landlock's rule for it lasts; only of a child without namespaces.
    pub(super) _proc: Option<OwnedFd>,
}

/// The caller's ends of a child's three pipes, all close-on-exec.
#[derive(Debug)]
pub struct Pipes {
    /// To write.
    pub stdin: OwnedFd,
    /// To read.
    pub stdout: OwnedFd,
    /// To read.
    pub stderr: OwnedFd,
}

impl Child {
    /// The child's pid as the caller sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The layers that are on, in order, each with a few words on what it does here.
    #[must_use]
    pub fn layers(&self) -> &[(Layer, String)] {
        &self.layers
    }

    /// The layers that are on, each with the nanoseconds that the child took to apply it.
    #[must_use]
    pub fn layer_times(&self) -> &[(Layer, u32)] {
        &self.layer_times
    }

    /// SIGKILL, to this child and never to another process that got its pid.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the child has been reaped.
    pub fn kill(&self) -> Result<(), Error> {
        pidfd_send_signal(&self.pidfd, Signal::KILL).map_err(Error::io("kill"))
    }

    /// As waitpid(2) on the child's pid: `(pid, status)`, or `(0, 0)` when `WNOHANG` finds it running.
    ///
    /// # Errors
    ///
    /// `ECHILD` when the child has been reaped already; whatever `interrupt` answers when a signal comes.
    pub fn wait(&self, options: i32, interrupt: Interrupt<'_>) -> Result<(i32, i32), Error> {
        loop {
            match wait_pidfd(self.pidfd.as_fd(), options) {
                Ok(ended) => {
                    release_ended();
                    return Ok(ended.unwrap_or((0, 0)));
                }
                Err(Errno::INTR) => interrupt()?,
                Err(errno) => return Err(Error::io("wait")(errno)),
            }
        }
    }
}
