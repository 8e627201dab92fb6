//! Layer `no_new_privs`: execve(2) gives nothing that the process did not have, no setuid bit and no file capability.
//! See `PR_SET_NO_NEW_PRIVS` in prctl(2).

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;

/// Sets the bit, which nothing can clear.
///
/// # Errors
///
/// What prctl(2) said.
pub fn enter() -> Result<(), Failure> {
    rustix::thread::set_no_new_privs(true).fail_at(Layer::NoNewPrivs, Step::SetNoNewPrivs)
}
