//! What every clone needs and no request changes.

use rustix::process::geteuid;

use crate::error::{Failure, Step};
use crate::sandbox::id_map::{IdRanges, drop_supplementary_groups};
use crate::sandbox::mounts::Template;
use crate::sandbox::seccomp;
use crate::sys::clone::ThreadFacts;

use super::ZygoteError;
use super::host::Host;
use super::template::{self, Needs, Rights};

/// What every clone needs and no request changes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) thread: ThreadFacts,
    pub(super) ranges: IdRanges,
    needs: Needs,
    pub(super) prepared: Prepared,
    pub(super) host: Host,
}

/// Whether what every child needs has been made.
#[derive(Debug)]
pub(super) enum Prepared {
    /// Nothing has been touched. What is in the way may go away while the zygote serves.
    NotYet,
    Yes(Template),
    /// It was begun, and cannot be begun again.
    Never(Failure),
}

impl Plan {
    pub(super) fn new(needs: Needs) -> Result<Self, ZygoteError> {
        seccomp::plan();
        let thread =
            ThreadFacts::of_this_thread().map_err(ZygoteError::io("asking for the thread id's address"))?;
        let ranges = IdRanges::new().map_err(ZygoteError::io("reading /proc"))?;
        let host = Host::new(&needs)?;
        let mut plan = Self { thread, ranges, needs, prepared: Prepared::NotYet, host };
        // Reported to whoever asks for a child.
        let _ = plan.prepare();
        Ok(plan)
    }

    pub(super) fn is_rootless(&self) -> bool {
        matches!(&self.prepared, Prepared::Yes(template) if template.rootless)
    }

    pub(super) fn prepare(&mut self) -> Result<(), Failure> {
        match self.prepared {
            Prepared::Yes(_) => return Ok(()),
            Prepared::Never(failure) => return Err(failure),
            Prepared::NotYet => {}
        }
        let prepared = if geteuid().is_root() {
            drop_supplementary_groups().and_then(|()| template::prepare(&self.needs, Rights::Root))
        } else {
            template::prepare(&self.needs, Rights::User)
        };
        let (state, result) = match prepared {
            Ok(template) => (Prepared::Yes(template), Ok(())),
            Err(
                failure @ Failure {
                    step: Step::DropGroups | Step::UnshareMounts | Step::UnshareUser | Step::CheckGroups,
                    ..
                },
            ) => (Prepared::NotYet, Err(failure)),
            Err(failure) => (Prepared::Never(failure), Err(failure)),
        };
        self.prepared = state;
        result
    }
}
