//! The way out of a child whose caller may set up nothing on the host: `pasta`, which opens the child's connections as the caller's user.
//!
//! So the firewall is in the child's own network namespace, where the child has no capability to change it; it is there before the way out
//! is. And the host is refused by its addresses: to `pasta` they are as good as any other. Every such child has the same addresses, because
//! nobody sees them but its own `pasta`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::process::geteuid;
use serde_json::{Value, json};

use crate::client::Interrupt;
use crate::client::companions::Companions;
use crate::config::{CHILD_PREFIX_V4, CHILD_PREFIX_V6, Pool};
use crate::error::{Error, FailAt, NetworkError, Step};
use crate::layer::Layer;
use crate::protocol::{ChildAddress, ChildNetwork};
use crate::sys::netlink::Netlink;

use super::IN_CHILD;
use super::judge::{judge, nobodys, sets};
use super::nft::{Where, run};
use super::pasta::Pasta;
use super::policy::Policy;
use super::program::find;
use super::table::{Table, accepting, dropping, interface, matches, over, payload, refusing};

/// Whether the caller must go this way: not root, or not root of its network namespace.
pub(super) fn is_needed() -> Result<bool, Error> {
    if !geteuid().is_root() {
        return Ok(true);
    }
    Ok(!Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?.may_change())
}

/// Of the pool, what the host can make something of: IPv6 only if it has a way out for it.
pub(super) fn usable(pool: Pool) -> Result<Pool, Error> {
    let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    let has_v6 = netlink.has_way_out_v6().fail_at(Layer::Network, Step::ListRoutes)?;
    Ok(Pool { v6: pool.v6.filter(|_| has_v6), ..pool })
}

/// A way out for one child, with all that can fail before there is a child.
#[derive(Debug)]
pub(super) struct Rootless {
    companions: Arc<Companions>,
    pasta: Pasta,
    pub(super) addresses: Vec<ChildAddress>,
    firewall: Vec<Value>,
}

impl Rootless {
    pub(super) fn new(pool: &Pool, policy: &Policy, companions: &Arc<Companions>) -> Result<Self, Error> {
        let pasta = Pasta::find()?;
        find("nft").ok_or(NetworkError::NoNft)?;
        let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
        let mut host = netlink.own().fail_at(Layer::Network, Step::ListRoutes)?;
        let addresses = addresses(pool);
        // What is said to the gateway would go to whoever has its address on the host's side.
        host.extend(addresses.iter().map(|end| end.address.trunc()));
        let firewall = firewall(policy, &host, pool.v6.is_some());
        Ok(Self { companions: Arc::clone(companions), pasta, addresses, firewall })
    }

    /// Makes it for a child that has no orders yet, and answers the child's half.
    pub(super) fn make(
        &self,
        pid: i32,
        pidfd: BorrowedFd<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<ChildNetwork, Error> {
        run(&self.firewall, Where::InChild(pidfd))?;
        self.pasta.connect((pid, pidfd), IN_CHILD, &self.addresses, &self.companions, interrupt)?;
        Ok(ChildNetwork {
            interface: Some(IN_CHILD.to_owned()),
            addresses: self.addresses.clone(),
            ping: true,
        })
    }
}

/// The first of a pool.
fn addresses(pool: &Pool) -> Vec<ChildAddress> {
    let v4 = pool.v4.network().to_bits();
    let v4 = Ipv4Net::new(Ipv4Addr::from_bits(v4 + 2), CHILD_PREFIX_V4)
        .map(|address| (IpNet::from(address), IpAddr::from(Ipv4Addr::from_bits(v4 + 1))));
    let v6 = pool.v6.map(|v6| v6.network().to_bits()).and_then(|v6| {
        let address = Ipv6Net::new(Ipv6Addr::from_bits(v6 + 2), CHILD_PREFIX_V6).ok()?;
        Some((IpNet::from(address), IpAddr::from(Ipv6Addr::from_bits(v6 + 1))))
    });
    v4.into_iter().chain(v6).map(|(address, gateway)| ChildAddress { address, gateway }).collect()
}

/// The table in the child's network namespace.
fn firewall(policy: &Policy, host: &[IpNet], ipv6: bool) -> Vec<Value> {
    let table = Table { name: "pyspawner".to_owned() };
    // Overlapping ones would be refused.
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
        IpNet::aggregate(&host.to_vec()).into_iter().partition(|network| network.addr().is_ipv4());
    let mut commands = vec![table.create()];
    commands.extend(sets(&table));
    commands.push(table.addresses("host4", &v4));
    commands.push(table.addresses("host6", &v6));
    commands.push(table.hook("from_child", "filter", "output", 0, "drop"));
    commands.push(table.hook("to_child", "filter", "input", 0, "drop"));

    let too_fast = || policy.bandwidth.map(|bandwidth| dropping(vec![over(bandwidth.get())]));
    // How IPv6 finds the gateway; nobody is there but pasta.
    let neighbours = matches(
        "==",
        &payload("icmpv6", "type"),
        &json!({"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]}),
    );
    let mut from_child = vec![accepting(vec![interface("oifname", "lo")])];
    if ipv6 {
        from_child.push(accepting(vec![neighbours.clone()]));
    }
    from_child.extend(too_fast());
    from_child.extend(nobodys());
    from_child.push(refusing(vec![matches("==", &payload("ip", "daddr"), &json!("@host4"))]));
    from_child.push(refusing(vec![matches("==", &payload("ip6", "daddr"), &json!("@host6"))]));
    from_child.extend(judge(policy));
    commands.extend(table.rules("from_child", &from_child));

    let is_answer =
        matches("==", &json!({"ct": {"key": "state"}}), &json!({"set": ["established", "related"]}));
    let mut to_child = vec![accepting(vec![interface("iifname", "lo")])];
    if ipv6 {
        to_child.push(accepting(vec![neighbours]));
    }
    to_child.extend(too_fast());
    to_child.push(accepting(vec![is_answer]));
    commands.extend(table.rules("to_child", &to_child));
    commands
}
