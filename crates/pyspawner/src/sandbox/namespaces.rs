//! Layer `namespaces`: user, pid, mount, net, ipc, uts and cgroup, in the one `clone3` that makes the child.
//!
//! See namespaces(7) and clone(2).

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::clone::{CHILD_NAMESPACES, Cloned, ThreadFacts, clone_plain_sibling, clone_sibling};

/// What `child.layers` says of this layer.
pub const DETAIL: &str = "user, pid, mount, net, ipc, uts, cgroup";

/// The same of a child without.
pub const WITHOUT: &str = "none: the child sees that other processes and files exist, though not what is in them, and what it has started \
                           outlives it";

/// Clones the calling zygote, into new namespaces or into those that it has.
///
/// # Safety
///
/// The calling process must be single-threaded.
///
/// # Errors
///
/// What clone3(2) said.
#[expect(unsafe_code, reason = "passes on the duty to be single-threaded")]
pub(crate) unsafe fn clone_child(thread: ThreadFacts, namespaces: bool) -> Result<Cloned, Failure> {
    // SAFETY: our caller vouches that the process is single-threaded.
    let cloned = unsafe {
        if namespaces { clone_sibling(CHILD_NAMESPACES, thread) } else { clone_plain_sibling(thread) }
    };
    cloned.fail_at(Layer::Namespaces, Step::Clone)
}
