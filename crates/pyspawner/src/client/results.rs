//! Reading what a child wrote: it may have left links, pipes and devices where its caller expects files.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat};
use rustix::io::Errno;

use crate::sys::inside;

/// Not out of the directory, not through a link of any kind, not onto another filesystem.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens a directory for [`open_beneath`], following links to it.
///
/// # Errors
///
/// What open(2) said.
pub fn open_directory(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, directory, flags, Mode::empty())?)
}

/// Opens the regular file `path` below `directory` for reading. See openat2(2).
///
/// # Errors
///
/// `ELOOP`: a symbolic link on the way. `EXDEV`: `path` is absolute, leads out by `..`, or to another filesystem. `EISDIR`: a directory.
/// `EMLINK`: the file has a second name, so it may be one that was there before. `EINVAL`: a pipe, a socket or a device.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    // Not opened yet, only found: to open a device may do something.
    let found = inside::find(directory, path, OFlags::empty(), BENEATH)?;
    let stat = rustix::fs::fstat(&found)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_nlink > 1 => return Err(Errno::MLINK.into()),
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR.into()),
        FileType::Symlink => return Err(Errno::LOOP.into()),
        _ => return Err(Errno::INVAL.into()),
    }
    // The very file that was found, whatever its name means by now. Not waiting for a lease that somebody holds on it; fcntl(2).
    let same = format!("/proc/self/fd/{}", found.as_fd().as_raw_fd());
    Ok(openat(
        CWD,
        same,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?
    .into())
}
