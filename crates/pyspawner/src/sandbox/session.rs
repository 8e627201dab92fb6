//! Layer `session`: an own session without a controlling terminal, an empty session keyring, no core dumps, few queued signals.
//!
//! See setsid(2), session-keyring(7) and core(5). A terminal would take TIOCSTI, a shared keyring would give the caller's keys, and a
//! core dump would run the host's `core_pattern`.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::kernel::join_new_session_keyring;

/// Signals and timers that a child may have queued.
const PENDING_SIGNALS: u64 = 256;

/// Leaves the zygote's session and keyring.
///
/// # Errors
///
/// What the kernel refused. A kernel without keyrings has nothing to leave.
pub fn enter() -> Result<(), Failure> {
    match join_new_session_keyring() {
        Ok(()) | Err(Errno::NOSYS) => {}
        Err(errno) => return Err(errno).fail_at(Layer::Session, Step::JoinKeyring),
    }
    enter_without_keyring()
}

/// The same where a container's seccomp profile forbids keyctl(2): to the child too, which so cannot use the keyring that it has.
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn enter_without_keyring() -> Result<(), Failure> {
    setsid().fail_at(Layer::Session, Step::SetSession)?;
    // At a limit of 0 the kernel writes no file, but still runs a core_pattern that is a program, as the host's root. At 1 it does
    // neither. Where the host has set a hard limit of 0 there is no way up to 1.
    let least = getrlimit(Resource::Core).maximum.map_or(1, |maximum| maximum.min(1));
    let limit = Rlimit { current: Some(least), maximum: Some(least) };
    setrlimit(Resource::Core, limit).fail_at(Layer::Session, Step::LimitCore)?;
    // Queued signals and timers are charged to the owner of the user namespace too: the caller's user, who must not run out of them.
    let most = getrlimit(Resource::Sigpending)
        .maximum
        .map_or(PENDING_SIGNALS, |maximum| maximum.min(PENDING_SIGNALS));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Sigpending, limit).fail_at(Layer::Session, Step::LimitSignals)
}

/// Descriptors that a child has sent and nobody has received are charged to its user, who is the caller's if the caller is no root: it could
/// send none any more. A child can have no more of them on the way than its own limit.
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn leave_descriptors() -> Result<(), Failure> {
    let most = getrlimit(Resource::Nofile).current.map(|current| current / 4 * 3);
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .fail_at(Layer::Session, Step::LimitDescriptors)
}
