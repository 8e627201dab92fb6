//! Files of a process in `/proc`, relative to `/proc` as it was opened, so that no mount over it can redirect us.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, Result, write};

/// Writes to the file `name` of the process `pid`.
///
/// # Errors
///
/// `ESRCH` when the process is dead: it has no directory any more.
pub(crate) fn write_file(proc: impl AsFd, pid: i32, name: &str, text: &str) -> Result<()> {
    let file = openat(proc, format!("{pid}/{name}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| if errno == Errno::NOENT { Errno::SRCH } else { errno })?;
    write(&file, text.as_bytes()).map(drop)
}
