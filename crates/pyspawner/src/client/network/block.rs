//! A block of addresses for a Client: taken so that no other process has it, and clashes with no route.
//!
//! The lock is an abstract Unix socket, bound to the block's name: the kernel keeps one of a name in a network namespace, and frees it when
//! its process ends, however that ends. What a dead one has left behind is found by that; see `firewall.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use crate::config::{CHILD_PREFIX_V4, CHILD_PREFIX_V6, Pool};
use crate::error::{Error, FailAt, NetworkError, Step};
use crate::layer::Layer;
use crate::protocol::ChildAddress;
use crate::sys::netlink::Netlink;

/// Networks that are larger are the Internet, and nobody's own.
pub(super) const LEAST_PREFIX: u8 = 8;

/// A block, for as long as the process has it.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) v4: Ipv4Net,
    pub(super) v6: Option<Ipv6Net>,
    locks: Mutex<Vec<OwnedFd>>,
}

impl Block {
    /// The first block of the pool that nobody has.
    pub(super) fn take(pool: &Pool) -> Result<Self, Error> {
        let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
        let routes = netlink.destinations().fail_at(Layer::Network, Step::ListRoutes)?;
        let mut clash = None;
        for (v4, v6) in blocks(pool) {
            let networks: Vec<IpNet> = [Some(v4.into()), v6.map(IpNet::from)].into_iter().flatten().collect();
            let locks = networks.iter().map(|network| lock(network.addr()));
            let locks = match locks.collect::<rustix::io::Result<Vec<_>>>() {
                Err(Errno::ADDRINUSE) => continue,
                locks => locks.map_err(Error::io("bind"))?,
            };
            match routes.iter().find(|route| networks.iter().any(|network| overlap(network, route))) {
                Some(route) => clash = clash.or(Some(*route)),
                None => return Ok(Self { v4, v6, locks: Mutex::new(locks) }),
            }
        }
        let pool = pool.v6.map_or_else(|| pool.v4.to_string(), |v6| format!("{} or {v6}", pool.v4));
        Err(NetworkError::NoSubnet { pool, clash }.into())
    }

    /// Gives it back.
    pub(super) fn unlock(&self) {
        super::lock(&self.locks).clear();
    }

    /// What names the block: its interfaces and its table begin or end with that.
    pub(super) fn tag(&self) -> String {
        tag(self.v4.network())
    }

    /// The numbers of the children that there can be.
    pub(super) fn children(&self) -> Range<u16> {
        1..1 << (CHILD_PREFIX_V4 - self.v4.prefix_len())
    }

    /// The addresses of the router, as if it were a child of the host's.
    pub(super) fn uplink(&self) -> Vec<ChildAddress> {
        self.addresses(0)
    }

    /// The addresses of a child.
    pub(super) fn addresses(&self, child: u16) -> Vec<ChildAddress> {
        let first = self.v4.network().to_bits() + 4 * u32::from(child);
        let v4 = end(
            Ipv4Addr::from_bits(first + 2).into(),
            CHILD_PREFIX_V4,
            Ipv4Addr::from_bits(first + 1).into(),
        );
        let v6 = self.v6.and_then(|v6| {
            let first = v6.network().to_bits() + 4 * u128::from(child);
            end(Ipv6Addr::from_bits(first + 2).into(), CHILD_PREFIX_V6, Ipv6Addr::from_bits(first + 1).into())
        });
        v4.into_iter().chain(v6).collect()
    }
}

/// What names the block that begins with this address.
fn tag(first: Ipv4Addr) -> String {
    format!("{:08x}", first.to_bits())
}

/// Takes a lock on the block of this tag, if nobody has it: then it was left behind.
pub(super) fn lock_left_behind(tag: &str) -> Option<OwnedFd> {
    let first = u32::from_str_radix(tag, 16).ok()?;
    lock(Ipv4Addr::from_bits(first).into()).ok()
}

fn end(address: IpAddr, prefix: u8, gateway: IpAddr) -> Option<ChildAddress> {
    Some(ChildAddress { address: IpNet::new(address, prefix).ok()?, gateway })
}

/// How many times two a block is divided: a child's number has two digits in the name of its interface.
const MOST_HALVINGS: u8 = 8;

/// The blocks of a pool. Each has as many addresses of one family as of the other.
fn blocks(pool: &Pool) -> impl Iterator<Item = (Ipv4Net, Option<Ipv6Net>)> {
    let room_v6 = pool.v6.map_or(u8::MAX, |v6| CHILD_PREFIX_V6 - v6.prefix_len());
    // As a power of two.
    let children = (CHILD_PREFIX_V4 - pool.v4.prefix_len()).min(room_v6).min(MOST_HALVINGS);
    let v4 = pool.v4.subnets(CHILD_PREFIX_V4 - children).into_iter().flatten();
    let mut v6 = pool.v6.map(|v6| v6.subnets(CHILD_PREFIX_V6 - children).into_iter().flatten());
    v4.map_while(move |v4| match &mut v6 {
        None => Some((v4, None)),
        Some(v6) => Some((v4, Some(v6.next()?))),
    })
}

fn lock(first: IpAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let name = format!("pyspawner-network/{first}");
    bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(socket)
}

fn overlap(one: &IpNet, route: &IpNet) -> bool {
    route.prefix_len() >= LEAST_PREFIX && (one.contains(route) || route.contains(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(v4: &str, v6: Option<&str>) -> Pool {
        Pool { v4: v4.parse().expect("v4"), v6: v6.map(|v6| v6.parse().expect("v6")) }
    }

    #[test]
    fn a_pool_is_divided_into_blocks_of_256_children() {
        let all: Vec<_> = blocks(&pool("198.19.0.0/16", Some("fd00::/64"))).collect();
        assert_eq!(all.len(), 64);
        assert_eq!(all[1].0.to_string(), "198.19.4.0/22");
        assert_eq!(all[1].1.expect("v6").to_string(), "fd00::400/118");
    }

    #[test]
    fn a_small_pool_is_one_block_and_the_smaller_family_decides() {
        let all: Vec<_> = blocks(&pool("10.9.8.0/24", Some("fd00::/122"))).collect();
        assert_eq!(all.len(), 1, "there is IPv6 for one only");
        assert_eq!(all[0].0.to_string(), "10.9.8.0/26");
    }

    #[test]
    fn children_have_the_second_address_of_four_and_the_first_four_are_the_routers() {
        let block = Block {
            v4: "198.19.4.0/22".parse().expect("v4"),
            v6: Some("fd00::400/118".parse().expect("v6")),
            locks: Mutex::default(),
        };
        assert_eq!(block.children(), 1..256);
        assert_eq!(block.uplink()[0].address.to_string(), "198.19.4.2/30");
        let texts: Vec<_> =
            block.addresses(255).iter().map(|end| format!("{} {}", end.address, end.gateway)).collect();
        assert_eq!(texts, ["198.19.7.254/30 198.19.7.253", "fd00::7fe/126 fd00::7fd"]);
        assert_eq!(block.tag(), "c6130400");
    }

    #[test]
    fn default_routes_clash_with_nothing() {
        let block: IpNet = "198.19.4.0/22".parse().expect("a network");
        for (route, clashes) in [
            ("0.0.0.0/0", false),
            ("128.0.0.0/1", false),
            ("198.0.0.0/8", true),
            ("198.19.5.1/32", true),
            ("198.19.8.0/22", false),
        ] {
            assert_eq!(overlap(&block, &route.parse().expect("a network")), clashes, "{route}");
        }
    }
}
