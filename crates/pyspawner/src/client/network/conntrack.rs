//! What the kernel remembers of a child's connections. A later child with the same addresses must not get the answers to them.

use std::io;
use std::sync::Mutex;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::client::lock;

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h; see libnetfilter_conntrack.
const DELETE: u16 = (1 << 8) | 2; // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
const MARK: u16 = 8;
const MARK_MASK: u16 = 21;

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

    /// Forgets all connections with this mark. (By address it can be done too, but of IPv6 Linux 6.18 then takes all others.)
    pub(super) fn forget(&self, mark: u32) {
        let socket = lock(&self.socket);
        // What is not there is as good as forgotten, and nobody can do more about a kernel that refuses. It has happened when it has
        // answered.
        let _ = socket.send(&request(mark), 0).and_then(|_| socket.recv_from_full());
    }
}

fn request(mark: u32) -> Vec<u8> {
    let mark = attribute(MARK, &mark.to_be_bytes());
    let whole = attribute(MARK_MASK, &u32::MAX.to_be_bytes());
    // struct nfgenmsg: both families, version 0, resource id 0.
    let body = [&[0; 4], mark.as_slice(), &whole].concat();
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
