//! Layer `mounts`: what the child sees of the filesystem.
//!
//! Three processes take part. The caller opens what the child is to get (`client/mounts.rs`), so that nobody can swap it between check
//! and use. The zygote has changed its own root by `pivot_root(2)` to a copy of the host's tree that it has made harmless once
//! (`zygote/template`), and mounts the trees of the next child on a *stage* out of sight (`stage.rs`). The child is born with that root,
//! and mounts over it what is its own (`enter`); with `chroot_dir`, it changes to that tree by `pivot_root(2)`, and the old root is
//! unmounted: unlike after chroot(2), there is no way out to walk. What the zygote has mounted is locked in the child's less privileged
//! namespaces: not even a child with every capability there can make it writable or lift a cover.

mod filesystem;
mod lock;
pub(crate) mod mountinfo;
mod root;
pub(crate) mod rootless;
pub(crate) mod stage;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::{chdir, fchdir};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{FileOrder, Filesystem, MountOrder, View};
use crate::sys::inside;
use crate::sys::mount::{Access, make_read_only};
use filesystem::Tmpfs;
pub(crate) use filesystem::{CHANGES, WORK};
pub(crate) use lock::attach_locked;
use root::{Root, attach, copy_of};

/// `/tmp`, `/var/tmp` and `/dev/shm` together may hold a file for so many of their bytes, and a few more.
const BYTES_PER_FILE: u64 = 4096;
const FEW_FILES: u64 = 64;

/// What the zygote knows of the host's tree that it has staged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Template {
    /// Directories of which every child has an own, empty one.
    pub(crate) private: Vec<PrivateDirectory>,
    /// What children may not read of a `/proc`.
    pub(crate) masked: Vec<Masked>,
    /// The caller's working directory.
    pub(crate) working_dir: CString,
    /// The zygote is no root: what the caller sends it may open, and not mount. See `rootless.rs`.
    pub(crate) rootless: bool,
}

/// Something in a `/proc` that children may not read.
#[derive(Clone, Debug)]
pub(crate) struct Masked {
    pub(crate) name: CString,
    pub(crate) is_directory: bool,
}

/// A directory of which every child has an own one.
#[derive(Clone, Debug)]
pub(crate) struct PrivateDirectory {
    /// Where it is.
    pub(crate) path: CString,
    /// What the interpreter needs of the host's.
    pub(crate) kept: Vec<Kept>,
}

/// Something in a private directory that is the same for every child.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) name: CString,
    /// Where a symbolic link leads to.
    pub(crate) link: Option<CString>,
}

/// A detached copy of the mounts below `at`.
pub(crate) fn detached_copy(at: impl AsFd, step: Step) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(at, "", flags).fail_at(Layer::Mounts, step)
}

/// Builds the child's root and changes to it. `sent` is what came with the orders; `owner` the uid and gid of user code.
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn enter(
    view: &View,
    sent: Vec<OwnedFd>,
    working_dir: Option<&CStr>,
    owner: u32,
    template: &Template,
) -> Result<(), Failure> {
    let mut builder = Builder {
        sent: sent.into_iter(),
        owner,
        template,
        tmp_bytes: view.tmp_bytes,
        scratch: None,
        files: 0,
    };
    // Whatever mode is asked for is meant.
    let umask = rustix::process::umask(Mode::empty());
    let built = builder.build(view);
    rustix::process::umask(umask);
    built?.enter()?;
    // Nothing that led here is open any more: a path through /proc would find it.
    drop(builder);
    change_directory(view.chroot, working_dir, &template.working_dir)
}

/// Leaves the stage, and goes where user code begins. The path may lead through what an earlier child has written: no link of a `/proc` is
/// followed, of which one is the stage itself, and no other one out of the root.
fn change_directory(chroot: bool, wanted: Option<&CStr>, callers: &CStr) -> Result<(), Failure> {
    let failed = Step::WorkingDir;
    chdir("/").fail_at(Layer::Mounts, failed)?;
    let root = open_path(c"/").fail_at(Layer::Mounts, failed)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let enter = |path: &CStr| fchdir(inside::find(&root, path, OFlags::DIRECTORY, resolve)?);
    match wanted {
        Some(wanted) => enter(wanted).fail_at(Layer::Mounts, failed),
        None if chroot => Ok(()),
        None => {
            // A directory that the child cannot see, or cannot enter, is no place to be.
            let _ = enter(callers);
            Ok(())
        }
    }
}

