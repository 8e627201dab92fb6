//! The caller's half of the layer `network`.
//!
//! A managed child takes a place in a block of addresses (`block.rs`) behind a router of its Client's (`router.rs`), which judges what it
//! sends (`firewall.rs`) by its policy (`policy.rs`). Its veth pair is all that is made for it alone. A caller that is not root has another
//! way out (`rootless.rs`), with the same judge (`judge.rs`).

mod block;
mod conntrack;
mod firewall;
mod judge;
mod nft;
mod pasta;
mod policy;
mod program;
mod rootless;
mod router;
mod veth;

use std::collections::VecDeque;
use std::fs;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::fs::stat;

use crate::config::{Managed, Network, Pool};
use crate::error::{Error, FailAt, NetworkError, Step};
use crate::layer::Layer;
use crate::protocol::{ChildAddress, ChildNetwork, FileOrder};
use crate::sys::netlink::Netlink;

use super::companions::Companions;
use super::{Interrupt, lock};
use block::Block;
use policy::{Policy, resolve};
use rootless::Rootless;
use router::Router;
use veth::Veth;

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
    /// Of one that the user has named, when it is made.
    veth: Option<Veth>,
    /// What the child is to find in its root.
    pub(super) files: Vec<FileOrder>,
}

/// A managed child's way out.
#[derive(Debug)]
enum Way {
    /// Through a router of its Client's, which only root can make.
    Routed(Place),
    /// Through sockets of the caller's user.
    Rootless(Rootless),
}

impl Networks {
    pub(super) fn new(companions: Arc<Companions>) -> Self {
        Self { egresses: Mutex::default(), companions }
    }

    /// Prepares a child's network.
    pub(super) fn prepare<'a>(&self, network: &'a Network) -> Result<Prepared<'a>, Error> {
        let Network::Managed(managed) = network else {
            return Ok(Prepared { network, way: None, veth: None, files: Vec::new() });
        };
        let mut managed = managed.read()?;
        let is_rootless = rootless::is_needed();
        if is_rootless {
            managed.pool = rootless::usable(managed.pool)?;
        }
        let resolved = resolve(&managed)?;
        let way = if is_rootless {
            Way::Rootless(Rootless::new(&managed.pool, resolved.policy, &self.companions)?)
        } else {
            Way::Routed(Egress::place(&self.egress(&managed)?, resolved.policy)?)
        };
        Ok(Prepared { network, way: Some(way), veth: None, files: resolved.files })
    }

    /// Cuts off the children that live, and takes away everything.
    pub(super) fn close(&self) {
        for egress in lock(&self.egresses).drain(..) {
            egress.close();
        }
        self.companions.end_all();
    }

    /// Closes what a process has of it that was forked off the caller.
    pub(super) fn forget(&self) {
        self.companions.forget();
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
        let egress = Arc::new(Egress::make(managed.pool, namespace)?);
        egresses.push(Arc::clone(&egress));
        Ok(egress)
    }
}

