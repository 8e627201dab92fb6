//! What the kernel remembers of a child's connections. A later child with the same addresses must not get the answers to them.

use std::io;
use std::net::IpAddr;
use std::sync::Mutex;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::client::lock;

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h; see libnetfilter_conntrack.
const DELETE: u16 = (1 << 8) | 2; // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
const NESTED: u16 = 1 << 15;
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const IP_V4_SRC: u16 = 1;
const IP_V6_SRC: u16 = 3;
const FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_IP_SRC`: what has this source, whatever else it is.
const BY_SOURCE: u32 = 1;

/// The kernel's memory of a network namespace.
#[derive(Debug)]
pub(super) struct Conntrack {
    socket: Mutex<Socket>,
}

impl Conntrack {
    /// That of the calling thread's.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// Forgets all connections that `source` has begun. Older kernels cannot choose by address, and are not asked to forget those of others.
    pub(super) fn forget(&self, source: IpAddr) {
        let socket = lock(&self.socket);
        // What is not there is as good as forgotten, and nobody can do more about a kernel that refuses. It has happened when it has
        // answered.
        let _ = socket.send(&request(source), 0).and_then(|_| socket.recv_from_full());
    }
}

fn request(source: IpAddr) -> Vec<u8> {
    let (family, address) = match source {
        IpAddr::V4(source) => (libc::AF_INET, attribute(IP_V4_SRC, &source.octets())),
        IpAddr::V6(source) => (libc::AF_INET6, attribute(IP_V6_SRC, &source.octets())),
    };
    let tuple = attribute(TUPLE_ORIG | NESTED, &attribute(TUPLE_IP | NESTED, &address));
    let filter = attribute(FILTER | NESTED, &attribute(FILTER_ORIG_FLAGS, &BY_SOURCE.to_ne_bytes()));
    // struct nfgenmsg: family, version 0, resource id 0.
    let body = [&[u8::try_from(family).unwrap_or_default(), 0, 0, 0], tuple.as_slice(), &filter].concat();
    let length = u32::try_from(16 + body.len()).unwrap_or_default();
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
    [&length.to_ne_bytes()[..], &DELETE.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], &body].concat()
}

/// A netlink attribute, padded; netlink(7).
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + payload.len()).unwrap_or_default();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
