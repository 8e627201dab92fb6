//! What a caller may ask for. Knows nobody; checked before anything is made.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::layer::Layer;

/// The uid and gid of user code inside the child's user namespace.
pub const CHILD_ID: u32 = 1000;

/// Longest interface name, in bytes: `IFNAMSIZ` less its NUL.
const INTERFACE_NAME_MAX: usize = 15;

/// The optional layers: those that `skip_sandbox_except` can name.
pub const OPTIONAL_LAYERS: [Layer; 4] =
    [Layer::DropCapabilities, Layer::Setuid, Layer::NoNewPrivs, Layer::Seccomp];

/// How to lock one child in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxConfig {
    /// The directory to become the child's read-only root.
    pub chroot_dir: Option<PathBuf>,
    /// A veth pair; without it the child has only a `lo` that is down.
    pub network: Option<NetworkConfig>,
    /// When not empty, only the optional layers of these names are on.
    pub skip_sandbox_except: Vec<String>,
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
            if path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().contains(&0) {
                return Err(ConfigError::ChrootDir { path: path.clone() });
            }
        }
        self.network.as_ref().map_or(Ok(()), NetworkConfig::validate)
    }
}

/// A veth pair between the caller's network namespace and the child's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The interface's name on the caller's side.
    pub kernel_veth_name: String,
    /// The interface's name in the child.
    pub child_veth_name: String,
    /// The address of the caller's end, and the child's default gateway.
    pub kernel_ipv4_address: String,
    /// The address of the child's end, in the same /24.
    pub child_ipv4_address: String,
}

impl NetworkConfig {
    /// Both addresses, parsed: the kernel's, then the child's.
    ///
    /// # Errors
    ///
    /// An address that is malformed, is not a host's, or is not in the other's /24.
    pub fn addresses(&self) -> Result<(Ipv4Addr, Ipv4Addr), ConfigError> {
        let kernel = host_address("kernel_ipv4_address", &self.kernel_ipv4_address)?;
        let child = host_address("child_ipv4_address", &self.child_ipv4_address)?;
        if kernel.octets()[..3] != child.octets()[..3] {
            return Err(ConfigError::DifferentNetworks { kernel, child });
        }
        if kernel == child {
            return Err(ConfigError::SameAddress { address: kernel });
        }
        Ok((kernel, child))
    }

    /// Checks names and addresses.
    ///
    /// # Errors
    ///
    /// The first field that makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_interface_name("kernel_veth_name", &self.kernel_veth_name)?;
        check_interface_name("child_veth_name", &self.child_veth_name)?;
        if self.kernel_veth_name == self.child_veth_name {
            return Err(ConfigError::SameName { name: self.kernel_veth_name.clone() });
        }
        self.addresses().map(drop)
    }
}

/// As the kernel's `dev_valid_name` has it, and `lo` is taken in every namespace.
fn check_interface_name(field: &'static str, name: &str) -> Result<(), ConfigError> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > INTERFACE_NAME_MAX {
        "is longer than 15 bytes"
    } else if name == "lo" || name == "." || name == ".." {
        "is reserved"
    } else if name.bytes().any(|byte| {
        matches!(byte, b'/' | b':' | b'%' | 0) || byte.is_ascii_whitespace() || byte.is_ascii_control()
    }) {
        "has a character that interface names cannot have"
    } else {
        return Ok(());
    };
    Err(ConfigError::InterfaceName { field, name: name.to_owned(), problem })
}

fn host_address(field: &'static str, text: &str) -> Result<Ipv4Addr, ConfigError> {
    let error = |problem| ConfigError::Address { field, text: text.to_owned(), problem };
    let address: Ipv4Addr =
        text.parse().map_err(|_| error("is not an IPv4 address such as 192.168.123.1"))?;
    match address.octets() {
        [0 | 127 | 224..=255, ..] => Err(error("is not an address that a host can have")),
        [.., 0] => Err(error("is the network's own address (the last byte is 0)")),
        [.., 255] => Err(error("is the network's broadcast address (the last byte is 255)")),
        _ => Ok(address),
    }
}

/// The most of a process name that ps can show, in bytes.
pub const PROCESS_NAME_MAX: usize = 1024;

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
    /// A path that no directory can have.
    #[error("chroot_dir {path:?} is empty or has a NUL byte")]
    ChrootDir {
        /// The path as given.
        path: PathBuf,
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
    /// A name that `comm` cannot hold.
    #[error("process_name {name:?} is empty or has a NUL byte")]
    ProcessName {
        /// The name as given.
        name: String,
    },
}
