//! A zygote that is a clone of another one.

use std::os::fd::AsFd;
use std::path::Path;

use super::spawn::{ABANDON_PATIENCE, DEATH_PATIENCE};
use super::start::{CallersDescriptors, Starting, caller};
use super::{Client, Interrupt, lock, readable_within};
use crate::channel::Channel;
use crate::error::{Error, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{Request, Start};

/// What a clone is to do that its zygote does not.
#[derive(Clone, Debug)]
pub struct DeriveOptions {
    /// `package.module.function`.
    pub child_main: String,
    /// Modules to import, in order, beside those that are there.
    pub preload_imports: Vec<String>,
    /// As [`StartOptions`](super::StartOptions) has it.
    pub warm_children: usize,
    /// Likewise.
    pub warm_up: Option<String>,
}

impl Client {
    /// Clones the zygote, has the clone import what it lacks, and waits until it serves. The two share memory, and nothing else: either may
    /// end first.
    ///
    /// # Errors
    ///
    /// As [`Client::start`]; [`Error::ZygoteDied`] when there is nothing to be cloned. No process is left then.
    pub fn derive(&self, options: DeriveOptions, interrupt: Interrupt<'_>) -> Result<Self, Error> {
        self.check_owner()?;
        let callers = CallersDescriptors::open()?;
        let (ours, theirs) = Channel::pair().map_err(Error::io("socketpair"))?;
        self.ask(Request::Derive, &[theirs.as_fd()], interrupt)?;
        drop(theirs);
        let mut pending = PendingClone { starting: Some(Starting::new(ours)) };
        let mut starting = match pending.await_clone(interrupt) {
            Ok(Some(starting)) => starting,
            Ok(None) => return Err(self.why_there_is_no_clone()),
            Err(error) => {
                // The request cannot be taken back.
                if !pending.end_within(ABANDON_PATIENCE) {
                    lock(&self.abandoned_clones).push(pending);
                }
                return Err(error);
            }
        };
        // The zygote answers in order: what was asked for and given up before is known now.
        self.reap_abandoned();
        let DeriveOptions { child_main, preload_imports, warm_children, warm_up } = options;
        let (caller, memory_image) = (caller(), self.memory_image);
        let start = Start { caller, child_main, preload_imports, sys_path: None, memory_image, warm_up };
        let started = starting.handshake(Path::new("the zygote"), start, &callers, interrupt);
        starting.finish(started, warm_children)
    }

    fn why_there_is_no_clone(&self) -> Error {
        // A zygote that dies loses its descriptors a little before its pidfd tells.
        if readable_within(self.zygote.pidfd(), DEATH_PATIENCE) {
            return self.died();
        }
        Failure::new(Layer::Namespaces, Step::ZygoteRefused, libc::EIO).into()
    }
}

/// A clone that was asked for and is not known yet.
#[derive(Debug)]
pub(super) struct PendingClone {
    starting: Option<Starting>,
}

impl PendingClone {
    /// The clone, which waits for its start. `None`: there is none, and will be none.
    fn await_clone(&mut self, interrupt: Interrupt<'_>) -> Result<Option<Starting>, Error> {
        let Some(starting) = &mut self.starting else { return Ok(None) };
        let is_there = starting.await_clone(interrupt)?;
        Ok(self.starting.take().filter(|_| is_there))
    }

    /// Ends it, if it turns out within some seconds whether it is there. `true`: it did, and nothing is left.
    pub(super) fn end_within(&mut self, seconds: u64) -> bool {
        if self.starting.as_ref().is_some_and(|starting| !starting.is_heard_within(seconds)) {
            return false;
        }
        let never: Interrupt<'_> = &|| Ok(());
        if let Ok(Some(starting)) = self.await_clone(never) {
            starting.end();
        }
        true
    }
}
