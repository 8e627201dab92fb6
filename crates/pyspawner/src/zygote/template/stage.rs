//! Building the stage (`sandbox/mounts/stage.rs`), and moving to it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsmount, fsopen, mount, mount_remount, move_mount, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};
use rustix::thread::UnshareFlags;

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sandbox::mounts::{attach_locked, detached_copy, stage};

use super::cover::prune;
use super::unshare;

/// Where the zygote's root is put together: a directory that every system has, and of which children get another one anyway.
const SITE: &str = "/dev";

/// The devices that children have, all of major number 1, with their minor numbers.
const DEVICES: [(&str, u32); 5] = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];

/// In every `/dev`; the names say where they lead to.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// A detached copy of all that is mounted at `/`.
pub(super) fn copy_of_host() -> Result<OwnedFd, Failure> {
    let host = open_path(Path::new("/")).fail_at(Layer::Mounts, Step::OpenTree)?;
    detached_copy(&host, Step::OpenTree)
}

/// Makes a copy of all that is mounted at `/` the zygote's root, with the stage in it. With `open`, the host's tree as it was before anything
/// was covered, if the stage is to hold it.
pub(super) fn build_and_enter(open: Option<&OwnedFd>) -> Result<(), Failure> {
    let devices = DEVICES.map(|(name, minor)| (name, minor, open_path(&Path::new("/dev").join(name))));
    let proc = whole_proc()?;
    attach_locked(&copy_of_host()?, Path::new(SITE))?;
    let dev = Path::new(SITE).join("dev");
    let place = Path::new(SITE).join(stage::PLACE.trim_start_matches('/'));
    // What the copy has there is the host's own.
    for directory in [&dev, &place] {
        prune(directory);
    }
    make_devices(&dev, &devices)?;
    build(&place, &proc, open)?;
    let stage = open_path(&place).fail_at(Layer::Mounts, Step::OpenTree)?;
    cover_with_nothing(&place)?;

    chdir(SITE).fail_at(Layer::Mounts, Step::ChangeDirectory)?;
    pivot_root(".", ".").fail_at(Layer::Mounts, Step::PivotRoot)?;
    unmount(".", UnmountFlags::DETACH).fail_at(Layer::Mounts, Step::UnmountOldRoot)?;
    fchdir(stage).fail_at(Layer::Mounts, Step::ChangeDirectory)
}

/// In a zygote's clone that is to become another zygote, without root: changes to the host's tree as the stage holds it, in a mount namespace
/// of the clone's own.
pub(in crate::zygote) fn leave(working_dir: &CStr) -> Result<(), Failure> {
    unshare(UnshareFlags::NEWNS).fail_at(Layer::Mounts, Step::UnshareMounts)?;
    chdir(stage::OPEN).fail_at(Layer::Mounts, Step::ChangeDirectory)?;
    pivot_root(".", ".").fail_at(Layer::Mounts, Step::PivotRoot)?;
    unmount(".", UnmountFlags::DETACH).fail_at(Layer::Mounts, Step::UnmountOldRoot)?;
    chdir(working_dir).or_else(|_| chdir("/")).fail_at(Layer::Mounts, Step::ChangeDirectory)
}

/// Builds the stage at `place`.
fn build(place: &Path, proc: &OwnedFd, open: Option<&OwnedFd>) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let made = Step::CreateMountPoint;
    tmpfs(place, flags)?;
    let directories =
        [stage::PROC, stage::OPEN, stage::ROOT, stage::SCRATCH, stage::LOWER, stage::UPPER, stage::MASK];
    let trees = (0..stage::TREES).map(|number| stage::tree_path(number, true));
    for name in directories.into_iter().map(str::to_owned).chain(trees) {
        fs::create_dir(place.join(name)).fail_at(Layer::Mounts, made)?;
    }
    for number in 0..stage::TREES {
        File::create(place.join(stage::tree_path(number, false))).fail_at(Layer::Mounts, made)?;
    }
    seal(place, flags)?;
    make_masks(place)?;
    for (name, mount) in [(stage::PROC, Some(proc)), (stage::OPEN, open)] {
        let Some(mount) = mount else { continue };
        move_mount(mount, "", CWD, place.join(name), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .fail_at(Layer::Mounts, Step::MoveMount)?;
    }
    Ok(())
}

fn open_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// A new `/proc` of the zygote's own pid namespace; where that is not allowed, the one that is there. A container's own is mostly masked,
/// and with that one in sight a child may not mount its own.
fn whole_proc() -> Result<OwnedFd, Failure> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let new = || {
        let filesystem = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&filesystem)?;
        fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    match new() {
        Err(Errno::PERM) => {
            let old = open_path(Path::new("/proc")).fail_at(Layer::Mounts, Step::OpenTree)?;
            detached_copy(&old, Step::OpenTree)
        }
        made => made.fail_at(Layer::Mounts, Step::MountProc),
    }
}

fn tmpfs(directory: &Path, flags: MountFlags) -> Result<(), Failure> {
    mount("tmpfs", directory, "tmpfs", flags, c"mode=0755,size=1m").fail_at(Layer::Mounts, Step::MountTmpfs)
}

fn seal(directory: &Path, flags: MountFlags) -> Result<(), Failure> {
    mount_remount(directory, flags | MountFlags::BIND | MountFlags::RDONLY, c"")
        .fail_at(Layer::Mounts, Step::SetMountAttributes)
}

fn cover_with_nothing(directory: &Path) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    tmpfs(directory, flags)?;
    seal(directory, flags)
}

fn make_masks(place: &Path) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let made = Step::CreateMountPoint;
    tmpfs(&place.join(stage::MASK), flags)?;
    File::create(place.join(stage::MASK_FILE)).fail_at(Layer::Mounts, made)?;
    fs::create_dir(place.join(stage::MASK_DIRECTORY)).fail_at(Layer::Mounts, made)?;
    for masked in [stage::MASK_FILE, stage::MASK_DIRECTORY] {
        fs::set_permissions(place.join(masked), fs::Permissions::from_mode(0o000))
            .fail_at(Layer::Mounts, made)?;
    }
    seal(&place.join(stage::MASK), flags)
}

fn make_devices(
    directory: &Path,
    devices: &[(&str, u32, rustix::io::Result<OwnedFd>)],
) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    tmpfs(directory, flags)?;
    let made = Step::CreateMountPoint;
    for (name, minor, existing) in devices {
        let path = directory.join(name);
        match mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, *minor)) {
            Ok(()) => {}
            // Not for us to make: so the host's.
            Err(Errno::PERM) => {
                let existing =
                    existing.as_ref().map_err(|errno| *errno).fail_at(Layer::Mounts, Step::OpenDevice)?;
                File::create(&path).fail_at(Layer::Mounts, made)?;
                let copy = detached_copy(existing, Step::OpenDevice)?;
                move_mount(&copy, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                    .fail_at(Layer::Mounts, Step::MoveMount)?;
                seal(&path, flags)?;
                continue;
            }
            Err(errno) => return Err(errno).fail_at(Layer::Mounts, Step::MakeDevice),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).fail_at(Layer::Mounts, made)?;
    }
    for (name, target) in LINKS {
        symlink(target, directory.join(name)).fail_at(Layer::Mounts, made)?;
    }
    for name in ["shm", "pts"] {
        fs::create_dir(directory.join(name)).fail_at(Layer::Mounts, made)?;
    }
    seal(directory, flags)
}
