//! The child's network.

mod veth;

pub use veth::NetworkConfig;
