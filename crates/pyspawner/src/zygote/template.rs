//! What children see of the host's filesystem, prepared once, in a mount namespace of the zygote's own that every child copies.
//!
//! The interpreter and everything on `sys.path` must be readable to a child's uid, even below a home directory of mode 0700. Over every
//! directory that a stranger may not enter and that we need something of, an empty tmpfs is mounted, and in it read-only binds of just
//! those things: nothing beside them becomes visible. In the child's less privileged namespaces these mounts are locked.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};
use rustix::process::{chdir, getcwd};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sandbox::mounts::{attach_locked, detached_copy};

/// What a child's interpreter must be able to read.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The executable, and what `sys.prefix` and its siblings name.
    pub installation: Vec<PathBuf>,
    /// The entries of `sys.path`.
    pub search_path: Vec<PathBuf>,
}

/// A directory below which the next one may be forbidden again; more levels than this nobody has.
const MAX_ROUNDS: usize = 8;

/// Gives the zygote its own, private mount namespace and makes `needs` readable in it.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`.
pub(super) fn prepare(needs: &Needs) -> Result<(), Failure> {
    let working_directory = getcwd(Vec::new());
    unshare_mounts().fail_at(Layer::Mounts, Step::UnshareMounts)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).fail_at(Layer::Mounts, Step::MakePrivate)?;
    // Directories below must be open to children whatever the caller's umask.
    let umask = rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let made_readable = make_readable(needs);
    rustix::process::umask(umask);
    made_readable?;
    // Where it was, in the new view; a working directory that children may not see is no longer one.
    working_directory.and_then(chdir).or_else(|_| chdir("/")).fail_at(Layer::Mounts, Step::ChangeDirectory)
}

fn make_readable(needs: &Needs) -> Result<(), Failure> {
    for _ in 0..MAX_ROUNDS {
        let items: BTreeSet<Item> = wanted(needs).iter().flat_map(|path| walk(path)).collect();
        let forbidden: BTreeSet<PathBuf> =
            items.iter().filter_map(|item| outermost_forbidden(item.path())).collect();
        if forbidden.is_empty() {
            break;
        }
        for directory in &forbidden {
            let below =
                items.iter().filter(|item| item.path().starts_with(directory) && item.path() != directory);
            replace(directory, below)?;
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "rustix cannot know what is shared")]
fn unshare_mounts() -> rustix::io::Result<()> {
    // SAFETY: only CLONE_FILES is the danger here, and it is not asked for.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
}

/// The paths to make readable: an installation whole; of another directory that strangers cannot read, only what can be imported.
fn wanted(needs: &Needs) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let installation: Vec<PathBuf> = needs.installation.iter().flat_map(|path| aliases(path)).collect();
    for path in &needs.installation {
        paths.extend(if is_closed(path) {
            chosen(path, is_part_of_installation)
        } else {
            vec![path.clone()]
        });
    }
    for path in &needs.search_path {
        let Ok(path) = std::path::absolute(path) else { continue };
        let is_installed =
            aliases(&path).iter().any(|path| installation.iter().any(|prefix| path.starts_with(prefix)));
        let closed = is_closed(&path)
            || !is_installed && aliases(&path).iter().any(|path| outermost_forbidden(path).is_some());
        paths.extend(if closed { chosen(&path, is_importable) } else { vec![path] });
    }
    paths.retain(|path| path.exists());
    paths
}

/// The path as it is written, and as it is with its links followed.
fn aliases(path: &Path) -> Vec<PathBuf> {
    [std::path::absolute(path), fs::canonicalize(path)].into_iter().flatten().collect()
}

/// Whether it is a directory that a stranger may not list or enter.
fn is_closed(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_dir() && metadata.permissions().mode() & 0o005 != 0o005)
}

fn chosen(directory: &Path, belongs: fn(&Path) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|entry| belongs(entry)).collect()
}

fn is_part_of_installation(path: &Path) -> bool {
    let names = ["bin", "include", "lib", "lib64", "share", "pyvenv.cfg"];
    path.file_name().is_some_and(|name| names.iter().any(|part| name == *part))
}

/// What `import` would find in a directory, and the metadata and shared libraries that packages bring along.
fn is_importable(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    match extension {
        Some("py" | "pyc" | "so" | "zip" | "egg" | "libs" | "dist-info" | "egg-info") => true,
        Some(_) => false,
        None => is_package(path, NAMESPACE_DEPTH),
    }
}

/// How deep a package without `__init__.py` may lie in others of its kind.
const NAMESPACE_DEPTH: usize = 3;

/// A package, or one of a namespace, which has no file of its own to tell it by.
fn is_package(path: &Path, depth: usize) -> bool {
    let is_name = |name: &str| name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    if !path.file_name().and_then(|name| name.to_str()).is_some_and(is_name) {
        return false;
    }
    path.join("__init__.py").exists()
        || fs::read_dir(path).into_iter().flatten().flatten().any(|entry| {
            let entry = entry.path();
            match entry.extension().and_then(|extension| extension.to_str()) {
                Some("py" | "so") => true,
                Some(_) => false,
                None => depth > 0 && is_package(&entry, depth - 1),
            }
        })
}

/// Something to show in a replaced directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Link { path: PathBuf, target: PathBuf },
    Bind { path: PathBuf },
}

impl Item {
    fn path(&self) -> &Path {
        match self {
            Self::Link { path, .. } | Self::Bind { path } => path,
        }
    }
}

/// Follows `path` one component at a time: every symbolic link on the way, then what it leads to.
fn walk(path: &Path) -> Vec<Item> {
    const MAX_LINKS: usize = 40;
    let mut items = Vec::new();
    let mut at = PathBuf::from("/");
    let mut rest: Vec<PathBuf> = reversed_components(path);
    while let Some(component) = rest.pop() {
        if component.as_os_str() == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&component);
        match fs::read_link(&next) {
            Ok(target) if items.len() < MAX_LINKS => {
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                rest.extend(reversed_components(&target));
                items.push(Item::Link { path: next, target });
            }
            Ok(_) => return Vec::new(),
            Err(_) => at = next,
        }
    }
    if at.exists() {
        items.push(Item::Bind { path: at });
    }
    items
}

fn reversed_components(path: &Path) -> Vec<PathBuf> {
    let kept = path
        .components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir));
    let mut components: Vec<PathBuf> = kept.map(|component| PathBuf::from(component.as_os_str())).collect();
    components.reverse();
    components
}

/// The outermost directory above `path` that a stranger may not enter.
fn outermost_forbidden(path: &Path) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    let forbidden = |directory: &&Path| {
        directory.parent().is_some()
            && fs::metadata(directory).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 == 0)
    };
    above.into_iter().find(forbidden).map(Path::to_path_buf)
}

/// Mounts a tmpfs over `directory` that shows `items` and nothing else.
fn replace<'a>(directory: &Path, items: impl Iterator<Item = &'a Item>) -> Result<(), Failure> {
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
