//! Which addresses are the public Internet, which are internal, and which no child ever reaches.
//!
//! The sources are IANA's registries of special-purpose addresses for IPv4 and IPv6 (RFC 6890 and its
//! updates), of multicast addresses and of the IPv6 address space. What a registry calls globally
//! reachable inside of a block that as a whole is not (anycast in 192.0.0.0/24, AMT and others in
//! `2001::/23`) counts as internal here: no child needs it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 that no child reaches, whatever is allowed, and why.
pub const NEVER_V4: &[(Ipv4Net, &str)] = &[
    // RFC 791; Linux takes 0.0.0.0 for the host itself.
    (v4([0, 0, 0, 0], 8), "\"this network\""),
    // RFC 1122.
    (v4([127, 0, 0, 0], 8), "loopback"),
    // RFC 3927.
    (v4([169, 254, 0, 0], 16), "link-local, where clouds keep their metadata"),
    // RFC 5771.
    (v4([224, 0, 0, 0], 4), "multicast"),
    // RFC 1112, and RFC 919 for 255.255.255.255.
    (v4([240, 0, 0, 0], 4), "reserved or broadcast"),
];

/// IPv6 that no child reaches, whatever is allowed, and why.
pub const NEVER_V6: &[(Ipv6Net, &str)] = &[
    // RFC 4291; Linux takes it for the host itself.
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128), "the unspecified address"),
    // RFC 4291.
    (Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128), "loopback"),
    // RFC 4291: a socket sends IPv4 to it, where no rule for IPv6 sees it.
    (MAPPED, "IPv4-mapped: give the IPv4 address"),
    // RFC 4291.
    (v6([0xfe80, 0, 0], 10), "link-local"),
    // RFC 4291.
    (v6([0xff00, 0, 0], 8), "multicast"),
    // RFC 3879, which deprecated it.
    (v6([0xfec0, 0, 0], 10), "site-local, which is no longer in use"),
];

/// IPv4 that a child may be allowed to reach, but that is not the public Internet.
pub const INTERNAL_V4: &[Ipv4Net] = &[
    // Private use, RFC 1918.
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    // Shared by the customers of one carrier, RFC 6598; some clouds have services in it.
    v4([100, 64, 0, 0], 10),
    // IETF protocol assignments, RFC 6890.
    v4([192, 0, 0, 0], 24),
    // Documentation, RFC 5737.
    v4([192, 0, 2, 0], 24),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    // 6to4 relays, which RFC 7526 deprecated.
    v4([192, 88, 99, 0], 24),
    // Benchmarks, RFC 2544.
    v4([198, 18, 0, 0], 15),
];

/// Where all public IPv6 is: global unicast (RFC 4291), and NAT64 for what it embeds (RFC 6052).
///
/// Everything else is internal, if it is not of [`NEVER_V6`].
pub const GLOBAL_V6: &[Ipv6Net] = &[v6([0x2000, 0, 0], 3), NAT64];

/// IPv6 that is not the public Internet, beside all that is outside of [`GLOBAL_V6`] and what NAT64 embeds.
pub const INTERNAL_V6: &[Ipv6Net] = &[
    // IETF protocol assignments, RFC 2928, with Teredo, which embeds IPv4 (RFC 4380).
    v6([0x2001, 0, 0], 23),
    // Documentation, RFC 3849 and RFC 9637.
    v6([0x2001, 0xdb8, 0], 32),
    v6([0x3fff, 0, 0], 20),
    // 6to4, which embeds IPv4, RFC 3056.
    v6([0x2002, 0, 0], 16),
    // NAT64 of local use, RFC 8215: outside of `GLOBAL_V6`, and here for who denies this list alone.
    v6([0x64, 0xff9b, 1], 48),
    // Private use, RFC 4193: likewise.
    v6([0xfc00, 0, 0], 7),
];

/// An IPv4 address as an IPv6 socket shows it, RFC 4291.
pub(super) const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// NAT64's well-known prefix, RFC 6052. A network's own prefix for NAT64 cannot be known here.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0], 96);

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

/// From the first three groups.
const fn v6([a, b, c]: [u16; 3], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length)
}

/// Why no child reaches anything of this network, whatever is allowed; `None`: it may reach some of it.
#[must_use]
pub fn never(net: &IpNet) -> Option<&'static str> {
    match net {
        IpNet::V4(net) => NEVER_V4.iter().find(|(range, _)| range.contains(net)).map(|(_, why)| *why),
        IpNet::V6(net) => NEVER_V6.iter().find(|(range, _)| range.contains(net)).map(|(_, why)| *why),
    }
}

/// All of IPv4 that is internal. What is neither in this nor in [`NEVER_V4`] is public.
#[must_use]
pub fn internal_v4() -> Vec<Ipv4Net> {
    INTERNAL_V4.to_vec()
}

/// [`INTERNAL_V6`], and within NAT64 all that embeds IPv4 that is not public.
///
/// What is in [`GLOBAL_V6`], but neither in this nor in [`NEVER_V6`], is public. No two of these overlap, so
/// that they can be one set of a firewall.
#[must_use]
pub fn internal_v6() -> Vec<Ipv6Net> {
    let never = NEVER_V4.iter().map(|(net, _)| net);
    INTERNAL_V6.iter().copied().chain(INTERNAL_V4.iter().chain(never).map(|net| embedded(*net))).collect()
}

/// What NAT64 makes of an IPv4 network.
#[must_use]
pub fn embedded(net: Ipv4Net) -> Ipv6Net {
    let address = NAT64.addr().to_bits() | u128::from(net.addr().to_bits());
    Ipv6Net::new_assert(Ipv6Addr::from_bits(address), NAT64.prefix_len() + net.prefix_len())
}

/// Whether an address belongs to the public Internet.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let never = NEVER_V4.iter().any(|(net, _)| net.contains(&address));
            !never && !INTERNAL_V4.iter().any(|net| net.contains(&address))
        }
        IpAddr::V6(address) if NAT64.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            is_public(Ipv4Addr::new(a, b, c, d).into())
        }
        // None of `NEVER_V6` is in here.
        IpAddr::V6(address) => {
            let global = GLOBAL_V6.iter().any(|net| net.contains(&address));
            global && !INTERNAL_V6.iter().any(|net| net.contains(&address))
        }
    }
}

#[cfg(test)]
mod tests;
