//! What a caller may mount in a child's root.

use std::path::{Path, PathBuf};

use super::{ConfigError, check_inside, check_path};

/// The most that one child may have: what it mounts travels to it as descriptors.
pub const MAX_MOUNTS: u8 = 30;

/// The most bytes of all targets together: they travel in one message.
const MAX_TARGETS: usize = 8 * 1024;

/// The smallest filesystem in memory: one page.
const MIN_SIZE: u64 = 4096;

/// Something to be mounted in the child's root. A target is a path there; what is missing of it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// A file or directory of the host, with all that is mounted below it.
    Bind {
        /// Where it is on the host. Not a symbolic link.
        source: PathBuf,
        /// Where the child has it.
        target: PathBuf,
        /// Whether the child may write to it; what it writes belongs to the caller.
        writable: bool,
    },
    /// An empty directory in memory that the child may write to.
    Tmpfs {
        /// Where the child has it.
        target: PathBuf,
        /// The most bytes in it.
        size_bytes: u64,
        /// The most files and directories in it.
        max_inodes: u64,
    },
    /// A directory that the child may change while the original stays as it is.
    Overlay {
        /// Where the child has it.
        target: PathBuf,
        /// The most bytes of changes, in memory; unused with `upper`.
        size_bytes: u64,
        /// The original, a directory of the host; `None`: what `chroot_dir` has at `target`.
        lower: Option<PathBuf>,
        /// A directory of the host that keeps the changes; `None`: they vanish with the child.
        upper: Option<PathBuf>,
    },
    /// The child's own `/proc`.
    Proc {
        /// Where the child has it.
        target: PathBuf,
    },
    /// A minimal `/dev`.
    Dev {
        /// Where the child has it.
        target: PathBuf,
        /// Whether it has pseudoterminals.
        ptmx: bool,
    },
}

impl Mount {
    /// Where the child has it.
    #[must_use]
    pub fn target(&self) -> &Path {
        match self {
            Self::Bind { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Overlay { target, .. }
            | Self::Proc { target }
            | Self::Dev { target, .. } => target,
        }
    }

    fn check(&self, index: usize, in_chroot: bool) -> Result<(), ConfigError> {
        let field = |name: &str| format!("mounts[{index}].{name}");
        let wrong = |problem| Err(ConfigError::Mount { index, problem });
        check_inside(&field("target"), self.target())?;
        if self.target().parent().is_none() && !matches!(self, Self::Overlay { .. }) {
            return wrong("covers the whole root: only an Overlay may; for a bind, use chroot_dir");
        }
        match self {
            Self::Bind { source, .. } => check_path(&field("source"), source),
            Self::Tmpfs { size_bytes, max_inodes, .. } => {
                if *size_bytes < MIN_SIZE {
                    return wrong("has a size_bytes of less than a page (4096)");
                }
                if *max_inodes == 0 {
                    return wrong("has a max_inodes of 0: its own directory needs one");
                }
                Ok(())
            }
            Self::Overlay { size_bytes, lower, upper, .. } => {
                if upper.is_none() && *size_bytes < MIN_SIZE {
                    return wrong("has a size_bytes of less than a page (4096)");
                }
                if lower.is_none() && !in_chroot {
                    return wrong(
                        "is an Overlay without lower, and there is no chroot_dir: the child would become the owner of the host's own \
                         files. Name the directory to overlay as lower",
                    );
                }
                if lower.is_some() && self.target().parent().is_none() {
                    return wrong("is an Overlay of / with a lower: use chroot_dir, and no lower");
                }
                lower.as_ref().map_or(Ok(()), |path| check_path(&field("lower"), path))?;
                upper.as_ref().map_or(Ok(()), |path| check_path(&field("upper"), path))
            }
            Self::Proc { .. } | Self::Dev { .. } => Ok(()),
        }
    }
}

pub(super) fn validate(mounts: &[Mount], in_chroot: bool) -> Result<(), ConfigError> {
    let wrong = |problem| Err(ConfigError::Mount { index: MAX_MOUNTS.into(), problem });
    if mounts.len() > usize::from(MAX_MOUNTS) {
        return wrong("is one more than a child can have: 30");
    }
    for (index, mount) in mounts.iter().enumerate() {
        mount.check(index, in_chroot)?;
    }
    if mounts.iter().map(|mount| mount.target().as_os_str().len()).sum::<usize>() > MAX_TARGETS {
        return wrong("and those before it have targets of more than 8 KiB together");
    }
    Ok(())
}
