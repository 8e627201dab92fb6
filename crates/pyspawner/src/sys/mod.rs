//! System calls that rustix does not have, and the only place with `unsafe`.
#![expect(unsafe_code, reason = "raw system calls; every block states why it is sound")]

pub(crate) mod arenas;
pub(crate) mod clone;
pub(crate) mod command;
pub(crate) mod descriptors;
pub(crate) mod flat_keyed;
pub(crate) mod inside;
pub(crate) mod kernel;
pub(crate) mod loaded;
pub(crate) mod mapping;
pub(crate) mod mount;
pub(crate) mod netlink;
pub(crate) mod proc_file;
pub(crate) mod sigsys;
pub(crate) mod title;
pub(crate) mod user_namespace;
pub(crate) mod wait;

use rustix::io::{Errno, Result};

/// The result of a raw system call, as rustix has it.
fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result == -1 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
