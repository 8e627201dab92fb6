//! The edges of each range, and that an address and the sets of a firewall say the same.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn public(address: &str) -> bool {
    is_public(address.parse().unwrap())
}

/// First and last are not public; what is next to them is, where given.
#[test]
fn edges_of_ipv4() {
    for (before, first, last, after) in [
        (None, "0.0.0.0", "0.255.255.255", Some("1.0.0.0")),
        (Some("9.255.255.255"), "10.0.0.0", "10.255.255.255", Some("11.0.0.0")),
        (Some("100.63.255.255"), "100.64.0.0", "100.127.255.255", Some("100.128.0.0")),
        (Some("126.255.255.255"), "127.0.0.0", "127.255.255.255", Some("128.0.0.0")),
        (Some("169.253.255.255"), "169.254.0.0", "169.254.255.255", Some("169.255.0.0")),
        (Some("172.15.255.255"), "172.16.0.0", "172.31.255.255", Some("172.32.0.0")),
        (Some("191.255.255.255"), "192.0.0.0", "192.0.0.255", Some("192.0.1.0")),
        (Some("192.0.1.255"), "192.0.2.0", "192.0.2.255", Some("192.0.3.0")),
        (Some("192.88.98.255"), "192.88.99.0", "192.88.99.255", Some("192.88.100.0")),
        (Some("192.167.255.255"), "192.168.0.0", "192.168.255.255", Some("192.169.0.0")),
        (Some("198.17.255.255"), "198.18.0.0", "198.19.255.255", Some("198.20.0.0")),
        (Some("198.51.99.255"), "198.51.100.0", "198.51.100.255", Some("198.51.101.0")),
        (Some("203.0.112.255"), "203.0.113.0", "203.0.113.255", Some("203.0.114.0")),
        (Some("223.255.255.255"), "224.0.0.0", "239.255.255.255", None),
        (None, "240.0.0.0", "255.255.255.255", None),
    ] {
        check_edges(before, first, last, after);
        // The same inside NAT64.
        let [first, last] = [first, last].map(|text| format!("64:ff9b::{text}"));
        let [before, after] = [before, after].map(|text| text.map(|text| format!("64:ff9b::{text}")));
        check_edges(before.as_deref(), &first, &last, after.as_deref());
    }
}

#[test]
fn edges_of_ipv6() {
    const MAX: &str = "ffff:ffff:ffff:ffff:ffff:ffff";
    let last = |head: &str| format!("{head}:{MAX}");
    for (before, first, last, after) in [
        (None, "::", last("1fff:ffff"), Some("2000::")),
        (Some(last("2000:ffff")), "2001::", last("2001:1ff"), Some("2001:200::")),
        (Some(last("2001:db7")), "2001:db8::", last("2001:db8"), Some("2001:db9::")),
        (Some(last("2001:ffff")), "2002::", last("2002:ffff"), Some("2003::")),
        (Some(last("3ffe:ffff")), "3fff::", last("3fff:fff"), Some("3fff:1000::")),
        (Some(last("3fff:ffff")), "4000::", last("ffff:ffff"), None),
        (None, "64:ff9a::", last("64:ff9a"), Some("64:ff9b::1.0.0.0")),
        (None, "64:ff9b::1:0:0", last("64:ff9b"), None),
        (None, "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff".to_owned(), None),
        (None, "::ffff:0:0", "::ffff:8.8.8.8".to_owned(), None),
        (None, "fc00::", last("fdff:ffff"), None),
        (None, "fe80::", last("feff:ffff"), None),
    ] {
        check_edges(before.as_deref(), first, &last, after);
    }
    for address in ["2606:4700:4700::1111", "2a00::", "64:ff9b::8.8.8.8", "2001:4860:4860::8888"] {
        assert!(public(address), "{address}");
    }
}

