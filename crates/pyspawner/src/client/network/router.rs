//! The router: a network namespace of a Client's own, between its children and the host.
//!
//! It has one interface for each child and one to the host, the uplink. It has no process in it and no name: who holds its descriptor keeps
//! it, so it goes with the caller, and all that is in it.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use ipnet::IpNet;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::client::lock;
use crate::error::{Error, FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::ChildAddress;
use crate::sandbox::network::configure;
use crate::sys::netlink::{Neighbours, Netlink, Place};

use super::block::Block;
use super::conntrack::Conntrack;
use super::firewall::INTERFACES;

/// The router's interface to the host.
pub(super) const UPLINK: &str = "uplink";

/// Settings of a network namespace that forwards, and tells as often as it must that it does not.
const SETTINGS: [(&str, &str); 2] = [("ipv4/ip_forward", "1"), ("ipv4/icmp_ratelimit", "0")];
/// The same of IPv6.
const SETTINGS_V6: [(&str, &str); 2] = [("ipv6/conf/all/forwarding", "1"), ("ipv6/icmp/ratelimit", "0")];

/// A router that exists.
#[derive(Debug)]
pub(super) struct Router {
    /// Where the uplink leads to.
    host: OwnedFd,
    namespace: OwnedFd,
    netlink: Mutex<Netlink>,
    conntrack: Conntrack,
    /// The host's end of the uplink.
    uplink: String,
}

impl Router {
    /// Makes one, with its uplink.
    pub(super) fn make(block: &Block) -> Result<Self, Error> {
        let ipv6 = block.v6.is_some();
        let host = own_namespace()?;
        // A thread that leaves the host's network does not come back.
        let made = std::thread::Builder::new()
            .name("pyspawner-router".to_owned())
            .spawn(move || enter_new_namespace(ipv6))
            .map_err(|source| Error::Io { doing: "starting a thread", source })?
            .join();
        let (namespace, mut netlink, conntrack) = made.map_err(|_| Error::io("thread")(Errno::IO))??;
        let uplink = format!("{INTERFACES}{}", block.tag());
        connect(&namespace, &mut netlink, &uplink, &block.uplink())?;
        Ok(Self { host, namespace, netlink: Mutex::new(netlink), conntrack, uplink })
    }

    /// The network namespace of the host's end of the uplink.
    pub(super) fn host(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }

    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// The host's end of the uplink.
    pub(super) fn uplink(&self) -> &str {
        &self.uplink
    }

    /// Makes a child's veth pair: `near` here, `far` in the network namespace of the process `pid`. What is there by this name is left from
    /// an earlier child.
    pub(super) fn add_child(
        &self,
        near: &str,
        far: &str,
        addresses: &[ChildAddress],
        pid: i32,
    ) -> Result<(), Failure> {
        let mut netlink = lock(&self.netlink);
        remove(&mut netlink, near).fail_at(Layer::Network, Step::DeleteStaleInterface)?;
        netlink
            .create_veth(near, far, Place::Process(pid.unsigned_abs()), Neighbours::Known)
            .fail_at(Layer::Network, Step::CreateVeth)?;
        let index = netlink.index(near).fail_at(Layer::Network, Step::FindInterface)?;
        let configured = configure(&mut netlink, index, addresses.iter().filter_map(gateway));
        if configured.is_err() {
            let _ = netlink.delete(index);
        }
        configured
    }

    /// Waits until a child's pair can be used, when the child has brought its end up.
    pub(super) fn settle(&self, near: &str) {
        lock(&self.netlink).settle(near);
    }

    /// The names of all interfaces here.
    pub(super) fn interfaces(&self) -> Result<HashSet<String>, Failure> {
        let links = lock(&self.netlink).links().fail_at(Layer::Network, Step::FindInterface)?;
        Ok(links.into_iter().map(|link| link.name).collect())
    }

    /// Cuts a child off.
    pub(super) fn remove_child(&self, near: &str) {
        // It is tried; the kernel does it in any case.
        let _ = remove(&mut lock(&self.netlink), near);
    }

    /// Forgets all connections of a child, so that no later one gets the answers.
    pub(super) fn forget(&self, child: u16) {
        self.conntrack.forget(child.into());
    }

    /// Cuts all children off. The rest goes with the namespace, some time later.
    pub(super) fn disconnect(&self) {
        let _ = remove(&mut lock(&self.netlink), UPLINK);
    }
}

/// The caller's end of a child's pair.
fn gateway(end: &ChildAddress) -> Option<IpNet> {
    IpNet::new(end.gateway, end.address.prefix_len()).ok()
}

fn remove(netlink: &mut Netlink, name: &str) -> rustix::io::Result<()> {
    netlink.find(name)?.map_or(Ok(()), |link| netlink.delete(link.index))
}

/// Moves the calling thread into a new network namespace that forwards, and answers what others need to work in it.
#[expect(unsafe_code, reason = "of the flags of unshare(2), one can break what Rust takes for granted")]
fn enter_new_namespace(ipv6: bool) -> Result<(OwnedFd, Netlink, Conntrack), Error> {
    // SAFETY: it is not CLONE_FILES, the one that takes descriptors from under their owners.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.fail_at(Layer::Network, Step::MakeRouter)?;
    let of_v6 = if ipv6 { &SETTINGS_V6[..] } else { &[] };
    for (name, value) in SETTINGS.iter().chain(of_v6) {
        set(name, value)?;
    }
    let namespace = own_namespace()?;
    let netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    let conntrack = Conntrack::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    Ok((namespace, netlink, conntrack))
}

fn own_namespace() -> Result<OwnedFd, Failure> {
    open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .fail_at(Layer::Network, Step::MakeRouter)
}

/// Writes a setting below `/proc/sys/net`, unless it is so already: in a container that may be read-only.
fn set(name: &str, value: &str) -> Result<(), Failure> {
    let path = format!("/proc/sys/net/{name}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).fail_at(Layer::Network, Step::MakeRouter)
}

/// Makes the uplink, from the network namespace of the calling thread.
fn connect(
    namespace: &OwnedFd,
    router: &mut Netlink,
    name: &str,
    addresses: &[ChildAddress],
) -> Result<(), Failure> {
    let mut host = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    host.create_veth(name, UPLINK, Place::Namespace(namespace.as_fd()), Neighbours::Known)
        .fail_at(Layer::Network, Step::CreateVeth)?;
    let index = host.index(name).fail_at(Layer::Network, Step::FindInterface)?;
    let connected = (|| {
        configure(&mut host, index, addresses.iter().filter_map(gateway))?;
        // A host may forward, and not from what is new.
        for end in addresses {
            let family = if end.gateway.is_ipv4() { "ipv4" } else { "ipv6" };
            set(&format!("{family}/conf/{name}/forwarding"), "1")?;
        }
        let there = router.index(UPLINK).fail_at(Layer::Network, Step::FindInterface)?;
        configure(router, there, addresses.iter().map(|end| end.address))?;
        for end in addresses {
            router.add_default_route(end.gateway).fail_at(Layer::Network, Step::AddRoute)?;
        }
        host.settle(name);
        Ok(())
    })();
    if connected.is_err() {
        let _ = host.delete(index);
    }
    connected
}