impl Prepared<'_> {
    /// Makes the caller's half for a child, and answers the child's.
    pub(super) fn make(
        &mut self,
        pid: i32,
        pidfd: BorrowedFd<'_>,
        interrupt: Interrupt<'_>,
    ) -> Result<ChildNetwork, Error> {
        match (self.network, &self.way) {
            (Network::Veth(config), _) => {
                let (veth, half) = Veth::make(config, pid)?;
                self.veth = Some(veth);
                Ok(half)
            }
            (_, Some(Way::Routed(place))) => place.make(pid),
            (_, Some(Way::Rootless(rootless))) => rootless.make(pid, pidfd, interrupt),
            _ => Ok(ChildNetwork::default()),
        }
    }

    /// Waits until what the child sends can be answered. It has brought its end up.
    pub(super) fn settle(&self) {
        if let Some(veth) = &self.veth {
            veth.settle();
        }
        if let Some(Way::Routed(place)) = &self.way {
            place.egress.router.settle(&place.interface);
        }
    }

    /// Takes it back, for a child that did not come to life. It would vanish with the child's namespace, some time later.
    pub(super) fn undo(&self) {
        if let Some(veth) = &self.veth {
            veth.remove();
        }
        if let Some(Way::Routed(place)) = &self.way {
            place.egress.router.remove_child(&place.interface);
        }
    }

    /// What the child keeps for as long as it lives.
    pub(super) fn into_place(self) -> Option<Place> {
        match self.way {
            Some(Way::Routed(place)) => Some(place),
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
                    Way::Routed(place) => (place.addresses(), place.egress.router.uplink()),
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
    router: Router,
    state: Mutex<State>,
    /// Apart, so that the end of a child waits for nobody's spawn.
    leaving: Mutex<Vec<Leaving>>,
}

/// A child that has ended, and whose place is free when its interface has gone. Mostly that goes with the child's namespace; but what the
/// child has sent and nobody has taken keeps that alive for minutes.
#[derive(Debug)]
struct Leaving {
    child: u16,
    policy: u8,
    interface: String,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// Places that no child has had.
    fresh: Range<u16>,
    /// Those of former children, the longest free first.
    free: VecDeque<u16>,
    /// By number.
    policies: Vec<Option<InUse>>,
    /// How many policies have been asked for.
    asked: u64,
    /// What the router knows of them.
    addresses_of_host: Vec<IpNet>,
    is_closed: bool,
}

/// A policy that the firewall has.
#[derive(Debug)]
struct InUse {
    policy: Policy,
    children: usize,
    last_asked: u64,
}

impl Egress {
    fn make(pool: Pool, namespace: (u64, u64)) -> Result<Self, Error> {
        sweep()?;
        let block = Block::take(&pool)?;
        let router = Router::make(&block)?;
        let state = State { fresh: block.children(), ..State::default() };
        // From here on dropped, it takes everything back.
        let egress = Self {
            pool,
            namespace,
            owner: std::process::id(),
            block,
            router,
            state: Mutex::new(state),
            leaving: Mutex::default(),
        };
        firewall::make_judge(&egress.router, &egress.block)?;
        firewall::make_way_out(&egress.router, &egress.block)?;
        Ok(egress)
    }

    fn place(egress: &Arc<Self>, policy: Policy) -> Result<Place, Error> {
        let mut state = lock(&egress.state);
        if state.is_closed {
            return Err(Error::Closed);
        }
        egress.settle(&mut state)?;
        let child = state.take(&egress.router).ok_or(NetworkError::Exhausted {
            pool: egress.block.v4.to_string(),
            children: egress.block.children().len(),
        })?;
        let admitted =
            state.look_at_host(&egress.router).and_then(|()| Ok(state.admit(policy, &egress.router)?));
        let policy = match admitted {
            Ok(policy) => policy,
            Err(error) => {
                state.free.push_front(child);
                return Err(error);
            }
        };
        let interface = firewall::interface_of(policy, child);
        Ok(Place { egress: Arc::clone(egress), child, policy, interface })
    }

    /// Frees the places of those who have left. To delete an interface takes longer than a spawn, so it is done only where it must be.
    fn settle(&self, state: &mut State) -> Result<(), Error> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let mut leaving = lock(&self.leaving);
        if leaving.is_empty() {
            return Ok(());
        }
        let present = self.router.interfaces()?;
        for one in std::mem::take(&mut *leaving) {
            if present.contains(&one.interface) {
                if state.has_room() && one.since.elapsed() < PATIENCE {
                    leaving.push(one);
                    continue;
                }
                self.router.remove_child(&one.interface);
            }
            state.free.push_back(one.child);
            if let Some(Some(used)) = state.policies.get_mut(usize::from(one.policy)) {
                used.children -= 1;
            }
        }
        Ok(())
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        let was_closed = std::mem::replace(&mut state.is_closed, true);
        if !was_closed && std::process::id() == self.owner {
            // First the way, then its rules. Of these, what cannot be taken away is swept by the next one.
            self.router.disconnect();
            let _ = firewall::remove_way_out(&self.block.tag(), Some(self.router.host()));
            self.block.unlock();
        }
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    fn has_room(&self) -> bool {
        !self.fresh.is_empty() || !self.free.is_empty()
    }

    /// A place. What the kernel remembers of a former child there is forgotten now and not before: it looks through all that it remembers.
    fn take(&mut self, router: &Router) -> Option<u16> {
        self.fresh.next().or_else(|| self.free.pop_front().inspect(|child| router.forget(*child)))
    }

    /// Tells the router what addresses the host has by now.
    fn look_at_host(&mut self, router: &Router) -> Result<(), Error> {
        let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
        let addresses = netlink.addresses().fail_at(Layer::Network, Step::ListRoutes)?;
        if addresses != self.addresses_of_host {
            firewall::tell_addresses_of_host(router, &addresses)?;
            self.addresses_of_host = addresses;
        }
        Ok(())
    }

    /// The number of a policy; the router has it then.
    fn admit(&mut self, policy: Policy, router: &Router) -> Result<u8, NetworkError> {
        let known =
            self.policies.iter().position(|slot| slot.as_ref().is_some_and(|used| used.policy == policy));
        let index = match known {
            Some(index) => index,
            None => self.add(policy, router)?,
        };
        self.asked += 1;
        if let Some(used) = &mut self.policies[index] {
            used.children += 1;
            used.last_asked = self.asked;
        }
        // There is a child at least for each, and for the spare ones, and of these there are fewer than 256.
        Ok(u8::try_from(index).unwrap_or(u8::MAX))
    }

    fn add(&mut self, policy: Policy, router: &Router) -> Result<usize, NetworkError> {
        let spare = |slot: &Option<InUse>| slot.as_ref().is_some_and(|used| used.children == 0);
        let most = usize::from(u8::MAX) + 1;
        let is_full = self.policies.len() == most
            || self.policies.iter().filter(|slot| spare(slot)).count() >= SPARE_POLICIES;
        let oldest = || {
            let spares = self.policies.iter().enumerate().filter(|(_, slot)| spare(slot));
            spares.min_by_key(|(_, slot)| slot.as_ref().map(|used| used.last_asked)).map(|(index, _)| index)
        };
        let oldest = if is_full { oldest() } else { None };
        let index = match oldest {
            Some(index) => index,
            None => self.policies.iter().position(Option::is_none).unwrap_or(self.policies.len()),
        };
        if index == self.policies.len() {
            self.policies.push(None);
        }
        let number = |index: usize| u8::try_from(index).unwrap_or(u8::MAX);
        let before = self.policies[index].replace(InUse { policy, children: 0, last_asked: 0 });
        let all: Vec<(u8, &Policy)> = self
            .policies
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| Some((number(index), &slot.as_ref()?.policy)))
            .collect();
        let new = all.iter().find(|(other, _)| *other == number(index)).copied();
        let changed = match new {
            Some(new) => firewall::change(router, &all, new, before.as_ref().map(|_| number(index))),
            None => Ok(()),
        };
        if let Err(error) = changed {
            self.policies[index] = before;
            return Err(error);
        }
        Ok(index)
    }
}

