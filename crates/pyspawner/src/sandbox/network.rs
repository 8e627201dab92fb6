//! Layer `network`: a `lo` that is down, or one end of a veth pair.
//!
//! Two halves. The caller's ([`make_veth`]) makes the pair, with one end born in the child's network namespace; the child's
//! ([`enter`]) gives that end its address and route. Both speak rtnetlink(7).

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;

use crate::config::{ConfigError, NetworkConfig};
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::ChildNetwork;

/// Both ends of a pair are in one /24.
const PREFIX: u8 = 24;

/// The caller's end of a pair that was made.
#[derive(Debug)]
pub struct Veth {
    index: u32,
}

/// The caller's half: deletes a stale veth of the same name, makes the pair with its far end in the network namespace of `pid`, and
/// brings the near end up.
///
/// # Errors
///
/// What the kernel's netlink refused. A pair that was made is deleted again.
pub fn make_veth(config: &NetworkConfig, addresses: (Ipv4Addr, Ipv4Addr), pid: i32) -> Result<Veth, Failure> {
    let mut netlink = Netlink::open()?;
    let name = &config.kernel_veth_name;
    if let Some(stale) = netlink.find(name)? {
        // The kernel also finds interfaces by their alternative names.
        let is_ours = stale.attributes.contains(&LinkAttribute::IfName(name.clone()))
            && stale.attributes.iter().any(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
                _ => false,
            });
        if !is_ours {
            return Err(Failure::new(Layer::Network, Step::DeleteStaleInterface, libc::EEXIST));
        }
        match netlink.delete(stale.header.index) {
            // It went by itself: the namespace of its other end has just been torn down.
            Err(Errno::NODEV) | Ok(()) => {}
            Err(errno) => return Err(errno).fail_at(Layer::Network, Step::DeleteStaleInterface),
        }
    }
    netlink.create_veth(name, &config.child_veth_name, pid.unsigned_abs())?;
    let veth = Veth { index: netlink.index(name)? };
    match netlink.configure(veth.index, addresses.0) {
        Ok(()) => Ok(veth),
        Err(failure) => {
            veth.remove();
            Err(failure)
        }
    }
}

impl Veth {
    /// Takes the pair back. It goes with the child's namespace anyway; this is at once.
    pub fn remove(self) {
        if let Ok(mut netlink) = Netlink::open() {
            // What is gone already is as good as removed.
            let _ = netlink.delete(self.index);
        }
    }
}

/// The child's half of `config`.
///
/// # Errors
///
/// Addresses that make no sense.
pub fn child_half(config: &NetworkConfig) -> Result<ChildNetwork, ConfigError> {
    let (gateway, address) = config.addresses()?;
    Ok(ChildNetwork {
        interface: config.child_veth_name.clone(),
        address: address.octets(),
        gateway: gateway.octets(),
    })
}

/// The child's half. Without a network there is nothing to do: a new namespace has only a `lo` that is down.
///
/// # Errors
///
/// What the kernel's netlink refused.
pub fn enter(network: Option<&ChildNetwork>) -> Result<(), Failure> {
    let Some(network) = network else { return Ok(()) };
    let mut netlink = Netlink::open()?;
    let loopback = netlink.index("lo")?;
    netlink.up(loopback).fail_at(Layer::Network, Step::LinkUp)?;
    let interface = netlink.index(&network.interface)?;
    netlink.configure(interface, network.address.into())?;
    netlink.add_default_route(network.gateway.into()).fail_at(Layer::Network, Step::AddRoute)
}

/// A conversation with the kernel about the network namespace of the calling thread.
struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> Result<Self, Failure> {
        let socket = Socket::new(NETLINK_ROUTE).fail_at(Layer::Network, Step::OpenNetlink)?;
        socket.connect(&SocketAddr::new(0, 0)).fail_at(Layer::Network, Step::OpenNetlink)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// One request. Answers the interface, if the kernel sends one, once it has acknowledged.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> rustix::io::Result<Option<LinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let io = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        self.socket.send(&bytes, 0).map_err(io)?;

        let mut link = None;
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(io)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| Errno::BADMSG)?;
                let length = (answer.header.length as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[length..];
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(link),
                            Some(code) => Err(Errno::from_raw_os_error(-code.get())),
                        };
                    }
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(found)) => link = Some(found),
                    _ => {}
                }
            }
        }
    }

    /// The interface of this name, if there is one.
    fn find(&mut self, name: &str) -> Result<Option<LinkMessage>, Failure> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Err(Errno::NODEV) => Ok(None),
            other => other.fail_at(Layer::Network, Step::FindStaleInterface),
        }
    }

    fn index(&mut self, name: &str) -> Result<u32, Failure> {
        let link = self.find(name)?;
        link.map(|link| link.header.index).ok_or(Failure::new(
            Layer::Network,
            Step::FindInterface,
            libc::ENODEV,
        ))
    }

    fn delete(&mut self, index: u32) -> rustix::io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.ask(RouteNetlinkMessage::DelLink(message), 0).map(drop)
    }

    fn create_veth(&mut self, near: &str, far: &str, pid: u32) -> Result<(), Failure> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(far.to_owned()));
        peer.attributes.push(LinkAttribute::NetNsPid(pid));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(near.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map(drop)
            .fail_at(Layer::Network, Step::CreateVeth)
    }

    /// Gives an interface its address and brings it up, without the IPv6 address that it would give itself: what listens on every address
    /// of the host is not the child's to reach.
    fn configure(&mut self, index: u32, address: Ipv4Addr) -> Result<(), Failure> {
        match self.without_link_local_address(index) {
            // A kernel without IPv6.
            Err(Errno::AFNOSUPPORT) | Ok(()) => {}
            Err(errno) => return Err(errno).fail_at(Layer::Network, Step::AddAddress),
        }
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = PREFIX;
        message.header.index = index;
        let [a, b, c, _] = address.octets();
        message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
        message.attributes.push(AddressAttribute::Address(IpAddr::V4(address)));
        message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::new(a, b, c, 255)));
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            .map(drop)
            .fail_at(Layer::Network, Step::AddAddress)?;
        self.up(index).fail_at(Layer::Network, Step::LinkUp)
    }

    fn without_link_local_address(&mut self, index: u32) -> rustix::io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
        self.ask(RouteNetlinkMessage::SetLink(message), 0).map(drop)
    }

    fn up(&mut self, index: u32) -> rustix::io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(message), 0).map(drop)
    }

    fn add_default_route(&mut self, gateway: Ipv4Addr) -> rustix::io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        self.ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }
}
