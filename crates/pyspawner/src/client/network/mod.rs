//! The caller's half of the layer `network`.
//!
//! A managed child takes a place in a block of addresses (`block.rs`), to which a table of the firewall belongs (`firewall.rs`) that has its
//! policy (`policy.rs`). Its veth pair is all that is made for it alone (`veth.rs`). A caller that is not root has another way
//! (`rootless.rs`), with the same rules (`judge.rs`).

mod block;
mod conntrack;
mod firewall;
mod judge;
mod nft;
mod pasta;
mod policy;
mod program;
mod rootless;
mod table;
mod veth;

use std::collections::VecDeque;
use std::fs;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::stat;

use crate::config::{Managed, Network, Pool};
use crate::error::{Error, NetworkError};
use crate::protocol::{ChildAddress, ChildNetwork, FileOrder};
use crate::sys::netlink::Neighbours;

use super::companions::Companions;
use super::{Interrupt, lock};
use block::Block;
use firewall::Firewall;
use policy::{Policy, resolve};
use rootless::Rootless;
use veth::{Plan, Veth};

/// The name of a managed child's interface, for it.
const IN_CHILD: &str = "eth0";

/// How many policies that no living child has are kept for the next one.
const SPARE_POLICIES: usize = 32;

/// The managed networks of a Client.
#[derive(Debug)]
pub(super) struct Networks {
    egresses: Mutex<Vec<Arc<Egress>>>,
    companions: Arc<Companions>,
}

/// What a child's network is to be, with all that can fail before there is a child.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    network: &'a Network,
    /// Of a managed one.
    way: Option<Way>,
    /// What the child is to find in its root.
    pub(super) files: Vec<FileOrder>,
}

/// A managed child's way out.
#[derive(Debug)]
enum Way {
    /// Through the host's network, which root can set up.
    Host(Place),
    /// Through sockets of the caller's user.
    Rootless(Rootless),
}

impl Networks {
    pub(super) fn new(companions: Companions) -> Self {
        Self { egresses: Mutex::default(), companions: Arc::new(companions) }
    }

    /// Prepares a child's network.
    pub(super) fn prepare<'a>(&self, network: &'a Network) -> Result<Prepared<'a>, Error> {
        let Network::Managed(managed) = network else {
            return Ok(Prepared { network, way: None, files: Vec::new() });
        };
        let mut managed = managed.read()?;
        let is_rootless = rootless::is_needed()?;
        if is_rootless {
            managed.pool = rootless::usable(managed.pool)?;
        }
        let resolved = resolve(&managed)?;
        let way = if is_rootless {
            Way::Rootless(Rootless::new(&managed.pool, &resolved.policy, &self.companions)?)
        } else {
            Way::Host(Egress::place(&self.egress(&managed)?, resolved.policy)?)
        };
        Ok(Prepared { network, way: Some(way), files: resolved.files })
    }

    /// Cuts off the children that live, and takes away everything.
    pub(super) fn close(&self) {
        for egress in lock(&self.egresses).drain(..) {
            egress.close();
        }
        self.companions.end_all();
    }

    /// The one of this pool, in the network namespace of the calling thread.
    fn egress(&self, managed: &Managed) -> Result<Arc<Egress>, Error> {
        check_forwarding(&managed.pool)?;
        let namespace = own_namespace()?;
        let mut egresses = lock(&self.egresses);
        let found =
            egresses.iter().find(|egress| egress.pool == managed.pool && egress.namespace == namespace);
        if let Some(found) = found {
            return Ok(Arc::clone(found));
        }
        firewall::sweep()?;
        let block = Block::take(&managed.pool)?;
        let firewall = Firewall::make(&block)?;
        let state = State { free: (0..block.children()).collect(), ..State::default() };
        let egress = Egress {
            pool: managed.pool,
            namespace,
            owner: std::process::id(),
            block,
            firewall,
            state: Mutex::new(state),
        };
        egresses.push(Arc::new(egress));
        Ok(Arc::clone(&egresses[egresses.len() - 1]))
    }
}

impl Prepared<'_> {
    /// Makes the caller's half for a child, and answers the child's.
    pub(super) fn make(
        &self,
        pid: i32,
        pidfd: BorrowedFd<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<(Option<Veth>, ChildNetwork), Error> {
        match (self.network, &self.way) {
            (Network::Veth(config), _) => {
                let (plan, half) = veth::of_user(config)?;
                Ok((Some(plan.make(pid)?), half))
            }
            (_, Some(Way::Host(place))) => {
                let (veth, half) = place.make(pid)?;
                Ok((Some(veth), half))
            }
            (_, Some(Way::Rootless(rootless))) => Ok((None, rootless.make(pid, pidfd, interrupt)?)),
            _ => Ok((None, ChildNetwork::default())),
        }
    }

    /// What the child keeps for as long as it lives.
    pub(super) fn into_place(self) -> Option<Place> {
        match self.way {
            Some(Way::Host(place)) => Some(place),
            _ => None,
        }
    }

    /// In words.
    pub(super) fn describe(&self) -> String {
        match (self.network, &self.way) {
            (Network::Veth(network), _) => format!(
                "veth pair {} {} and {} {}",
                network.kernel_veth_name,
                network.kernel_ipv4_address,
                network.child_veth_name,
                network.child_ipv4_address
            ),
            (Network::Managed(managed), Some(way)) => {
                let (addresses, by) = match way {
                    Way::Host(place) => (place.addresses(), place.interface.as_str()),
                    Way::Rootless(rootless) => (rootless.addresses.clone(), "pasta"),
                };
                let addresses: Vec<_> = addresses.iter().map(|end| end.address.addr().to_string()).collect();
                let reach = if managed.allow.is_empty() {
                    "the public Internet".to_owned()
                } else {
                    managed.allow.join(" ")
                };
                let less = if managed.deny.is_empty() {
                    String::new()
                } else {
                    format!(", less {}", managed.deny.join(" "))
                };
                format!("{} by {by}: {reach}{less}", addresses.join(" and "))
            }
            _ => "only a lo, which is up".to_owned(),
        }
    }
}