/// A child's place in a block. Dropped, it is left to a later child.
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

    /// Whether it is one of the calling thread's network namespace, and its router knows what addresses the host has now.
    pub(super) fn is_current(&self) -> bool {
        let mut state = lock(&self.egress.state);
        !state.is_closed
            && own_namespace().is_ok_and(|here| here == self.egress.namespace)
            && state.look_at_host(&self.egress.router).is_ok()
    }

    fn make(&self, pid: i32) -> Result<ChildNetwork, Error> {
        if lock(&self.egress.state).is_closed {
            return Err(Error::Closed);
        }
        let addresses = self.addresses();
        self.egress.router.add_child(&self.interface, IN_CHILD, &addresses, pid)?;
        Ok(ChildNetwork { interface: Some(IN_CHILD.to_owned()), addresses, ping: true })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::process::id() != self.egress.owner {
            return;
        }
        let interface = std::mem::take(&mut self.interface);
        let leaving = Leaving { child: self.child, policy: self.policy, interface, since: Instant::now() };
        lock(&self.egress.leaving).push(leaving);
    }
}

/// Removes what processes have left behind that did not close their Clients. The rest has gone with them.
fn sweep() -> Result<(), NetworkError> {
    for tag in nft::tables()?.iter().filter_map(|name| name.strip_prefix(firewall::TABLES)) {
        // Held until it is gone, so that nobody takes the block meanwhile.
        if let Some(_lock) = block::lock_left_behind(tag) {
            firewall::remove_way_out(tag, None)?;
        }
    }
    Ok(())
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
