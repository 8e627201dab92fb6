//! rtnetlink(7): interfaces, addresses and routes of the network namespace that the calling thread is in. Synchronous; one message a change.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::{Errno, Result};

/// An interface that exists.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) is_veth: bool,
    /// Packets can be sent.
    pub(crate) is_running: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link =
            Self { index: message.header.index, name: String::new(), is_veth: false, is_running: false };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::OperState(state) => link.is_running = state == State::Up,
                LinkAttribute::LinkInfo(infos) => {
                    link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        link
    }
}

/// Where the other end of a veth pair is born.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// In the network namespace of this process.
    Process(u32),
    /// In this one.
    Namespace(BorrowedFd<'a>),
}

/// How a veth pair's two ends find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Neighbours {
    /// By ARP, as on a cable.
    Asked,
    /// They are taken for granted: both ends have one hardware address, and neither asks, answers or believes. See `IFF_NOARP` in
    /// netdevice(7).
    Known,
}

/// The hardware address of both ends of a pair whose neighbours are known. Locally administered; nothing else is ever on such a cable.
const BOTH_ENDS: [u8; 6] = [0x02, 0x70, 0x73, 0x70, 0x00, 0x01];

/// A conversation with the kernel.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> std::io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The interface of this name, if there is one. The kernel also finds interfaces by their alternative names.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK) {
            Err(Errno::NODEV) => Ok(None),
            answers => Ok(links(answers?).next()),
        }
    }

    /// Waits until packets can be sent by an interface whose other end has just been brought up. The kernel sees to that some time later, and
    /// drops what comes before. To ask for the interface is to have it done at once, since Linux 6.8.
    pub(crate) fn settle(&mut self, name: &str) {
        const PATIENCE: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_millis(1);
        let begun = Instant::now();
        // One that is gone, or comes up later, is noticed by who uses it.
        while let Ok(Some(Link { is_running: false, .. })) = self.find(name) {
            if begun.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The number of the interface of this name; `ENODEV` if there is none.
    pub(crate) fn index(&mut self, name: &str) -> Result<u32> {
        self.find(name)?.map(|link| link.index).ok_or(Errno::NODEV)
    }

    /// All interfaces.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(links(answers).collect())
    }

    /// The destinations of all routes, of every table and both families. A default route has a prefix of length 0.
    pub(crate) fn destinations(&mut self) -> Result<Vec<IpNet>> {
        Ok(self.routes()?.iter().filter_map(destination).collect())
    }

    /// All that ends at this host: its addresses, and what routes say that it is.
    pub(crate) fn own(&mut self) -> Result<Vec<IpNet>> {
        let ends_here = |route: &&RouteMessage| {
            matches!(route.header.kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast)
        };
        let mut own: Vec<IpNet> = self.routes()?.iter().filter(ends_here).filter_map(destination).collect();
        // One that is so new that it has no route yet, or whose interface is down.
        own.extend(self.addresses()?.iter().map(|network| IpNet::from(network.addr())));
        Ok(own)
    }

    /// Whether a default route leads IPv6 anywhere.
    pub(crate) fn has_way_out_v6(&mut self) -> Result<bool> {
        Ok(self.routes()?.iter().map(|route| &route.header).any(|route| {
            route.address_family == AddressFamily::Inet6
                && route.destination_prefix_length == 0
                && route.kind == RouteType::Unicast
        }))
    }

    fn routes(&mut self) -> Result<Vec<RouteMessage>> {
        let answers = self.ask(RouteNetlinkMessage::GetRoute(RouteMessage::default()), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })
            .collect())
    }

    /// Deletes an interface. One that is gone is as good as deleted: the namespace of a pair's other end may just have been torn down.
    pub(crate) fn delete(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.change(RouteNetlinkMessage::DelLink(message), 0) {
            Err(Errno::NODEV) => Ok(()),
            deleted => deleted,
        }
    }

    /// All addresses of all interfaces.
    pub(crate) fn addresses(&mut self) -> Result<Vec<IpNet>> {
        let answers = self.ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let address = |answer| {
            let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
            // Of a connection from point to point, `Address` is the other point.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            IpNet::new(local.or(any)?, message.header.prefix_len).ok()
        };
        Ok(answers.into_iter().filter_map(address).collect())
    }

    /// A veth pair: one end here, the other one in another network namespace.
    pub(crate) fn create_veth(
        &mut self,
        near: &str,
        far: &str,
        place: Place<'_>,
        neighbours: Neighbours,
    ) -> Result<()> {
        let mut peer = end(far, neighbours);
        peer.attributes.push(match place {
            Place::Process(pid) => LinkAttribute::NetNsPid(pid),
            Place::Namespace(namespace) => LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        });
        let mut message = end(near, neighbours);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Keeps an interface from giving itself an IPv6 address: what listens on every address of the host is not the child's to reach.
    pub(crate) fn without_link_local_address(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
        match self.change(RouteNetlinkMessage::SetLink(message), 0) {
            // A kernel without IPv6.
            Err(Errno::AFNOSUPPORT) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn add_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        // Nobody else on such a link could have it, and to ask takes a second in which it is of no use.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        message.attributes.push(AddressAttribute::Address(address.addr()));
        if let IpAddr::V4(broadcast) = address.broadcast() {
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(crate) fn up(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(crate) fn add_default_route(&mut self, gateway: IpAddr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(match gateway {
            IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
            IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
        }));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.ask(message, NLM_F_ACK | flags).map(drop)
    }

    /// One request, with `NLM_F_ACK` or `NLM_F_DUMP`: then the answer has an end.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let io = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        self.socket.send(&bytes, 0).map_err(io)?;

        let mut answers = Vec::new();
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
                            None => Ok(answers),
                            Some(code) => Err(Errno::from_raw_os_error(-code.get())),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

fn links(answers: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = Link> {
    answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(found) => Some(found.into()),
        _ => None,
    })
}

/// Where a route leads. A default route may say so by saying nothing.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let length = route.header.destination_prefix_length;
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => IpNet::new((*ip).into(), length).ok(),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => IpNet::new((*ip).into(), length).ok(),
        _ => None,
    })
}

/// One end of a veth pair that does not exist yet.
fn end(name: &str, neighbours: Neighbours) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    if neighbours == Neighbours::Known {
        message.attributes.push(LinkAttribute::Address(BOTH_ENDS.to_vec()));
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
    }
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
