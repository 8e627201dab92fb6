//! Programs that the watchdog runs for the caller's children: each ends with its child.
//!
//! They are the watchdog's own children, so that it can reap them: a caller that never waits for anything has no zombies, and its handler of
//! SIGCHLD hears of nobody whom it has not started.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Command, Stdio};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::channel::Received;
use crate::protocol;
use crate::sys::command::detach;

/// Tokens from here on are of companions: an even one says that the child has ended, an odd one that the companion itself has.
pub(super) const TOKENS: u64 = 1 << 63;

/// A program that runs.
struct Companion {
    /// The pidfd of the child; `None` when it has ended.
    child: Option<OwnedFd>,
    pidfd: OwnedFd,
    process: Child,
}

/// All that run.
pub(super) struct Companions<'a> {
    epoll: &'a OwnedFd,
    next: u64,
    running: BTreeMap<u64, Companion>,
}

impl<'a> Companions<'a> {
    /// None yet; of each end that matters, `epoll` will tell.
    pub(super) fn new(epoll: &'a OwnedFd) -> Self {
        Self { epoll, next: TOKENS, running: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Does what the caller asks.
    pub(super) fn obey(&mut self, received: Received<protocol::Companion>) -> protocol::Companion {
        match received.message {
            protocol::Companion::EndAll => {
                self.end_all();
                protocol::Companion::Ended
            }
            protocol::Companion::Run { program, arguments } => {
                let descriptors = <[OwnedFd; 3]>::try_from(received.descriptors).map_err(|_| Errno::MFILE);
                match descriptors.and_then(|descriptors| self.run(program, &arguments, descriptors)) {
                    Ok(()) => protocol::Companion::Running,
                    Err(errno) => protocol::Companion::Refused { errno: errno.raw_os_error() },
                }
            }
            _ => protocol::Companion::Refused { errno: Errno::PROTO.raw_os_error() },
        }
    }

    /// Handles the end of a child, or of a companion.
    pub(super) fn handle(&mut self, token: u64) {
        let Some(companion) = self.running.get_mut(&(token & !1)) else { return };
        // It may have been the companion that ended first.
        forget(self.epoll, companion.child.take());
        // One that has ended is only to be reaped.
        let _ = companion.process.kill();
        if token & 1 == 1 {
            self.remove(token & !1);
        }
    }

    /// SIGKILL for all, when there is nobody left to reap for.
    pub(super) fn kill_all(&mut self) {
        for companion in self.running.values_mut() {
            let _ = companion.process.kill();
        }
    }

    fn end_all(&mut self) {
        self.kill_all();
        while let Some(token) = self.running.keys().next().copied() {
            self.remove(token);
        }
    }

    fn remove(&mut self, token: u64) {
        if let Some(mut companion) = self.running.remove(&token) {
            let _ = companion.process.wait();
            forget(self.epoll, companion.child);
            forget(self.epoll, Some(companion.pidfd));
        }
    }

    fn run(
        &mut self,
        program: CString,
        arguments: &[String],
        [child, stdout, stderr]: [OwnedFd; 3],
    ) -> Result<()> {
        let mut command = Command::new(OsString::from_vec(program.into_bytes()));
        command.args(arguments).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        detach(&mut command);
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let mut process = command.spawn().map_err(errno)?;
        let watched = watch(self.epoll, self.next, &child, &process);
        match watched {
            Ok(pidfd) => {
                self.running.insert(self.next, Companion { child: Some(child), pidfd, process });
                self.next += 2;
                Ok(())
            }
            Err(errno) => {
                let _ = process.kill();
                let _ = process.wait();
                forget(self.epoll, Some(child));
                Err(errno)
            }
        }
    }
}

/// Has `epoll` tell of both ends; the pidfd of the companion.
fn watch(epoll: &OwnedFd, token: u64, child: &OwnedFd, process: &Child) -> Result<OwnedFd> {
    let add = |descriptor: BorrowedFd<'_>, token| {
        epoll::add(epoll, descriptor, EventData::new_u64(token), EventFlags::IN)
    };
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    add(child.as_fd(), token)?;
    add(pidfd.as_fd(), token + 1)?;
    Ok(pidfd)
}

/// To close a pidfd is not enough: others may have it too, and as long as they do, epoll would tell of it.
fn forget(epoll: &OwnedFd, pidfd: Option<OwnedFd>) {
    if let Some(pidfd) = pidfd {
        let _ = epoll::delete(epoll, pidfd);
    }
}
