//! The router: a network namespace of a Client's own, between its children and the host.
//!
//! It has one interface for each child and one to the host, the uplink. It has no process in it and no name: who holds its descriptor keeps
//! it, so it goes with the caller, and all that is in it.

use std::fs::File;
use std::io::Write;
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

/// What makes a network namespace forward.
const SETTINGS: [(&str, bool); 2] =
    [("/proc/sys/net/ipv4/ip_forward", false), ("/proc/sys/net/ipv6/conf/all/forwarding", true)];

/// A router that exists.
#[derive(Debug)]
pub(super) struct Router {
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
        // A thread that leaves the host's network does not come back.
        let made = std::thread::Builder::new()
            .name("pyspawner-router".to_owned())
            .spawn(move || enter_new_namespace(ipv6))
            .map_err(|source| Error::Io { doing: "starting a thread", source })?
            .join();
        let (namespace, mut netlink, conntrack) = made.map_err(|_| Error::io("thread")(Errno::IO))??;
        let uplink = format!("{INTERFACES}{}", block.tag());
        connect(&namespace, &mut netlink, &uplink, &block.uplink())?;
        Ok(Self { namespace, netlink: Mutex::new(netlink), conntrack, uplink })
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

    /// Cuts a child off.
    pub(super) fn remove_child(&self, near: &str) {
        // What is gone already is as good as removed.
        let _ = remove(&mut lock(&self.netlink), near);
    }

    /// Forgets all connections of these addresses, so that no later child gets the answers.
    pub(super) fn forget(&self, addresses: &[ChildAddress]) {
        for end in addresses {
            self.conntrack.forget(end.address.addr());
        }
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
    match netlink.find(name)? {
        None => Ok(()),
        Some(link) => match netlink.delete(link.index) {
            // It went by itself: the namespace of its other end has just been torn down.
            Err(Errno::NODEV) => Ok(()),
            deleted => deleted,
        },
    }
}

/// Moves the calling thread into a new network namespace that forwards, and answers what others need to work in it.
#[expect(unsafe_code, reason = "of the flags of unshare(2), one can break what Rust takes for granted")]
fn enter_new_namespace(ipv6: bool) -> Result<(OwnedFd, Netlink, Conntrack), Error> {
    // SAFETY: it is not CLONE_FILES, the one that takes descriptors from under their owners.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.fail_at(Layer::Network, Step::MakeRouter)?;
    for (path, _) in SETTINGS.into_iter().filter(|(_, is_v6)| ipv6 || !is_v6) {
        let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(b"1"));
        written.fail_at(Layer::Network, Step::MakeRouter)?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace =
        open("/proc/thread-self/ns/net", flags, Mode::empty()).fail_at(Layer::Network, Step::MakeRouter)?;
    let netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    let conntrack = Conntrack::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    Ok((namespace, netlink, conntrack))
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
        let there = router.index(UPLINK).fail_at(Layer::Network, Step::FindInterface)?;
        configure(router, there, addresses.iter().map(|end| end.address))?;
        for end in addresses {
            router.add_default_route(end.gateway).fail_at(Layer::Network, Step::AddRoute)?;
        }
        Ok(())
    })();
    if connected.is_err() {
        let _ = host.delete(index);
    }
    connected
}
