//! The caller's half of the layer `mounts`: opens what the child is to get, so that nobody can swap it between check and use, and maps the
//! owners of what the child may write to, so that its files belong to the caller.

use std::ffi::CString;
use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstat, mkdirat, openat, statat, statx,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::uppers::Upper;
use crate::config::{Mount, SandboxConfig};
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{Filesystem, MountOrder, View};
use crate::sandbox::id_map::RANGE;
use crate::sandbox::mounts::{CHANGES, WORK, detached_copy};
use crate::sys::inside;
use crate::sys::mount::{Access, map_owners, restrict_mount_tree};
use crate::sys::user_namespace;

/// Which file it is: its mount, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

impl Identity {
    fn of(file: &OwnedFd) -> rustix::io::Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let found = statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
        Ok(Self {
            mount: found.stx_mnt_id,
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
        })
    }

    /// What the paths of `sandbox` lead to now, in the order of [`Sources::identities`].
    pub(super) fn all_of(sandbox: &SandboxConfig) -> rustix::io::Result<Vec<Self>> {
        let chroot = sandbox.chroot_dir.as_deref().map(|path| open(path, OFlags::DIRECTORY)).transpose()?;
        let mut found: Vec<_> = chroot.iter().map(Self::of).collect::<rustix::io::Result<_>>()?;
        for mount in &sandbox.mounts {
            if let Some(source) = source_of(mount, chroot.as_ref())? {
                found.push(Self::of(&source)?);
            }
        }
        Ok(found)
    }
}

/// What a child is to see, opened.
pub(super) struct Sources {
    /// For the zygote to stage.
    pub(super) trees: Vec<OwnedFd>,
    /// What the child may write to, or has a copy of, as it is on the host; each with its place in `mounts`.
    owned: Vec<(usize, OwnedFd)>,
    /// The uppers among them.
    pub(super) uppers: Vec<Upper>,
    /// What was opened, less the uppers.
    pub(super) identities: Vec<Identity>,
    /// What the child is to do with them.
    pub(super) view: View,
}

impl Sources {
    /// Opens everything that `sandbox` names.
    ///
    /// # Errors
    ///
    /// A path that is missing, is a symbolic link, or is no directory where one is needed.
    pub(super) fn open(sandbox: &SandboxConfig) -> Result<Self, Failure> {
        let mut sources = Self {
            trees: Vec::new(),
            owned: Vec::new(),
            uppers: Vec::new(),
            identities: Vec::new(),
            view: View {
                chroot: sandbox.chroot_dir.is_some(),
                proc: sandbox.proc,
                tmp_bytes: sandbox.limits.tmp_bytes,
                files: Vec::new(),
                mounts: Vec::new(),
            },
        };
        let chroot = match &sandbox.chroot_dir {
            None => None,
            Some(path) => Some(open(path, OFlags::DIRECTORY).fail_at(Layer::Mounts, Step::OpenChroot)?),
        };
        if let Some(chroot) = &chroot {
            sources.identities.push(Identity::of(chroot).fail_at(Layer::Mounts, Step::OpenChroot)?);
            sources.trees.push(tree(chroot, Step::CloneChroot)?);
        }
        for (index, mount) in sandbox.mounts.iter().enumerate() {
            let filesystem =
                sources.add(index, mount, chroot.as_ref()).map_err(|failure| failure.of_mount(index))?;
            sources.view.mounts.push(MountOrder { target: text(mount.target()), filesystem });
        }
        Ok(sources)
    }

