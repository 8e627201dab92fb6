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
use serde_json::json;

use crate::client::Interrupt;
use crate::client::companions::Companions;
use crate::config::{CHILD_PREFIX_V4, CHILD_PREFIX_V6, Pool};
use crate::error::{Error, FailAt, NetworkError, Step};
use crate::layer::Layer;
use crate::protocol::{ChildAddress, ChildNetwork};
use crate::sys::netlink::Netlink;

use super::IN_CHILD;
use super::judge::{connections, hosts, judge, limit, neighbours, networks, nobodys, sets, state};
use super::nft::{Table, Where, accepting, dropping, interface, matches, payload, refusing};
use super::pasta::Pasta;
use super::policy::Policy;
use super::program::find;

/// The table's name.
const TABLE: &str = "pyspawner";

/// The priority of filters.
const FILTER: i32 = 0;

/// Whether the caller must go this way. Root without its capabilities is told what it lacks: `pasta` would have to be root too, and that is
/// no program to give a stranger's packets.
pub(super) fn is_needed() -> bool {
    !geteuid().is_root()
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
    policy: Policy,
    host: Vec<IpNet>,
    lan: Vec<IpNet>,
}

impl Rootless {
    pub(super) fn new(pool: &Pool, policy: Policy, companions: &Arc<Companions>) -> Result<Self, Error> {
        let pasta = Pasta::find()?;
        find("nft").ok_or(NetworkError::NoNft)?;
        let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
        let mut host = netlink.own().fail_at(Layer::Network, Step::ListRoutes)?;
        let lan = networks(&netlink.addresses().fail_at(Layer::Network, Step::ListRoutes)?);
        let addresses = addresses(pool);
        // What is said to the gateway would go to whoever has its address on the host's side.
        host.extend(addresses.iter().map(|end| end.address.trunc()));
        Ok(Self { companions: Arc::clone(companions), pasta, addresses, policy, host, lan })
    }

    /// Makes it for a child that has no orders yet, and answers the child's half.
    pub(super) fn make(
        &self,
        pid: i32,
        pidfd: BorrowedFd<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<ChildNetwork, Error> {
        // First, so that there is no moment without it.
        self.make_firewall(pidfd)?;
        self.pasta.connect((pid, pidfd), IN_CHILD, &self.addresses, &self.companions, interrupt)?;
        Ok(ChildNetwork {
            interface: Some(IN_CHILD.to_owned()),
            addresses: self.addresses.clone(),
            ping: true,
        })
    }

    /// Makes the table in the child's network namespace.
    fn make_firewall(&self, pidfd: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let table = Table { name: TABLE, place: Where::Process(pidfd) };
        let has_v6 = self.addresses.iter().any(|end| end.gateway.is_ipv6());
        // How IPv6 finds the gateway; nobody is there but pasta.
        let discovery = json!({"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]});
        let discovery =
            has_v6.then(|| accepting(vec![matches("==", &payload("icmpv6", "type"), &discovery)]));
        let too_fast = self.policy.bandwidth.map(|bandwidth| dropping(vec![limit(bandwidth.get())]));

        let mut commands = vec![table.create()];
        commands.extend(sets(&table));
        commands.extend(hosts(&table, &self.host));
        commands.extend(neighbours(&table, &self.lan));
        commands.push(table.add_hook("from_child", "output", FILTER, "drop"));
        commands.push(table.add_hook("to_child", "input", FILTER, "drop"));
        let mut from_child = vec![accepting(vec![interface("oifname", "lo")])];
        from_child.extend(discovery.clone());
        from_child.extend(too_fast.clone());
        from_child.extend(nobodys());
        from_child.push(refusing(vec![state(&["new"]), connections()]));
        from_child.extend(judge(&self.policy));
        commands.extend(table.add_rules("from_child", &from_child));
        let mut to_child = vec![accepting(vec![interface("iifname", "lo")])];
        to_child.extend(discovery);
        to_child.extend(too_fast);
        to_child.push(accepting(vec![state(&["established", "related"])]));
        commands.extend(table.add_rules("to_child", &to_child));
        table.run(&commands)
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
