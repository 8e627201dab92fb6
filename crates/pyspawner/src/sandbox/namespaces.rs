//! Layer `namespaces`: user, pid, mount, net, ipc, uts and cgroup, in the one `clone3` that makes the child.
//!
//! See namespaces(7) and clone(2).

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::clone::{CHILD_NAMESPACES, Cloned, ThreadFacts, clone_sibling};

/// What `child.layers` says of this layer.
pub const DETAIL: &str = "user, pid, mount, net, ipc, uts, cgroup";

/// Clones the calling zygote into new namespaces.
///
/// # Safety
///
/// The calling process must be single-threaded.
///
/// # Errors
///
/// What clone3(2) said.
#[expect(unsafe_code, reason = "passes on the duty to be single-threaded")]
pub(crate) unsafe fn clone_child(thread: ThreadFacts) -> Result<Cloned, Failure> {
    // SAFETY: our caller vouches that the process is single-threaded.
    unsafe { clone_sibling(CHILD_NAMESPACES, thread) }.fail_at(Layer::Namespaces, Step::Clone)
}
