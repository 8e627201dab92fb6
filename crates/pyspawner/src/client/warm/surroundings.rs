//! What a sandbox leads to on the host. A parked child was given what was there then; it can be used as long as that is still so.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use crate::client::mounts::{open, source_of};
use crate::config::{Mount, SandboxConfig};
use crate::sys::inside;

/// Where each child has something of its own, in the view of the host.
const OWN: [&str; 4] = ["/tmp", "/var/tmp", "/dev", "/proc"];

/// What is found where a sandbox says, at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// Of the root, and of each mount's source and target.
    found: Vec<Identity>,
    /// What is mounted below a source, its copy has.
    mounts: u64,
}

/// Which file it is: its mount, and its number there; and where the filesystem knows it, when it was made, because numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    mount: u64,
    device: (u32, u32),
    inode: u64,
    born: (i64, u32),
    /// Of a directory that is mirrored: when its entries were others last.
    changed: Option<(i64, u32)>,
}

impl Surroundings {
    pub(super) fn look(sandbox: &SandboxConfig, mounts: &mut MountTable) -> io::Result<Self> {
        if sandbox.chroot_dir.is_none() && sandbox.mounts.is_empty() {
            return Ok(Self { found: Vec::new(), mounts: 0 });
        }
        // First of all: what changes meanwhile is then noticed the next time.
        let mounts = mounts.changes()?;
        Ok(Self { found: Identity::all_of(sandbox)?, mounts })
    }
}

impl Identity {
    fn of(file: &OwnedFd) -> rustix::io::Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID | StatxFlags::BTIME;
        let found = statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
        Ok(Self {
            mount: found.stx_mnt_id,
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            born: (found.stx_btime.tv_sec, found.stx_btime.tv_nsec),
            changed: None,
        })
    }

    /// The same of a directory, and of what is in it.
    fn with_entries(file: &OwnedFd) -> rustix::io::Result<Self> {
        let changed = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::CTIME)?.stx_ctime;
        Ok(Self { changed: Some((changed.tv_sec, changed.tv_nsec)), ..Self::of(file)? })
    }

    fn all_of(sandbox: &SandboxConfig) -> rustix::io::Result<Vec<Self>> {
        let chroot = sandbox.chroot_dir.as_deref().map(|path| open(path, OFlags::DIRECTORY)).transpose()?;
        let host = match &chroot {
            Some(_) => None,
            None => Some(openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?),
        };
        let mut found: Vec<_> = chroot.iter().map(Self::of).collect::<rustix::io::Result<_>>()?;
        let mut mounted: Vec<(&Path, Option<OwnedFd>)> = Vec::new();
        for mount in &sandbox.mounts {
            let source = source_of(mount, chroot.as_ref())?;
            found.extend(source.as_ref().map(Self::of).transpose()?);
            let target = mount.target();
            // What it is mounted on.
            let below = mounted.iter().rev().find_map(|(at, source)| {
                target.strip_prefix(at).ok().map(|rest| source.as_ref().map(|source| (source, rest)))
            });
            let below = below.unwrap_or_else(|| {
                let is_own = chroot.is_none() && OWN.iter().any(|own| target.starts_with(own));
                let root = chroot.as_ref().or(host.as_ref()).filter(|_| !is_own);
                root.map(|root| (root, target))
            });
            if let Some((directory, path)) = below {
                found.push(Self::of_target(directory, path)?);
            }
            let is_source_seen = matches!(mount, Mount::Bind { .. } | Mount::Overlay { .. });
            mounted.push((target, source.filter(|_| is_source_seen)));
        }
        Ok(found)
    }

    /// Of what there is to be mounted on; or, where that is missing, of the directory that lacks it, of which the child has a mirror.
    fn of_target(root: &OwnedFd, path: &Path) -> rustix::io::Result<Self> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for at in path.ancestors() {
            if at.as_os_str().is_empty() {
                break;
            }
            match inside::find(root, at, OFlags::empty(), resolve) {
                Ok(found) if at == path => return Self::of(&found),
                Ok(found) => return Self::with_entries(&found),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        if path.as_os_str().is_empty() { Self::of(root) } else { Self::with_entries(root) }
    }
}

/// What is mounted where, for this process.
#[derive(Debug)]
pub(super) struct MountTable {
    file: File,
    changes: u64,
}

impl MountTable {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/mountinfo")?, changes: 0 })
    }

    /// Another number after each change; proc(5).
    fn changes(&mut self) -> rustix::io::Result<u64> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let has_changed = loop {
            match poll(&mut [PollFd::new(&self.file, PollFlags::PRI)], Some(&AT_ONCE)) {
                Err(Errno::INTR) => {}
                answer => break answer? > 0,
            }
        };
        self.changes += u64::from(has_changed);
        Ok(self.changes)
    }
}
