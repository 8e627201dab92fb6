//! Layer `setuid`: real, effective and saved uid and gid 1000. See setresuid(2).

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};

use crate::config::CHILD_ID;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;

/// Becomes an ordinary user. The gid first: without uid 0 it could not change any more.
///
/// # Errors
///
/// What the kernel refused.
pub fn enter() -> Result<(), Failure> {
    let gid = Gid::from_raw(CHILD_ID);
    set_thread_res_gid(gid, gid, gid).fail_at(Layer::Setuid, Step::SetGid)?;
    let uid = Uid::from_raw(CHILD_ID);
    set_thread_res_uid(uid, uid, uid).fail_at(Layer::Setuid, Step::SetUid)?;
    // A change of uid makes root the owner of /proc/self, which the child must be able to read. No other process of this uid
    // exists outside the child's own user namespace, so being dumpable opens nothing.
    set_dumpable_behavior(DumpableBehavior::Dumpable).fail_at(Layer::Setuid, Step::SetDumpable)
}
