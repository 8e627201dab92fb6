//! The host's own view, for children without namespaces.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{chdir, getcwd, geteuid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::config::CHILD_ID;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sandbox::id_map::{IdRanges, RANGE};
use crate::sandbox::landlock::FACTS;

use super::ZygoteError;
use super::template::{Needs, visible};

/// What a child without namespaces goes back to.
#[derive(Debug)]
pub(super) struct Host {
    /// The mount namespace in which the zygote began.
    pub(super) mounts: File,
    /// Its working directory there.
    pub(super) working_dir: CString,
    /// What may be read there.
    pub(super) visible: Vec<CString>,
    /// Open, so that Landlock's rules for them last.
    pub(super) _facts: Vec<OwnedFd>,
}

impl Host {
    /// As it is now, before the zygote leaves it.
    pub(super) fn new(needs: &Needs) -> Result<Self, ZygoteError> {
        let open = |fact: &CStr| openat(CWD, fact, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        Ok(Self {
            mounts: File::open("/proc/self/ns/mnt").map_err(ZygoteError::io("reading /proc"))?,
            working_dir: getcwd(Vec::new()).unwrap_or_else(|_| c"/".to_owned()),
            visible: visible(needs, geteuid().as_raw()),
            _facts: FACTS.into_iter().filter_map(|fact| open(fact).ok()).collect(),
        })
    }
}

/// Leaves the root that is for children with namespaces.
pub(super) fn go_back(mounts: &File, working_dir: &CStr) -> Result<(), Failure> {
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
        .fail_at(Layer::Mounts, Step::JoinMountNamespace)?;
    chdir(working_dir).or_else(|_| chdir("/")).fail_at(Layer::Mounts, Step::ChangeDirectory)
}

/// Which host user a child without namespaces becomes, of those in the range of its pid. What such a child leaves running keeps that user: the
/// next child with its pid is to be another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostUser(u32);

impl HostUser {
    pub(super) fn choose() -> Self {
        // Random, and needs no descriptor; above 0, which is the user of a child with namespaces.
        let random = RandomState::new().hash_one(0) % u64::from(RANGE - CHILD_ID - 1);
        Self(1 + u32::try_from(random).unwrap_or_default())
    }

    /// So that adding [`CHILD_ID`] gives the user.
    pub(super) fn first_id(self, ranges: &IdRanges, pid: u32) -> u32 {
        ranges.first_id(pid) + self.0
    }
}
