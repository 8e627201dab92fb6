//! Layer `session`: an own session without a controlling terminal, an empty session keyring, no core dumps.
//!
//! See setsid(2), session-keyring(7) and core(5). A terminal would take TIOCSTI, a shared keyring would give the caller's keys, and a
//! core dump would run the host's `core_pattern`.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::kernel::join_new_session_keyring;

/// Leaves the zygote's session and keyring.
///
/// # Errors
///
/// What the kernel refused. A kernel without keyrings has nothing to leave.
pub fn enter() -> Result<(), Failure> {
    setsid().fail_at(Layer::Session, Step::SetSession)?;
    match join_new_session_keyring() {
        Ok(()) | Err(Errno::NOSYS) => {}
        Err(errno) => return Err(errno).fail_at(Layer::Session, Step::JoinKeyring),
    }
    // At a limit of 0 the kernel writes no file, but still runs a core_pattern that is a program, as the host's root. At 1 it does
    // neither. Where the host has set a hard limit of 0 there is no way up to 1.
    let least = getrlimit(Resource::Core).maximum.map_or(1, |maximum| maximum.min(1));
    let limit = Rlimit { current: Some(least), maximum: Some(least) };
    setrlimit(Resource::Core, limit).fail_at(Layer::Session, Step::LimitCore)
}