    fn add(&mut self, index: usize, mount: &Mount, chroot: Option<&OwnedFd>) -> Result<Filesystem, Failure> {
        let failed = Step::OpenSource;
        let source = source_of(mount, chroot).fail_at(Layer::Mounts, failed)?;
        if let Some(source) = &source {
            self.identities.push(Identity::of(source).fail_at(Layer::Mounts, failed)?);
        }
        Ok(match (mount, source) {
            (Mount::Bind { writable, .. }, Some(source)) => {
                if *writable {
                    self.owned.push((index, source));
                    Filesystem::Sent
                } else {
                    // Config allows far fewer than fit.
                    let number = u8::try_from(self.trees.len()).unwrap_or(u8::MAX);
                    let is_directory = kind(&source).fail_at(Layer::Mounts, failed)?.is_dir();
                    self.trees.push(tree(&source, Step::CloneSource)?);
                    Filesystem::Tree { number, is_directory }
                }
            }
            (Mount::Tmpfs { size_bytes, max_inodes, .. }, _) => {
                Filesystem::Tmpfs { size_bytes: *size_bytes, max_inodes: *max_inodes }
            }
            (Mount::Overlay { size_bytes, upper: None, .. }, Some(lower)) => {
                self.owned.push((index, lower));
                Filesystem::Overlay { size_bytes: Some(*size_bytes) }
            }
            (Mount::Overlay { upper: Some(upper), .. }, Some(lower)) => {
                let upper = open(upper, OFlags::DIRECTORY).fail_at(Layer::Mounts, failed)?;
                let nested =
                    is_inside(&upper, &lower).and_then(|inside| Ok(inside || is_inside(&lower, &upper)?));
                if nested.fail_at(Layer::Mounts, failed)? {
                    return Err(Failure::new(Layer::Mounts, Step::MakeUpper, libc::ELOOP));
                }
                let locked = Upper::lock(&upper).fail_at(Layer::Mounts, Step::LockUpper)?;
                self.uppers.push(locked);
                prepare_upper(&upper).fail_at(Layer::Mounts, Step::MakeUpper)?;
                self.owned.extend([(index, lower), (index, upper)]);
                Filesystem::Overlay { size_bytes: None }
            }
            (Mount::Proc { .. }, _) => Filesystem::Proc,
            (Mount::Dev { ptmx, .. }, _) => Filesystem::Dev { ptmx: *ptmx },
            // These have one.
            (Mount::Bind { .. } | Mount::Overlay { .. }, None) => {
                return Err(Failure::new(Layer::Mounts, failed, libc::EINVAL));
            }
        })
    }

    /// What is sent to the child whose host ids begin with `first_id`, and whose user code has the id `child_id` of them.
    ///
    /// # Errors
    ///
    /// A filesystem whose owners cannot be mapped; a kernel that refuses to mount.
    pub(super) fn owned_by(&self, first_id: Option<u32>, child_id: u32) -> Result<Vec<OwnedFd>, Failure> {
        if self.owned.is_empty() {
            return Ok(Vec::new());
        }
        let Some(first_id) = first_id else {
            // Rootless: the child's user is the caller, and mounts them itself.
            let sources = self.owned.iter().map(|(_, source)| rustix::io::dup(source));
            return sources.collect::<rustix::io::Result<_>>().fail_at(Layer::Mounts, Step::CloneSource);
        };
        let uids = owner_map(rustix::process::geteuid().as_raw(), first_id, child_id);
        let gids = owner_map(rustix::process::getegid().as_raw(), first_id, child_id);
        let owners = user_namespace::make(&uids, &gids).fail_at(Layer::Mounts, Step::MakeUserNamespace)?;
        self.owned
            .iter()
            .map(|(index, source)| owned_copy(source, &owners).map_err(|failure| failure.of_mount(*index)))
            .collect()
    }
}

/// What a mount shows of the host or of the root, if it shows something.
fn source_of(mount: &Mount, chroot: Option<&OwnedFd>) -> rustix::io::Result<Option<OwnedFd>> {
    match (mount, chroot) {
        (Mount::Bind { source, .. }, _) => open(source, OFlags::empty()),
        (Mount::Overlay { lower: Some(lower), .. }, _) => open(lower, OFlags::DIRECTORY),
        (Mount::Overlay { target, .. }, Some(chroot)) => {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            inside::find(chroot, target.as_path(), OFlags::DIRECTORY, resolve)
        }
        // Config refuses it.
        (Mount::Overlay { .. }, None) => Err(Errno::INVAL),
        (Mount::Tmpfs { .. } | Mount::Proc { .. } | Mount::Dev { .. }, _) => return Ok(None),
    }
    .map(Some)
}

/// What the zygote stages: a detached copy of the mounts there, or, from a caller that may not mount, the thing itself.
fn tree(source: &OwnedFd, step: Step) -> Result<OwnedFd, Failure> {
    if rustix::process::geteuid().is_root() {
        return detached_copy(source, step);
    }
    rustix::io::dup(source).fail_at(Layer::Mounts, step)
}

