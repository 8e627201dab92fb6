//! Mounts for a caller that is no root.
//!
//! Such a caller may not copy a mount, so it sends what it has opened. Zygote and child may, in namespaces of their own, but only mounts of
//! those. So they find the same file once more, in a copy of the host's tree that the stage holds for this.

use std::hint::black_box;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, readlinkat};
use rustix::io::Errno;

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::inside;
use crate::sys::mount::{Access, restrict_mount_tree};

use super::{detached_copy, stage};

/// A detached mount, nosuid and nodev, of the very file that the caller has opened as `source`.
///
/// # Errors
///
/// `ESTALE`: it is not where it was when the caller opened it, or was mounted since the zygote started.
pub(crate) fn mount_of(source: &OwnedFd, access: Access) -> Result<OwnedFd, Failure> {
    let found = find(source).fail_at(Layer::Mounts, Step::FindSource)?;
    let copy = detached_copy(&found, Step::CloneSource)?;
    restrict_mount_tree(&copy, access).fail_at(Layer::Mounts, Step::SetMountAttributes)?;
    Ok(copy)
}

/// The kernel's longest path, and its NUL.
const PATH_ROOM: usize = 4097;

fn find(source: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let link = format!("{}/self/fd/{}", stage::PROC, source.as_fd().as_raw_fd());
    // Room for any path at once: what is left behind when a buffer grows could not be wiped.
    let path = readlinkat(CWD, link, Vec::with_capacity(PATH_ROOM))?;
    let open = openat(CWD, stage::OPEN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    // The path has no links in it: the kernel made it.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let found = inside::find(&open, path.as_c_str(), OFlags::empty(), resolve);
    // The zygote goes on: no later child is to read this in its memory.
    black_box(path.into_bytes().as_mut_slice()).fill(0);
    let found = found.map_err(|_| Errno::STALE)?;
    let (wanted, got) = (fstat(source)?, fstat(&found)?);
    if (wanted.st_dev, wanted.st_ino) == (got.st_dev, got.st_ino) { Ok(found) } else { Err(Errno::STALE) }
}
