//! What children see of the host's filesystem, prepared once, in a mount namespace of the zygote's own that every child copies.
//!
//! The host's tree becomes read-only, nosuid and nodev, every mount in it. Covered are the directories where hosts keep what is private
//! or changes (`hidden.rs`), and those of the interpreter's that a child's uid may not enter; of both, what the interpreter and the
//! modules on `sys.path` need stays visible (`needs.rs`, `cover.rs`). Then the zygote changes its root
//! to that tree, with the stage in it (`stage.rs`).

mod cover;
mod hidden;
mod needs;
mod rootless;
mod stage;
mod visible;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{getcwd, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::sandbox::mounts::{Kept, PrivateDirectory, Template};

pub use needs::Needs;
use needs::{Item, is_shut, outermost, walk, wanted};
pub(super) use stage::leave as leave_stage;
pub(super) use visible::visible;

/// A directory below which the next one may be forbidden again; more levels than this nobody has.
const MAX_ROUNDS: usize = 8;

/// What the zygote may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// May mount, and map ids.
    Root,
    /// May do so only in a user namespace of its own.
    User,
    /// Has that one already, from the zygote that it is a clone of.
    UserWithin,
}

impl Rights {
    pub(super) fn of_this_process() -> Self {
        if geteuid().is_root() { Self::Root } else { Self::User }
    }
}

/// Gives the zygote its own, private mount namespace, and stages there what children see of the host.
///
/// # Errors
///
/// `EPERM` where that is not allowed.
pub(super) fn prepare(needs: &Needs, rights: Rights) -> Result<Template, Failure> {
    let working_dir = getcwd(Vec::new()).unwrap_or_else(|_| c"/".to_owned());
    // Before it is another one in another namespace.
    let user = match rights {
        Rights::Root | Rights::User => geteuid().as_raw(),
        Rights::UserWithin => rootless::user_outside()?,
    };
    match rights {
        Rights::Root => unshare(UnshareFlags::NEWNS).fail_at(Layer::Mounts, Step::UnshareMounts)?,
        Rights::User => {
            rootless::check_groups(needs, user)?;
            rootless::enter_namespaces()?;
            rootless::check_program()?;
        }
        Rights::UserWithin => {
            rootless::check_groups(needs, user)?;
            unshare(UnshareFlags::NEWNS).fail_at(Layer::Mounts, Step::UnshareMounts)?;
        }
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).fail_at(Layer::Mounts, Step::MakePrivate)?;
    // Directories made below must be open to children whatever the caller's umask.
    let umask = rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let built = build(needs, rights, user, working_dir);
    rustix::process::umask(umask);
    built
}

fn build(needs: &Needs, rights: Rights, user: u32, working_dir: CString) -> Result<Template, Failure> {
    let rootless = rights != Rights::Root;
    let masked = hidden::masked_in_proc();
    // Before anything is covered.
    let open = rootless.then(stage::copy_of_host).transpose()?;
    cover::remove_kernels_own()?;
    cover_all(needs, &hidden::directories(user))?;
    let mut private: Vec<PrivateDirectory> =
        hidden::private().iter().map(|path| private_directory(path)).collect();
    private.push(PrivateDirectory { path: c"/dev/shm".to_owned(), kept: Vec::new() });
    stage::build_and_enter(open.as_ref())?;
    Ok(Template { private, masked, working_dir, rootless })
}

/// Covers every hidden directory, and every one that a stranger may not enter and that we need something of.
fn cover_all(needs: &Needs, hidden: &BTreeSet<PathBuf>) -> Result<(), Failure> {
    let mut covered: BTreeSet<PathBuf> = BTreeSet::new();
    for _ in 0..MAX_ROUNDS {
        let is_forbidden = |path: &Path| !covered.contains(path) && (hidden.contains(path) || is_shut(path));
        let items: BTreeSet<Item> = wanted(needs, &is_forbidden).iter().flat_map(|path| walk(path)).collect();
        let mut forbidden: BTreeSet<PathBuf> =
            items.iter().filter_map(|item| outermost(item.path(), &is_forbidden)).collect();
        let visible = |path: &&PathBuf| !covered.contains(*path) && path.exists();
        forbidden.extend(
            hidden.iter().filter(visible).filter(|path| outermost(path, &is_forbidden).is_none()).cloned(),
        );
        if forbidden.is_empty() {
            break;
        }
        for directory in forbidden {
            let below =
                items.iter().filter(|item| item.path().starts_with(&directory) && item.path() != directory);
            cover::cover(&directory, below)?;
            covered.insert(directory);
        }
    }
    Ok(())
}

/// A directory of which every child has its own; in it stays what is left after the cover.
fn private_directory(path: &Path) -> PrivateDirectory {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let kept = entries.map(|entry| Kept {
        name: CString::new(entry.file_name().into_vec()).unwrap_or_default(),
        link: fs::read_link(entry.path()).ok().map(|target| text(&target)),
    });
    PrivateDirectory { path: text(path), kept: kept.collect() }
}

#[expect(unsafe_code, reason = "rustix cannot know what is shared")]
fn unshare(namespaces: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: only CLONE_FILES is the danger here, and it is not asked for.
    unsafe { unshare_unsafe(namespaces) }
}
