//! The caller's half of the layer `network`: makes a veth pair whose far end is born in the child's network namespace.

use ipnet::{IpNet, Ipv4Net};
use rustix::io::Errno;

use crate::config::NetworkConfig;
use crate::error::{Error, FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{ChildAddress, ChildNetwork};
use crate::sandbox::network::configure;
use crate::sys::netlink::{Neighbours, Netlink};

/// Both ends of a pair whose addresses the user chooses are in one /24.
const PREFIX: u8 = 24;

/// A pair to be made.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) near: &'a str,
    pub(super) far: &'a str,
    pub(super) near_addresses: Vec<IpNet>,
    pub(super) neighbours: Neighbours,
}

/// The caller's end of a pair that was made.
#[derive(Debug)]
pub(in crate::client) struct Veth {
    index: u32,
}

impl Plan<'_> {
    /// Deletes a stale veth of the same name, makes the pair with its far end in the network namespace of `pid`, and brings the near end up.
    /// A pair that was made is deleted again when something fails.
    pub(super) fn make(&self, pid: i32) -> Result<Veth, Failure> {
        let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
        delete_stale(&mut netlink, self.near)?;
        netlink
            .create_veth(self.near, self.far, pid.unsigned_abs(), self.neighbours)
            .fail_at(Layer::Network, Step::CreateVeth)?;
        let veth = Veth { index: netlink.index(self.near).fail_at(Layer::Network, Step::FindInterface)? };
        match configure(&mut netlink, veth.index, self.near_addresses.iter().copied()) {
            Ok(()) => Ok(veth),
            Err(failure) => {
                veth.remove();
                Err(failure)
            }
        }
    }
}

fn delete_stale(netlink: &mut Netlink, name: &str) -> Result<(), Failure> {
    let Some(stale) = netlink.find(name).fail_at(Layer::Network, Step::FindStaleInterface)? else {
        return Ok(());
    };
    // It may have been found by an alternative name.
    if !stale.is_veth || stale.name != name {
        return Err(Failure::new(Layer::Network, Step::DeleteStaleInterface, libc::EEXIST));
    }
    match netlink.delete(stale.index) {
        // It went by itself: the namespace of its other end has just been torn down.
        Err(Errno::NODEV) | Ok(()) => Ok(()),
        Err(errno) => Err(errno).fail_at(Layer::Network, Step::DeleteStaleInterface),
    }
}

impl Veth {
    /// Takes the pair back. It goes with the child's namespace anyway; this is at once.
    pub(in crate::client) fn remove(self) {
        if let Ok(mut netlink) = Netlink::open() {
            // What is gone already is as good as removed.
            let _ = netlink.delete(self.index);
        }
    }
}

/// The pair that a user has named, and the child's half of it.
pub(super) fn of_user(config: &NetworkConfig) -> Result<(Plan<'_>, ChildNetwork), Error> {
    let (gateway, address) = config.addresses()?;
    let network = |address| {
        Ipv4Net::new(address, PREFIX).map(IpNet::from).map_err(|_| Error::io("addresses")(Errno::INVAL))
    };
    let plan = Plan {
        near: &config.kernel_veth_name,
        far: &config.child_veth_name,
        near_addresses: vec![network(gateway)?],
        neighbours: Neighbours::Asked,
    };
    let half = ChildNetwork {
        interface: Some(config.child_veth_name.clone()),
        addresses: vec![ChildAddress { address: network(address)?, gateway: gateway.into() }],
        ping: false,
    };
    Ok((plan, half))
}
