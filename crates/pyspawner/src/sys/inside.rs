//! `openat2(2)`, patiently.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// How often the kernel is asked again. Each time something else on the machine was renamed or mounted meanwhile.
const TRIES: usize = 1000;

/// Finds `path` below `directory`, without opening it. Where a path has `..` in it, the kernel answers `EAGAIN` when it cannot be sure that
/// the way did not change.
///
/// # Errors
///
/// What `openat2(2)` said.
pub(crate) fn find<P: Arg + Copy>(
    directory: impl AsFd,
    path: P,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    let mut found = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        found = openat2(&directory, path, flags, Mode::empty(), resolve);
        if !matches!(found, Err(Errno::AGAIN)) {
            break;
        }
    }
    found
}
