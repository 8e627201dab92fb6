//! Layer `network`: a `lo` that is down; or one that is up; or that and one end of a veth pair.
//!
//! This is the child's half. The caller's makes the pair with one end in the child's network namespace: `client/network`.

use ipnet::IpNet;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::config::CHILD_ID;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::ChildNetwork;
use crate::sys::netlink::Netlink;

use super::mounts::stage;

/// The child's half. Without a network there is nothing to do: a new namespace has only a `lo` that is down.
///
/// # Errors
///
/// What the kernel's netlink refused.
pub fn enter(network: Option<&ChildNetwork>) -> Result<(), Failure> {
    let Some(network) = network else { return Ok(()) };
    let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    let loopback = netlink.index("lo").fail_at(Layer::Network, Step::FindInterface)?;
    netlink.up(loopback).fail_at(Layer::Network, Step::LinkUp)?;
    if let Some(interface) = &network.interface {
        let index = netlink.index(interface).fail_at(Layer::Network, Step::FindInterface)?;
        configure(&mut netlink, index, network.addresses.iter().map(|end| end.address))?;
        for end in &network.addresses {
            netlink.add_default_route(end.gateway).fail_at(Layer::Network, Step::AddRoute)?;
        }
    }
    if network.ping {
        // Where the kernel refuses it a /proc, the child cannot ping: it will be told.
        let _ = allow_ping();
    }
    Ok(())
}

/// Gives an interface its addresses, and no other, and brings it up. Both halves do so.
///
/// # Errors
///
/// What the kernel's netlink refused.
pub(crate) fn configure(
    netlink: &mut Netlink,
    index: u32,
    addresses: impl Iterator<Item = IpNet>,
) -> Result<(), Failure> {
    netlink.without_link_local_address(index).fail_at(Layer::Network, Step::AddAddress)?;
    for address in addresses {
        netlink.add_address(index, address).fail_at(Layer::Network, Step::AddAddress)?;
    }
    netlink.up(index).fail_at(Layer::Network, Step::LinkUp)
}

/// Lets user code open sockets for ICMP echo: the range of gids, which is empty in a new namespace, is the child's own. See icmp(7).
fn allow_ping() -> rustix::io::Result<()> {
    // Whose /proc it is does not matter here: the namespace is that of whoever writes.
    let path = format!("{}/sys/net/ipv4/ping_group_range", stage::PROC);
    let range = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&range, format!("{CHILD_ID} {CHILD_ID}").as_bytes()).map(drop)
}
