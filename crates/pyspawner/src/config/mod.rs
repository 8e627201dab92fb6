//! What a caller may ask for. Knows nobody; checked before anything is made.

mod limits;
mod mounts;
mod network;

use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};

use crate::layer::Layer;

pub use limits::{CgroupUse, Limits};
pub use mounts::{MAX_MOUNTS, Mount};
pub(crate) use network::{CHILD_PREFIX_V4, CHILD_PREFIX_V6, Managed, Pool};
pub use network::{
    GLOBAL_V6, INTERNAL_V4, INTERNAL_V6, ManagedNetwork, NEVER_V4, NEVER_V6, Network, NetworkConfig,
    Protocol, Rule, RuleError, Target, embedded, internal_v4, internal_v6, is_public, never,
};

/// The uid and gid of user code inside the child's user namespace.
pub const CHILD_ID: u32 = 1000;

/// The optional layers: those that `skip_sandbox_except` can name.
pub const OPTIONAL_LAYERS: [Layer; 5] =
    [Layer::DropCapabilities, Layer::Setuid, Layer::NoNewPrivs, Layer::Landlock, Layer::Seccomp];

/// How to lock one child in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// The directory to become the child's read-only root, with nothing else in it; `None`: the host's tree, less what is private.
    pub chroot_dir: Option<PathBuf>,
    /// What to mount beside that, in this order.
    pub mounts: Vec<Mount>,
    /// The child's working directory in its root; `None`: the caller's, where the child can see it, else `/`.
    pub working_dir: Option<PathBuf>,
    /// Without `chroot_dir`: whether the child has a `/proc`.
    pub proc: bool,
    /// `false`: no namespaces, so no id map, network and mounts either; what Landlock and an own uid can do takes their place.
    pub namespaces: bool,
    /// The highest Landlock ABI to use, for tests.
    pub max_landlock_abi: Option<u8>,
    /// Without one the child has only a `lo` that is down.
    pub network: Option<Network>,
    /// What it may use.
    pub limits: Limits,
    /// When not empty, only the optional layers of these names are on.
    pub skip_sandbox_except: Vec<String>,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            chroot_dir: None,
            mounts: Vec::new(),
            working_dir: None,
            proc: true,
            namespaces: true,
            max_landlock_abi: None,
            network: None,
            limits: Limits::default(),
            skip_sandbox_except: Vec::new(),
        }
    }
}

impl SandboxConfig {
    /// The optional layers that this configuration switches on, in order.
    #[must_use]
    pub fn optional_layers(&self) -> Vec<Layer> {
        let named = |layer: &Layer| self.skip_sandbox_except.iter().any(|name| name == layer.name());
        OPTIONAL_LAYERS
            .into_iter()
            .filter(|layer| self.skip_sandbox_except.is_empty() || named(layer))
            .collect()
    }

    /// The uid and gid of user code inside the child's user namespace, under this configuration.
    #[must_use]
    pub fn child_id(&self) -> u32 {
        if self.optional_layers().contains(&Layer::Setuid) { CHILD_ID } else { 0 }
    }

    /// Checks what can be checked before anything is made.
    ///
    /// # Errors
    ///
    /// The first field that makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(path) = &self.chroot_dir {
            check_path("chroot_dir", path)?;
        }
        if let Some(path) = &self.working_dir {
            check_inside("working_dir", path)?;
        }
        if !self.namespaces {
            self.check_without_namespaces()?;
        }
        mounts::validate(&self.mounts, self.chroot_dir.is_some())?;
        self.limits.validate()?;
        self.network.as_ref().map_or(Ok(()), Network::validate)
    }
}

impl SandboxConfig {
    /// What needs namespaces cannot be had without.
    fn check_without_namespaces(&self) -> Result<(), ConfigError> {
        let needs = [
            ("chroot_dir", self.chroot_dir.is_some()),
            ("network", self.network.is_some()),
            ("mounts", !self.mounts.is_empty()),
            ("proc=False", !self.proc),
        ];
        match needs.iter().find(|(_, wanted)| *wanted) {
            Some((field, _)) => Err(ConfigError::NeedsNamespaces { field }),
            None => Ok(()),
        }
    }
}

