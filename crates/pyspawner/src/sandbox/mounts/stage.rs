//! The stage: a small filesystem in memory that holds what children take from it on their way to their root, each thing in its place.
//!
//! It lies in the host's tree that the zygote has made harmless, under a cover. Zygote and newborn children have it as their working
//! directory, and so in reach; who leaves it does not find back. What the zygote has mounted is locked in the eyes of a child, whose
//! namespaces have less privilege: not even with every capability there can it lift the cover.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FileType;
use rustix::mount::{UnmountFlags, unmount};

use crate::config::MAX_MOUNTS;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;

use crate::sys::mount::Access;

use super::lock::attach_locked;
use super::rootless::mount_of;

/// Where it lies: a directory that every system has, and that children cover with something of their own.
pub(crate) const PLACE: &str = "/proc";

/// A `/proc` of the zygote's: a kernel gives a new one only to those who could see a whole one.
pub(crate) const PROC: &str = "proc";
/// Rootless: the host's tree as it is, to find in it what the caller has opened.
pub(crate) const OPEN: &str = "open";
/// Where a child puts its root together, if that is another than the one in which it is born.
pub(crate) const ROOT: &str = "root";
/// An empty directory, for a child's own use on its way.
pub(crate) const SCRATCH: &str = "scratch";
/// Two more, for an overlay's parts.
pub(crate) const LOWER: &str = "lower";
/// The other one.
pub(crate) const UPPER: &str = "upper";
/// What it holds covers what children may not see.
pub(crate) const MASK: &str = "mask";
/// An empty file in it.
pub(crate) const MASK_FILE: &str = "mask/file";
/// An empty directory in it.
pub(crate) const MASK_DIRECTORY: &str = "mask/directory";

/// How many trees a child can have: its root, and every mount.
pub(crate) const TREES: u8 = MAX_MOUNTS + 1;

/// Where the next child finds the tree of this number.
pub(crate) fn tree_path(number: u8, is_directory: bool) -> String {
    let kind = if is_directory { "tree" } else { "file" };
    format!("{kind}{number}")
}

/// The trees of the next clone, each in its place. Dropped, they are unmounted.
#[derive(Debug)]
pub(crate) struct Staged {
    places: Vec<String>,
}

/// Holds `trees`, read-only, where the next clone finds them.
///
/// # Errors
///
/// What the kernel refused. Nothing is left then.
pub(crate) fn stage(trees: &[OwnedFd], rootless: bool) -> Result<Staged, Failure> {
    let mut staged = Staged { places: Vec::new() };
    for (number, tree) in (0..).zip(trees) {
        let stat = rustix::fs::fstat(tree).fail_at(Layer::Mounts, Step::StageTree)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        let place = tree_path(number, is_directory);
        if rootless {
            attach_locked(&mount_of(tree, Access::ReadOnly)?, Path::new(&place))
        } else {
            attach_locked(tree, Path::new(&place))
        }
        .map_err(|failure| Failure { step: Step::StageTree, ..failure })?;
        staged.places.push(place);
    }
    Ok(staged)
}

impl Drop for Staged {
    fn drop(&mut self) {
        for place in &self.places {
            // The mount is there, and a lazy unmount has no reason to fail.
            let _ = unmount(place.as_str(), UnmountFlags::DETACH);
        }
    }
}
