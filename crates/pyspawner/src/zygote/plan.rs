//! What every clone needs and no request changes.

use crate::error::{Failure, Step};
use crate::sandbox::id_map::{IdRanges, drop_supplementary_groups};
use crate::sandbox::mounts::Template;
use crate::sandbox::seccomp;
use crate::sys::clone::ThreadFacts;

use super::ZygoteError;
use super::host::{Host, go_back};
use super::template::{self, Needs, Rights, leave_stage};

/// What every clone needs and no request changes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) thread: ThreadFacts,
    pub(super) ranges: IdRanges,
    needs: Needs,
    rights: Rights,
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
    pub(super) fn new(needs: Needs, rights: Rights) -> Result<Self, ZygoteError> {
        seccomp::plan();
        let thread =
            ThreadFacts::of_this_thread().map_err(ZygoteError::io("asking for the thread id's address"))?;
        let ranges = IdRanges::new().map_err(ZygoteError::io("reading /proc"))?;
        let host = Host::new(&needs)?;
        let mut plan = Self { thread, ranges, needs, rights, prepared: Prepared::NotYet, host };
        // Reported to whoever asks for a child.
        let _ = plan.prepare();
        Ok(plan)
    }

    pub(super) fn is_rootless(&self) -> bool {
        matches!(&self.prepared, Prepared::Yes(template) if template.rootless)
    }

    /// Undoes for this process, a clone of the zygote, what the zygote has done to see what its children see. What it may do from here on.
    ///
    /// # Errors
    ///
    /// What the kernel said; or what has stopped the zygote halfway.
    pub(super) fn leave(self) -> Result<Rights, Failure> {
        let Host { mounts, working_dir, .. } = &self.host;
        match self.prepared {
            Prepared::NotYet => Ok(self.rights),
            Prepared::Yes(template) if template.rootless => {
                leave_stage(working_dir).map(|()| Rights::UserWithin)
            }
            Prepared::Never(failure) if self.rights != Rights::Root => Err(failure),
            Prepared::Yes(_) | Prepared::Never(_) => go_back(mounts, working_dir).map(|()| Rights::Root),
        }
    }

    pub(super) fn prepare(&mut self) -> Result<(), Failure> {
        match self.prepared {
            Prepared::Yes(_) => return Ok(()),
            Prepared::Never(failure) => return Err(failure),
            Prepared::NotYet => {}
        }
        let groups = if self.rights == Rights::Root { drop_supplementary_groups() } else { Ok(()) };
        let prepared = groups.and_then(|()| template::prepare(&self.needs, self.rights));
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