fn check_edges(before: Option<&str>, first: &str, last: &str, after: Option<&str>) {
    for inside in [first, last] {
        assert!(!public(inside), "{inside}");
    }
    for outside in [before, after].into_iter().flatten() {
        assert!(public(outside), "{outside}");
    }
}

#[test]
fn never_says_why() {
    for (net, why) in [
        ("0.0.0.0/8", Some("\"this network\"")),
        ("127.0.0.53/32", Some("loopback")),
        ("169.254.169.254/32", Some("link-local, where clouds keep their metadata")),
        ("224.0.0.0/24", Some("multicast")),
        ("255.255.255.255/32", Some("reserved or broadcast")),
        ("::/128", Some("the unspecified address")),
        ("::1/128", Some("loopback")),
        ("::ffff:10.0.0.0/104", Some("IPv4-mapped: give the IPv4 address")),
        ("fe80::/64", Some("link-local")),
        ("ff02::/16", Some("multicast")),
        ("fec0::/10", Some("site-local, which is no longer in use")),
        ("0.0.0.0/0", None),
        ("0.0.0.0/7", None),
        ("126.0.0.0/7", None),
        ("169.254.0.0/15", None),
        ("10.0.0.0/8", None),
        ("::/0", None),
        ("::/95", None),
        ("fe00::/9", None),
        ("fc00::/7", None),
        ("2606:4700::/32", None),
    ] {
        assert_eq!(never(&net.parse().unwrap()), why, "{net}");
    }
}

fn without_overlap<T: Into<IpNet>>(nets: impl IntoIterator<Item = T>) {
    let nets: Vec<IpNet> = nets.into_iter().map(Into::into).collect();
    for (index, net) in nets.iter().enumerate() {
        assert_eq!(net.addr(), net.network(), "{net} has host bits");
        for other in &nets[..index] {
            assert!(!net.contains(other) && !other.contains(net), "{net} and {other}");
        }
    }
}

#[test]
fn no_two_of_a_family_overlap() {
    without_overlap(internal_v4().into_iter().chain(NEVER_V4.iter().map(|(net, _)| *net)));
    without_overlap(internal_v6().into_iter().chain(NEVER_V6.iter().map(|(net, _)| *net)));
    without_overlap(GLOBAL_V6.iter().copied());
}

/// What a firewall would say that has these sets.
fn public_by_sets(address: IpAddr) -> bool {
    let net = IpNet::from(address);
    let internal = match address {
        IpAddr::V4(address) => internal_v4().iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            !GLOBAL_V6.iter().any(|net| net.contains(&address))
                || internal_v6().iter().any(|net| net.contains(&address))
        }
    };
    !internal && never(&net).is_none()
}

/// Few random addresses are in or near any of the ranges: so begin at their edges.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4: Vec<u32> = INTERNAL_V4
        .iter()
        .chain(NEVER_V4.iter().map(|(net, _)| net))
        .flat_map(|net| [net.network().to_bits(), net.broadcast().to_bits()])
        .collect();
    let v6: Vec<u128> = internal_v6()
        .iter()
        .chain(GLOBAL_V6)
        .chain(NEVER_V6.iter().map(|(net, _)| net))
        .flat_map(|net| [net.network().to_bits(), net.broadcast().to_bits()])
        .collect();
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        any::<u32>().prop_map(|bits| IpAddr::V6((NAT64.addr().to_bits() | u128::from(bits)).into())),
        (select(v4), -2..=2_i32).prop_map(|(bits, by)| IpAddr::V4(bits.wrapping_add_signed(by).into())),
        (select(v6), -2..=2_i128).prop_map(|(bits, by)| IpAddr::V6(bits.wrapping_add_signed(by).into())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn an_address_and_the_sets_say_the_same(address in address()) {
        prop_assert_eq!(is_public(address), public_by_sets(address), "{}", address);
    }

    #[test]
    fn what_is_never_reached_is_not_public(address in address()) {
        prop_assert!(!is_public(address) || never(&address.into()).is_none(), "{}", address);
    }
}