fn open_path(path: &CStr) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

struct Builder<'a> {
    sent: std::vec::IntoIter<OwnedFd>,
    owner: u32,
    template: &'a Template,
    tmp_bytes: u64,
    /// The filesystem of the private directories.
    scratch: Option<OwnedFd>,
    /// How many files are in it.
    files: u8,
}

impl Builder<'_> {
    fn build(&mut self, view: &View) -> Result<Root, Failure> {
        let mut root = if view.chroot {
            Root::of_tree(&stage::tree_path(0, true), self.owner)?
        } else {
            let mut root = Root::of_host(self.owner)?;
            if view.proc {
                self.add_proc(&mut root, c"/proc")?;
            }
            for directory in &self.template.private {
                self.add_private(&mut root, directory)?;
            }
            root
        };
        for file in &view.files {
            self.add_file(&mut root, file)?;
        }
        for (index, order) in view.mounts.iter().enumerate() {
            self.add(&mut root, order).map_err(|failure| failure.of_mount(index))?;
        }
        Ok(root)
    }

    fn add(&mut self, root: &mut Root, order: &MountOrder) -> Result<(), Failure> {
        let target = order.target.as_c_str();
        let mount = match order.filesystem {
            Filesystem::Tree { number, is_directory } => {
                copy_of(CWD, &stage::tree_path(number, is_directory))?
            }
            Filesystem::Sent => self.next_sent()?,
            Filesystem::Tmpfs { size_bytes, max_inodes } => {
                filesystem::tmpfs(&Tmpfs { size_bytes, max_inodes, mode: 0o755, owner: Some(self.owner) })?
            }
            Filesystem::Overlay { size_bytes } => {
                let lower = self.next_sent()?;
                let upper = match size_bytes {
                    None => self.next_sent()?,
                    Some(size_bytes) => {
                        // A copy of a file takes a page at least.
                        let max_inodes = size_bytes / 4096 + 64;
                        filesystem::tmpfs(&Tmpfs { size_bytes, max_inodes, mode: 0o755, owner: None })?
                    }
                };
                filesystem::overlay(lower, upper)?
            }
            Filesystem::Proc => return self.add_proc(root, target),
            Filesystem::Dev { ptmx } => return self.add_dev(root, target, ptmx),
        };
        root.attach(mount, target)
    }

    fn next_sent(&mut self) -> Result<OwnedFd, Failure> {
        let sent = self.sent.next().ok_or(Failure::new(Layer::Mounts, Step::ReceiveOrders, libc::EPROTO))?;
        if self.template.rootless { rootless::mount_of(&sent, Access::Writable) } else { Ok(sent) }
    }

    fn add_proc(&mut self, root: &mut Root, target: &CStr) -> Result<(), Failure> {
        let proc = filesystem::proc()?;
        let copy = rustix::io::dup(&proc).fail_at(Layer::Mounts, Step::MountProc)?;
        root.attach(copy, target)?;
        for Masked { name, is_directory } in &self.template.masked {
            let mask = copy_of(CWD, if *is_directory { stage::MASK_DIRECTORY } else { stage::MASK_FILE })?;
            match move_mount(&mask, "", &proc, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
                // Not everything is in every pid namespace's.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).fail_at(Layer::Mounts, Step::MaskProc),
            }
        }
        Ok(())
    }

    fn add_dev(&mut self, root: &mut Root, target: &CStr, ptmx: bool) -> Result<(), Failure> {
        root.attach(copy_of(CWD, "/dev")?, target)?;
        let shm = self.private(c"shm")?;
        root.attach(shm, &below(target, c"shm"))?;
        if ptmx {
            root.attach(filesystem::devpts()?, &below(target, c"pts"))?;
        }
        Ok(())
    }

    /// A file that nobody can change. It lies in the private filesystem, where no path of the child's leads.
    fn add_file(&mut self, root: &mut Root, file: &FileOrder) -> Result<(), Failure> {
        let scratch = self.scratch()?;
        let name = format!("file{}", self.files);
        self.files += 1;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = openat(&scratch, &name, flags, Mode::from_raw_mode(0o444))
            .fail_at(Layer::Mounts, Step::WriteFile)?;
        File::from(made).write_all(file.content.as_bytes()).fail_at(Layer::Mounts, Step::WriteFile)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copy = open_tree(&scratch, &name, flags).fail_at(Layer::Mounts, Step::CopyTree)?;
        self.scratch = Some(scratch);
        match make_read_only(&copy) {
            // Linux 5.10 and 5.11: then only its owner, root of the child's namespace, can write to it.
            Ok(()) | Err(Errno::NOSYS) => root.attach(copy, &file.target),
            Err(errno) => Err(errno).fail_at(Layer::Mounts, Step::SetMountAttributes),
        }
    }

    /// The private filesystem, taken from its place.
    fn scratch(&mut self) -> Result<OwnedFd, Failure> {
        self.scratch.take().map_or_else(|| make_scratch(self.tmp_bytes), Ok)
    }

    /// A directory of the private filesystem, which is made with the first of them. They share it, and so its size.
    fn private(&mut self, name: &CStr) -> Result<OwnedFd, Failure> {
        let scratch = self.scratch()?;
        match mkdirat(&scratch, name, Mode::from_raw_mode(0o1777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).fail_at(Layer::Mounts, Step::MountTmpfs),
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let directory = open_tree(&scratch, name, flags).fail_at(Layer::Mounts, Step::MountTmpfs)?;
        self.scratch = Some(scratch);
        Ok(directory)
    }

    fn add_private(&mut self, root: &mut Root, directory: &PrivateDirectory) -> Result<(), Failure> {
        // Its name there does not matter, but must be one.
        let name: Vec<u8> =
            directory.path.to_bytes().iter().map(|byte| if *byte == b'/' { b'_' } else { *byte }).collect();
        let own = self.private(&CString::new(name).unwrap_or_default())?;
        let covered = root.find(&directory.path).fail_at(Layer::Mounts, Step::FindTarget)?;
        attach(&own, covered.as_fd())?;
        for kept in &directory.kept {
            keep(kept, &covered, &own).fail_at(Layer::Mounts, Step::KeepInPrivate)?;
        }
        Ok(())
    }
}

