//! `mount_setattr(2)`, which rustix does not have.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

use super::check;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
const AT_RECURSIVE: libc::c_int = 0x8000;

/// Whether a mount can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    Writable,
}

impl Access {
    fn flag(self) -> u64 {
        match self {
            Self::ReadOnly => MOUNT_ATTR_RDONLY,
            Self::Writable => 0,
        }
    }
}

/// Makes a tree of mounts nosuid, nodev and private, every mount in it, and read-only if asked to.
///
/// # Errors
///
/// `ENOSYS` before Linux 5.12; else what `mount_setattr(2)` said.
pub(crate) fn restrict_mount_tree(mount: impl AsFd, access: Access) -> Result<()> {
    let attributes = MountAttr {
        attr_set: access.flag() | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    set(mount.as_fd(), AT_RECURSIVE, &attributes)
}

/// Makes one mount read-only.
///
/// # Errors
///
/// As [`restrict_mount_tree`].
pub(crate) fn make_read_only(mount: impl AsFd) -> Result<()> {
    set(mount.as_fd(), 0, &MountAttr { attr_set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })
}

/// Maps the owners of the files of a tree of detached mounts as `user_namespace` does: inside it is what the disk has, outside what
/// processes see.
///
/// # Errors
///
/// `EINVAL` where a filesystem in the tree cannot do that; `ENOSYS` before Linux 5.12.
pub(crate) fn map_owners(mount: impl AsFd, user_namespace: BorrowedFd<'_>) -> Result<()> {
    // A descriptor is not negative.
    let userns_fd = u64::try_from(user_namespace.as_raw_fd()).map_err(|_| Errno::BADF)?;
    let attributes = MountAttr { attr_set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() };
    set(mount.as_fd(), AT_RECURSIVE, &attributes)
}

fn set(mount: BorrowedFd<'_>, flags: libc::c_int, attributes: &MountAttr) -> Result<()> {
    // SAFETY: an empty path with AT_EMPTY_PATH is a static string, and the struct is live and of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}
