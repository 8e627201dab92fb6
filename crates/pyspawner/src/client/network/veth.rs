//! A veth pair that the user has named: its far end is born in the child's network namespace.

use ipnet::{IpNet, Ipv4Net};

use crate::config::NetworkConfig;
use crate::error::{Error, FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{ChildAddress, ChildNetwork};
use crate::sandbox::network::configure;
use crate::sys::netlink::{Neighbours, Netlink, Place};

/// Both ends are in one /24.
const PREFIX: u8 = 24;

/// The caller's end of a pair that was made.
#[derive(Debug)]
pub(super) struct Veth {
    index: u32,
    name: String,
}

impl Veth {
    /// Deletes a stale veth of the same name, makes the pair with its far end in the network namespace of `pid`, and brings the near end up.
    /// Answers the child's half too. A pair that was made is deleted again when something fails.
    pub(super) fn make(config: &NetworkConfig, pid: i32) -> Result<(Self, ChildNetwork), Error> {
        let (gateway, address) = config.addresses()?;
        let network = |address| Ipv4Net::new_assert(address, PREFIX).into();
        let (near, far) = (&config.kernel_veth_name, &config.child_veth_name);
        let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
        delete_stale(&mut netlink, near)?;
        netlink
            .create_veth(near, far, Place::Process(pid.unsigned_abs()), Neighbours::Asked)
            .fail_at(Layer::Network, Step::CreateVeth)?;
        let index = netlink.index(near).fail_at(Layer::Network, Step::FindInterface)?;
        let veth = Self { index, name: near.clone() };
        let near_address: IpNet = network(gateway);
        if let Err(failure) = configure(&mut netlink, veth.index, [near_address].into_iter()) {
            veth.remove();
            return Err(failure.into());
        }
        let half = ChildNetwork {
            interface: Some(far.clone()),
            addresses: vec![ChildAddress { address: network(address), gateway: gateway.into() }],
            ping: false,
        };
        Ok((veth, half))
    }

    /// Waits until it can be used, when the child has brought its end up.
    pub(super) fn settle(&self) {
        if let Ok(mut netlink) = Netlink::open() {
            netlink.settle(&self.name);
        }
    }

    /// Takes the pair back. It goes with the child's namespace anyway; this is at once.
    pub(super) fn remove(&self) {
        if let Ok(mut netlink) = Netlink::open() {
            // It is tried; the kernel does it in any case.
            let _ = netlink.delete(self.index);
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
    netlink.delete(stale.index).fail_at(Layer::Network, Step::DeleteStaleInterface)
}