/// A way out for the children of one Client.
#[derive(Debug)]
struct Egress {
    pool: Pool,
    namespace: (u64, u64),
    /// A process that was forked off the caller has a copy of this, and nothing to do with it.
    owner: u32,
    block: Block,
    firewall: Firewall,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The longest free first: what the kernel may still remember of the last child there is as old as can be.
    free: VecDeque<u16>,
    /// By number.
    policies: Vec<Option<InUse>>,
    is_closed: bool,
}

/// A policy that the firewall has.
#[derive(Debug)]
struct InUse {
    policy: Policy,
    children: usize,
}

impl Egress {
    fn place(egress: &Arc<Self>, policy: Policy) -> Result<Place, Error> {
        let mut state = lock(&egress.state);
        if state.is_closed {
            return Err(Error::Closed);
        }
        let child = *state.free.front().ok_or(NetworkError::Exhausted {
            pool: egress.block.v4.to_string(),
            children: egress.block.children(),
        })?;
        let policy = state.admit(policy, &egress.firewall)?;
        state.free.pop_front();
        let interface = egress.firewall.interface(policy, child);
        Ok(Place { egress: Arc::clone(egress), child, policy, interface })
    }

    fn close(&self) {
        let was_closed = std::mem::replace(&mut lock(&self.state).is_closed, true);
        if !was_closed && std::process::id() == self.owner {
            // What cannot be taken away here is swept by the next one. The interfaces go first, in any case.
            let _ = self.firewall.remove();
        }
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    /// The number of a policy; the firewall has it then.
    fn admit(&mut self, policy: Policy, firewall: &Firewall) -> Result<u8, NetworkError> {
        let known =
            self.policies.iter().position(|slot| slot.as_ref().is_some_and(|used| used.policy == policy));
        let index = match known {
            Some(index) => index,
            None => self.add(policy, firewall)?,
        };
        if let Some(used) = &mut self.policies[index] {
            used.children += 1;
        }
        // There is a child at least for each, and for the spare ones, and of these there are fewer than 256.
        Ok(u8::try_from(index).unwrap_or(u8::MAX))
    }

    fn add(&mut self, policy: Policy, firewall: &Firewall) -> Result<usize, NetworkError> {
        let spare = |slot: &Option<InUse>| slot.as_ref().is_some_and(|used| used.children == 0);
        let most = usize::from(u8::MAX) + 1;
        let is_full = self.policies.len() == most
            || self.policies.iter().filter(|slot| spare(slot)).count() >= SPARE_POLICIES;
        let oldest = if is_full { self.policies.iter().position(spare) } else { None };
        let index = match oldest {
            Some(index) => index,
            None => self.policies.iter().position(Option::is_none).unwrap_or(self.policies.len()),
        };
        if index == self.policies.len() {
            self.policies.push(None);
        }
        let number = |index: usize| u8::try_from(index).unwrap_or(u8::MAX);
        let before = self.policies[index].replace(InUse { policy, children: 0 });
        let all: Vec<(u8, &Policy)> = self
            .policies
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| Some((number(index), &slot.as_ref()?.policy)))
            .collect();
        let new = all.iter().find(|(other, _)| *other == number(index)).copied();
        let changed = match new {
            Some(new) => firewall.change(&all, new, before.as_ref().map(|_| number(index))),
            None => Ok(()),
        };
        if let Err(error) = changed {
            self.policies[index] = before;
            return Err(error);
        }
        Ok(index)
    }
}

/// A child's place in a block. Dropped, it is free for a later child.
#[derive(Debug)]
pub(super) struct Place {
    egress: Arc<Egress>,
    child: u16,
    policy: u8,
    interface: String,
}

impl Place {
    fn addresses(&self) -> Vec<ChildAddress> {
        self.egress.block.addresses(self.child)
    }

    fn make(&self, pid: i32) -> Result<(Veth, ChildNetwork), Error> {
        let addresses = self.addresses();
        let near =
            addresses.iter().filter_map(|end| ipnet::IpNet::new(end.gateway, end.address.prefix_len()).ok());
        let plan = Plan {
            near: &self.interface,
            far: IN_CHILD,
            near_addresses: near.collect(),
            neighbours: Neighbours::Known,
        };
        let veth = plan.make(pid)?;
        Ok((veth, ChildNetwork { interface: Some(IN_CHILD.to_owned()), addresses, ping: true }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::process::id() != self.egress.owner {
            return;
        }
        for end in self.addresses() {
            conntrack::forget(end.address.addr());
        }
        let mut state = lock(&self.egress.state);
        state.free.push_back(self.child);
        if let Some(Some(used)) = state.policies.get_mut(usize::from(self.policy)) {
            used.children -= 1;
        }
    }
}

/// Without it every packet would be lost.
fn check_forwarding(pool: &Pool) -> Result<(), NetworkError> {
    let is_on = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
    if !is_on("/proc/sys/net/ipv4/ip_forward") {
        return Err(NetworkError::NotForwarding);
    }
    if pool.v6.is_some() && !is_on("/proc/sys/net/ipv6/conf/all/forwarding") {
        return Err(NetworkError::NotForwardingV6);
    }
    Ok(())
}

/// The network namespace of the calling thread: device and inode.
fn own_namespace() -> Result<(u64, u64), Error> {
    let stat = stat("/proc/thread-self/ns/net").map_err(Error::io("stat"))?;
    Ok((stat.st_dev, stat.st_ino))
}