fn make_scratch(size_bytes: u64) -> Result<OwnedFd, Failure> {
    let scratch = filesystem::tmpfs(&Tmpfs {
        size_bytes,
        max_inodes: FEW_FILES.max(size_bytes / BYTES_PER_FILE),
        mode: 0o755,
        owner: None,
    })?;
    // Before Linux 6.15 only what is mounted can be copied.
    move_mount(&scratch, "", CWD, stage::SCRATCH, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .fail_at(Layer::Mounts, Step::MountTmpfs)?;
    Ok(scratch)
}

/// Shows in `own` what the interpreter needs of the directory that it covers.
fn keep(kept: &Kept, covered: &OwnedFd, own: &OwnedFd) -> rustix::io::Result<()> {
    let Kept { name, link } = kept;
    if let Some(target) = link {
        return symlinkat(target, own, name);
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let copy = open_tree(covered, name, flags)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&copy)?.st_mode).is_dir() {
        mkdirat(own, name, Mode::from_raw_mode(0o755))?;
    } else {
        mknodat(own, name, FileType::RegularFile, Mode::from_raw_mode(0o444), 0)?;
    }
    move_mount(&copy, "", own, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn below(directory: &CStr, name: &CStr) -> CString {
    CString::new([directory.to_bytes(), b"/", name.to_bytes()].concat()).unwrap_or_default()
}
