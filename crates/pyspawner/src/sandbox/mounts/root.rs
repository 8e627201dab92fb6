//! The root that a child builds for itself: places in it, and the change to it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, mknodat, openat, statat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{fchdir, pivot_root};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sys::inside;
use crate::sys::mount::make_read_only;

use super::{filesystem, stage};

/// Links and `..` lead nowhere but to places in the root, as after chroot(2); links of a `/proc` nowhere at all.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Entries of a directory that can be mirrored: every one is a mount.
const MIRROR_MAX: u64 = 1024;

/// The root to be.
pub(super) struct Root {
    /// Its topmost mount.
    top: OwnedFd,
    /// It is mounted over the one in which the child was born, and not that one.
    is_other: bool,
    /// Directories that were made anew so that something could be mounted in them.
    mirrors: Vec<OwnedFd>,
    /// The uid and gid of user code.
    owner: u32,
}

impl Root {
    /// The root in which the child was born: the host's tree, as the zygote has prepared it.
    pub(super) fn of_host(owner: u32) -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = openat(CWD, "/", flags, Mode::empty()).fail_at(Layer::Mounts, Step::FindTarget)?;
        Ok(Self { top, is_other: false, mirrors: Vec::new(), owner })
    }

    /// A copy of the tree that is staged at `path`. The staged mount itself is locked in its place, a copy of it is not; both keep their
    /// flags. Whatever is mounted over it later goes with the stage too, once the topmost is the root.
    pub(super) fn of_tree(path: &str, owner: u32) -> Result<Self, Failure> {
        let top = copy_of(CWD, path)?;
        move_mount(&top, "", CWD, stage::ROOT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .fail_at(Layer::Mounts, Step::MoveMount)?;
        Ok(Self { top, is_other: true, mirrors: Vec::new(), owner })
    }

    /// What is at `target` in the root.
    pub(super) fn find(&self, target: &CStr) -> rustix::io::Result<OwnedFd> {
        inside::find(&self.top, target, OFlags::empty(), INSIDE)
    }

    /// Mounts the detached tree `mount` at `target`, which is made if it is missing.
    pub(super) fn attach(&mut self, mount: OwnedFd, target: &CStr) -> Result<(), Failure> {
        let is_directory = is_directory(&mount).fail_at(Layer::Mounts, Step::FindTarget)?;
        let place = self.place(target, is_directory)?;
        if is_directory != self::is_directory(&place).fail_at(Layer::Mounts, Step::FindTarget)? {
            let errno = if is_directory { libc::ENOTDIR } else { libc::EISDIR };
            return Err(Failure::new(Layer::Mounts, Step::MatchTarget, errno));
        }
        attach(&mount, place.as_fd())?;
        if names(target).next().is_none() {
            (self.top, self.is_other) = (mount, true);
        }
        Ok(())
    }

    fn place(&mut self, target: &CStr, is_directory: bool) -> Result<OwnedFd, Failure> {
        match self.find(target) {
            Err(Errno::NOENT) => self.make(target, is_directory),
            found => found.fail_at(Layer::Mounts, Step::FindTarget),
        }
    }

    /// Makes what is missing of `target`.
    fn make(&mut self, target: &CStr, is_directory: bool) -> Result<OwnedFd, Failure> {
        let names: Vec<&[u8]> = names(target).collect();
        let mut at = b"/".to_vec();
        for (index, name) in names.iter().enumerate() {
            let parent = at.clone();
            at.extend_from_slice(name);
            let here = [at.as_slice(), b"\0"].concat();
            let here = CStr::from_bytes_with_nul(&here).unwrap_or(c"/");
            match self.find(here) {
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    let directory = is_directory || index + 1 < names.len();
                    self.make_entry(&parent, name, directory)?;
                }
                Err(errno) => return Err(errno).fail_at(Layer::Mounts, Step::FindTarget),
            }
            at.push(b'/');
        }
        self.find(target).fail_at(Layer::Mounts, Step::FindTarget)
    }

    fn make_entry(&mut self, parent: &[u8], name: &[u8], is_directory: bool) -> Result<(), Failure> {
        let path = [parent, b"\0"].concat();
        let path = CStr::from_bytes_with_nul(&path).unwrap_or(c"/");
        let directory = self.find(path).fail_at(Layer::Mounts, Step::FindTarget)?;
        let add = |directory: &OwnedFd| {
            if is_directory {
                mkdirat(directory, name, Mode::from_raw_mode(0o755))
            } else {
                mknodat(directory, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
            }
        };
        match add(&directory) {
            // Read-only, or not ours.
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::OVERFLOW) => {}
            // Another child was first, in a directory that both may write to; or the name is a link that leads nowhere.
            Err(Errno::EXIST) if statat(&directory, name, AtFlags::empty()).is_ok() => return Ok(()),
            Ok(()) => {
                // It is made in something of the child's, and by root of its namespace.
                let (uid, gid) = (Uid::from_raw(self.owner), Gid::from_raw(self.owner));
                return chownat(&directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .fail_at(Layer::Mounts, Step::MakeTarget);
            }
            made => return made.fail_at(Layer::Mounts, Step::MakeTarget),
        }
        let mirror = self.mirror(&directory, parent == b"/")?;
        add(&mirror).fail_at(Layer::Mounts, Step::MakeTarget)
    }

    /// Mounts over `directory` a new one in memory with the same things in it, so that more can be put beside them.
    fn mirror(&mut self, directory: &OwnedFd, is_root: bool) -> Result<OwnedFd, Failure> {
        let failed = Step::MirrorDirectory;
        let stat = rustix::fs::fstat(directory).fail_at(Layer::Mounts, failed)?;
        let mirror = filesystem::tmpfs(&filesystem::Tmpfs {
            size_bytes: MIRROR_MAX * 4096,
            max_inodes: 2 * MIRROR_MAX,
            mode: stat.st_mode & 0o755,
            owner: None,
        })?;
        attach(&mirror, directory.as_fd())?;
        // By its descriptor the old one can be reached as before.
        let listing =
            openat(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .fail_at(Layer::Mounts, failed)?;
        let mut entries = 0;
        for entry in rustix::fs::Dir::new(listing).fail_at(Layer::Mounts, failed)? {
            let entry = entry.fail_at(Layer::Mounts, failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            entries += 1;
            if entries > MIRROR_MAX {
                return Err(Failure::new(Layer::Mounts, failed, libc::E2BIG));
            }
            match mirror_entry(directory, &mirror, name) {
                // Gone since it was listed.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).fail_at(Layer::Mounts, failed),
            }
        }
        if is_root {
            self.top = rustix::io::dup(&mirror).fail_at(Layer::Mounts, failed)?;
            self.is_other = true;
        }
        self.mirrors.push(rustix::io::dup(&mirror).fail_at(Layer::Mounts, failed)?);
        Ok(mirror)
    }

    /// Makes it the only filesystem. The working directory may be anywhere.
    pub(super) fn enter(self) -> Result<(), Failure> {
        for mirror in &self.mirrors {
            match make_read_only(mirror) {
                // Linux 5.10 and 5.11: then only its owner, root of the child's namespace, can write to it.
                Ok(()) | Err(Errno::NOSYS) => {}
                Err(errno) => return Err(errno).fail_at(Layer::Mounts, Step::SetMountAttributes),
            }
        }
        if !self.is_other {
            return Ok(());
        }
        // The two roots change places, and the old one goes with all that is mounted on it.
        fchdir(&self.top).fail_at(Layer::Mounts, Step::ChangeDirectory)?;
        pivot_root(".", ".").fail_at(Layer::Mounts, Step::PivotRoot)?;
        unmount(".", UnmountFlags::DETACH).fail_at(Layer::Mounts, Step::UnmountOldRoot)?;
        self.check_that_it_is_alone()
    }

    /// Were anything left on the root, `..` would lead there.
    fn check_that_it_is_alone(&self) -> Result<(), Failure> {
        let failed = Step::UnmountOldRoot;
        let wanted = rustix::fs::fstat(&self.top).fail_at(Layer::Mounts, failed)?;
        for path in ["/", "/.."] {
            let found = rustix::fs::stat(path).fail_at(Layer::Mounts, failed)?;
            if (wanted.st_dev, wanted.st_ino) != (found.st_dev, found.st_ino) {
                return Err(Failure::new(Layer::Mounts, failed, libc::EBUSY));
            }
        }
        Ok(())
    }
}

/// The names in a path, from the root on; the root has none.
fn names(path: &CStr) -> impl Iterator<Item = &[u8]> {
    path.to_bytes().split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

fn is_directory(file: &OwnedFd) -> rustix::io::Result<bool> {
    rustix::fs::fstat(file).map(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

fn mirror_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
    let entry = openat(from, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&entry)?.st_mode) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&entry, "", Vec::new())?;
            return rustix::fs::symlinkat(&target, to, name);
        }
        FileType::Directory => mkdirat(to, name, Mode::from_raw_mode(0o755))?,
        _ => mknodat(to, name, FileType::RegularFile, Mode::empty(), 0)?,
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(&entry, "", flags)?;
    move_mount(&copy, "", to, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Mounts a detached tree on the very thing that `place` is.
pub(super) fn attach(mount: &OwnedFd, place: BorrowedFd<'_>) -> Result<(), Failure> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags).fail_at(Layer::Mounts, Step::MoveMount)
}

/// A detached copy of the mounts at `path`.
pub(super) fn copy_of(directory: impl AsFd, path: &str) -> Result<OwnedFd, Failure> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(directory, path, flags).fail_at(Layer::Mounts, Step::CopyTree)
}
