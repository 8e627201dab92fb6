//! Covers: a tmpfs over a directory, and in it read-only binds of just what is needed of it. Nothing beside them is visible.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sandbox::mounts::{attach_locked, detached_copy, mountinfo};

use super::needs::Item;

/// Mounts a tmpfs over `directory` that shows `items` and nothing else.
pub(super) fn cover<'a>(directory: &Path, items: impl Iterator<Item = &'a Item>) -> Result<(), Failure> {
    // The binds are copied first: the tmpfs hides their sources.
    let mut binds: Vec<(&Path, OwnedFd)> = Vec::new();
    let mut links = Vec::new();
    for item in items {
        match item {
            Item::Link { path, target } => links.push((path, target)),
            Item::Bind { path } if binds.iter().any(|(above, _)| path.starts_with(above)) => {}
            Item::Bind { path } => {
                let source = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .fail_at(Layer::Mounts, Step::OpenTree)?;
                binds.push((path, detached_copy(&source, Step::OpenTree)?));
            }
        }
    }
    prune(directory);
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", directory, "tmpfs", flags, c"mode=0755,size=1m")
        .fail_at(Layer::Mounts, Step::MountTmpfs)?;
    for (path, target) in links {
        if !binds.iter().any(|(above, _)| path.starts_with(above)) {
            make_parent(path)?;
            symlink(target, path).fail_at(Layer::Mounts, Step::CreateMountPoint)?;
        }
    }
    for (path, source) in &binds {
        make_mount_point(path, source)?;
        attach_locked(source, path)?;
    }
    mount_remount(directory, flags | MountFlags::BIND | MountFlags::RDONLY, c"")
        .fail_at(Layer::Mounts, Step::SetMountAttributes)
}

/// Unmounts what is mounted at `directory` and below: nobody would see it, and every clone would copy it.
pub(super) fn prune(directory: &Path) {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    for mount in mountinfo::all(&table).filter(|mount| mount.path.starts_with(directory)) {
        // One that is locked here stays, out of sight.
        let _ = unmount(&mount.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// Views of the kernel's own: of its processes, devices and settings. Children get theirs in the usual places, or none.
const KERNELS_OWN: [&str; 17] = [
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "mqueue",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// Removes these from wherever a host may have them too, a chroot for example.
pub(super) fn remove_kernels_own() -> Result<(), Failure> {
    for path in kernels_own().fail_at(Layer::Mounts, Step::RemoveKernelsOwn)? {
        let removed = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        // One that is locked here can be covered; one below another has gone with it.
        if removed == Err(Errno::INVAL) && path.is_dir() {
            cover(&path, std::iter::empty())?;
        }
    }
    Ok(())
}

/// Where they are, but for the usual places.
pub(super) fn kernels_own() -> io::Result<Vec<PathBuf>> {
    let usual = ["/proc", "/sys", "/dev"];
    let table = fs::read("/proc/self/mountinfo")?;
    let elsewhere = mountinfo::all(&table).filter(|mount| {
        KERNELS_OWN.iter().any(|kind| kind.as_bytes() == mount.kind)
            && !usual.iter().any(|usual| mount.path.starts_with(usual))
    });
    Ok(elsewhere.map(|mount| mount.path).collect())
}

fn make_mount_point(path: &Path, source: &OwnedFd) -> Result<(), Failure> {
    let is_directory = rustix::fs::fstat(source)
        .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
        .fail_at(Layer::Mounts, Step::OpenTree)?;
    if is_directory {
        return make_directories(path);
    }
    make_parent(path)?;
    fs::write(path, b"").fail_at(Layer::Mounts, Step::CreateMountPoint)
}

fn make_parent(path: &Path) -> Result<(), Failure> {
    path.parent().map_or(Ok(()), make_directories)
}

fn make_directories(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).fail_at(Layer::Mounts, Step::CreateMountPoint)
}
