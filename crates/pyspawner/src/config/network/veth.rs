//! A veth pair whose names and addresses the caller chooses, and whose routes and firewall are the host's business.

use std::net::Ipv4Addr;

use crate::config::ConfigError;

/// Longest interface name, in bytes: `IFNAMSIZ` less its NUL.
const INTERFACE_NAME_MAX: usize = 15;

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