fn owned_copy(source: &OwnedFd, owners: &OwnedFd) -> Result<OwnedFd, Failure> {
    let copy = open_tree(
        source,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )
    .fail_at(Layer::Mounts, Step::CloneSource)?;
    restrict_mount_tree(&copy, Access::Writable).fail_at(Layer::Mounts, Step::SetMountAttributes)?;
    map_owners(&copy, owners.as_fd()).fail_at(Layer::Mounts, Step::MapOwners)?;
    Ok(copy)
}

/// The owners on disk and the host ids that processes see in their place: the caller and the child's user are one, and change places;
/// every other owner is the child's user of the same number. In the form of `user_namespaces(7)`.
fn owner_map(caller: u32, first_id: u32, child_id: u32) -> String {
    let (low, high) = (caller.min(child_id), caller.max(child_id));
    let mut map = String::new();
    let mut add = |on_disk: u32, seen: u32, count: u32| {
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = writeln!(map, "{on_disk} {} {count}", first_id + seen);
        }
    };
    if caller == child_id {
        add(0, 0, RANGE);
    } else if high < RANGE {
        add(0, 0, low);
        add(low, high, 1);
        add(low + 1, low + 1, high - low - 1);
        add(high, low, 1);
        add(high + 1, high + 1, RANGE - high - 1);
    } else {
        // The caller's number is none of the child's.
        add(0, 0, child_id);
        add(child_id + 1, child_id + 1, RANGE - child_id - 1);
        add(caller, child_id, 1);
    }
    map
}

/// Whether `directory` is `other`, or lies in it.
fn is_inside(directory: &OwnedFd, other: &OwnedFd) -> rustix::io::Result<bool> {
    let identity = |file: &OwnedFd| fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    let other = identity(other)?;
    let mut at = rustix::io::dup(directory)?;
    loop {
        let here = identity(&at)?;
        if here == other {
            return Ok(true);
        }
        at = openat(&at, "..", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        if identity(&at)? == here {
            return Ok(false);
        }
    }
}

/// Makes the two directories that an overlay needs, if they are not there from an earlier child.
fn prepare_upper(upper: &OwnedFd) -> rustix::io::Result<()> {
    for name in [CHANGES, WORK] {
        match mkdirat(upper, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let found = statat(upper, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(found.st_mode).is_dir() {
            return Err(Errno::NOTDIR);
        }
    }
    Ok(())
}

/// Opens a path of the host's, that is not itself a symbolic link.
fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty())?;
    // With PATH and NOFOLLOW a link would be opened itself.
    if kind(&opened)?.is_symlink() { Err(Errno::LOOP) } else { Ok(opened) }
}

fn kind(file: &OwnedFd) -> rustix::io::Result<FileType> {
    rustix::fs::fstat(file).map(|stat| FileType::from_raw_mode(stat.st_mode))
}

/// Config has refused a NUL byte.
pub(super) fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the map makes of an owner on disk.
    fn seen(map: &str, on_disk: u32) -> Option<u32> {
        map.lines().find_map(|line| {
            let numbers: Vec<u32> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
            let offset = on_disk.checked_sub(numbers[0])?;
            (offset < numbers[2]).then(|| numbers[1] + offset)
        })
    }

    #[test]
    fn the_caller_and_the_childs_user_change_places_and_all_others_stay() {
        for (caller, child) in [(0, 1000), (1000, 0), (1000, 1000), (65_535, 1000), (33, 0), (0, 0)] {
            let map = owner_map(caller, 131_072, child);
            assert_eq!(seen(&map, caller), Some(131_072 + child), "{map}");
            assert_eq!(seen(&map, child), Some(131_072 + caller), "{map}");
            for other in [1, 999, 1001, 65_534] {
                assert_eq!(seen(&map, other), Some(131_072 + other), "{map}");
            }
            assert_eq!(seen(&map, 65_536), None);
        }
    }

    #[test]
    fn a_caller_whose_number_the_child_does_not_have_takes_its_users_place() {
        let map = owner_map(200_000, 131_072, 1000);
        assert_eq!(seen(&map, 200_000), Some(131_072 + 1000));
        assert_eq!(seen(&map, 1000), None);
        assert_eq!(seen(&map, 0), Some(131_072));
    }
}
