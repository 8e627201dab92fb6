//! Layer `namespaces`: user, pid, mount, net, ipc, uts and cgroup, in the one `clone3` that makes the child.
//!
//! See namespaces(7) and clone(2).

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::clone::{CHILD_NAMESPACES, Cloned, ThreadFacts, clone_plain_sibling, clone_sibling};

/// What `child.layers` says of this layer.
pub const DETAIL: &str = "user, pid, mount, net, ipc, uts, cgroup";

/// The same of a child without.
pub const WITHOUT: &str = "none: the child sees that other processes and files exist, though not what is in them, and what it has started \
                           outlives it";

/// Clones the calling zygote, into new namespaces or into those that it has; and into `cgroup`, or into its own.
///
/// # Safety
///
/// The calling process must be single-threaded.
///
/// # Errors
///
/// What clone3(2) said.
#[expect(unsafe_code, reason = "passes on the duty to be single-threaded")]
pub(crate) unsafe fn clone_child(
    thread: ThreadFacts,
    namespaces: bool,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Cloned, Failure> {
    // SAFETY: our caller vouches that the process is single-threaded.
    let cloned = unsafe {
        match (namespaces, cgroup) {
            (true, cgroup) => clone_sibling(CHILD_NAMESPACES, cgroup, thread),
            (false, Some(cgroup)) => clone_sibling(0, Some(cgroup), thread),
            (false, None) => clone_plain_sibling(thread),
        }
    };
    match (cloned, cgroup) {
        // Gone, full, divided further, or not the caller's any more.
        (
            Err(
                errno @ (Errno::NODEV
                | Errno::NOENT
                | Errno::BUSY
                | Errno::OPNOTSUPP
                | Errno::ACCESS
                | Errno::AGAIN),
            ),
            Some(_),
        ) => Err(errno).fail_at(Layer::Cgroup, Step::EnterCgroup),
        (cloned, _) => cloned.fail_at(Layer::Namespaces, Step::Clone),
    }
}