/// A path that a system call can take.
fn check_path(field: &str, path: &Path) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let problem = if bytes.is_empty() {
        "is empty"
    } else if bytes.contains(&0) {
        "has a NUL byte"
    } else if bytes.len() >= PATH_MAX {
        "is longer than 4,095 bytes"
    } else {
        return Ok(());
    };
    Err(ConfigError::Path { field: field.to_owned(), path: path.to_owned(), problem })
}

/// A path in the child's root.
fn check_inside(field: &str, path: &Path) -> Result<(), ConfigError> {
    check_path(field, path)?;
    let problem = if !path.is_absolute() {
        "is not absolute: it is a path in the child's root, such as /data"
    } else if path.components().any(|component| component == Component::ParentDir) {
        "has a .. in it"
    } else {
        return Ok(());
    };
    Err(ConfigError::Path { field: field.to_owned(), path: path.to_owned(), problem })
}

/// The kernel's limit of a path, with its NUL.
const PATH_MAX: usize = 4096;

/// The most of a process name that ps can show, in bytes.
pub const PROCESS_NAME_MAX: usize = 1024;

/// What a child shows in ps and top when the caller gives it no name.
pub const DEFAULT_PROCESS_NAME: &str = "pyspawner-child";

/// The name for `comm` and the command line, cut to what can be shown.
///
/// # Errors
///
/// A name with a NUL byte, or an empty one.
pub fn process_name(name: &str) -> Result<&str, ConfigError> {
    if name.is_empty() || name.contains('\0') {
        return Err(ConfigError::ProcessName { name: name.to_owned() });
    }
    let mut end = name.len().min(PROCESS_NAME_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    Ok(&name[..end])
}

/// A configuration that makes no sense. Raised before anything is made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A path that makes no sense where it stands.
    #[error("{field} {path:?} {problem}")]
    Path {
        /// The field's name.
        field: String,
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Something that only namespaces can give.
    #[error("{field} needs namespaces, and this configuration is without_namespaces()")]
    NeedsNamespaces {
        /// The field's name.
        field: &'static str,
    },
    /// Children that would be in each other's way.
    #[error(
        "children of this configuration cannot be warm: an overlay with an upper, or a veth pair of a given name, is for one at a time"
    )]
    NotParkable,
    /// A mount that makes no sense.
    #[error("mounts[{index}] {problem}")]
    Mount {
        /// Its place in the tuple.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name that the kernel would refuse.
    #[error("{field} {name:?} {problem}")]
    InterfaceName {
        /// The field's name.
        field: &'static str,
        /// The name as given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Both ends have one name.
    #[error("kernel_veth_name and child_veth_name are both {name:?}: the two ends need different names")]
    SameName {
        /// The name as given.
        name: String,
    },
    /// An address that no host can have.
    #[error("{field} {text:?} {problem}")]
    Address {
        /// The field's name.
        field: &'static str,
        /// The address as given.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The two ends could not reach each other.
    #[error(
        "kernel_ipv4_address {kernel} and child_ipv4_address {child} are in different /24 networks: make the first three bytes equal"
    )]
    DifferentNetworks {
        /// The caller's end.
        kernel: Ipv4Addr,
        /// The child's end.
        child: Ipv4Addr,
    },
    /// Both ends have one address.
    #[error("kernel_ipv4_address and child_ipv4_address are both {address}")]
    SameAddress {
        /// The address as given.
        address: Ipv4Addr,
    },
    /// A rule for the network that cannot be read.
    #[error("{field}[{index}] {text:?}: {error}")]
    Rule {
        /// The field's name: `allow` or `deny`.
        field: &'static str,
        /// Its place in the tuple.
        index: usize,
        /// The rule as given.
        text: String,
        /// What is wrong with it, and where.
        error: RuleError,
    },
    /// A field that makes no sense.
    #[error("{field} {problem}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that `comm` cannot hold.
    #[error("process_name {name:?} is empty or has a NUL byte")]
    ProcessName {
        /// The name as given.
        name: String,
    },
}
