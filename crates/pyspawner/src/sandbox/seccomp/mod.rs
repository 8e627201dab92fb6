//! Layer `seccomp`: default-deny on system calls. `table.rs` says what each call may do, `filter.rs` turns that into a program.
//!
//! The wrong architecture (`int 0x80`, x32) kills. Privileged calls end the process with SIGSYS, and its standard error names the
//! call. Unknown and newer calls are `ENOSYS`. See seccomp(2).

pub mod filter;
pub mod table;

#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::{kernel::install_filter, sigsys};
use filter::Instruction;

static PROGRAM: OnceLock<Vec<Instruction>> = OnceLock::new();

/// Computes the filter, and the names for its last words: in the zygote, once.
pub fn plan() {
    PROGRAM.get_or_init(filter::program);
    sigsys::set_names(table::trapped_names());
}

/// Refuses what only namespaces make harmless: sockets, which would be the host's network, and System V's shared objects, which would be
/// the host's. One filter more, before the other: the stricter answer counts.
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn refuse_shared() -> Result<(), Failure> {
    let filter = filter::refusing(&table::shared(), table::number(libc::SYS_socketpair));
    install_filter(&filter).fail_at(Layer::Seccomp, Step::InstallFilter)
}

/// Installs the handler that names a blocked call, then the filter.
///
/// # Errors
///
/// What the kernel refused.
pub fn enter() -> Result<(), Failure> {
    sigsys::install().fail_at(Layer::Seccomp, Step::HandleSigsys)?;
    install_filter(PROGRAM.get_or_init(filter::program)).fail_at(Layer::Seccomp, Step::InstallFilter)
}
