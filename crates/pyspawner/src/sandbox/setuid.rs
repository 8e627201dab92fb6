//! Layer `setuid`: real, effective and saved uid and gid 1000. See setresuid(2).

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::config::CHILD_ID;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;

/// Becomes an ordinary user.
///
/// # Errors
///
/// What the kernel refused.
pub fn enter() -> Result<(), Failure> {
    become_user(CHILD_ID).fail_at(Layer::Setuid, Step::SetUid)
}

/// Becomes a user of the host that nobody else is, and is in no groups: without namespaces, the user of this number is the same
/// everywhere.
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn enter_host_user(id: u32) -> Result<(), Failure> {
    let none: [Gid; 0] = [];
    set_thread_groups(&none).fail_at(Layer::Setuid, Step::SetGroups)?;
    become_user(id).fail_at(Layer::Setuid, Step::SetUid)
}

/// Takes a uid and the gid of the same number. The gid first: without uid 0 it could not change any more.
pub(super) fn become_user(id: u32) -> rustix::io::Result<()> {
    let gid = Gid::from_raw(id);
    set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(id);
    set_thread_res_uid(uid, uid, uid)?;
    // A change of uid makes root the owner of /proc/self, which the child must be able to read. No other process of this uid
    // exists outside the child's own user namespace, so being dumpable opens nothing.
    set_dumpable_behavior(DumpableBehavior::Dumpable)
}
