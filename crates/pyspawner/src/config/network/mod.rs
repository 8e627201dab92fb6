//! The child's network.

mod managed;
mod ranges;
mod rules;
mod veth;

pub use managed::ManagedNetwork;
pub(crate) use managed::{CHILD_PREFIX_V4, CHILD_PREFIX_V6, Managed, Pool};
pub use ranges::{
    GLOBAL_V6, INTERNAL_V4, INTERNAL_V6, NEVER_V4, NEVER_V6, embedded, internal_v4, internal_v6, is_public,
    never,
};
pub use rules::{Protocol, Rule, RuleError, Target};
pub use veth::NetworkConfig;

use super::ConfigError;

/// What network a child has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A `lo` that is up.
    Loopback,
    /// A veth pair, of which the host makes what it likes.
    Veth(NetworkConfig),
    /// A way to the Internet, with a firewall.
    Managed(ManagedNetwork),
}

impl Network {
    /// Checks what can be checked before anything is made.
    ///
    /// # Errors
    ///
    /// The first field that makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Loopback => Ok(()),
            Self::Veth(veth) => veth.validate(),
            Self::Managed(managed) => managed.read().map(drop),
        }
    }
}
