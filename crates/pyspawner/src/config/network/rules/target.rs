//! The part of a rule before its ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::part::Part;
use super::{RuleError, Target, name};
use crate::config::network::ranges::MAPPED;

/// The target, and the rest, which is empty or begins with `:` or `/`.
pub(super) fn parse(whole: Part) -> Result<(Target, Part), RuleError> {
    if whole.text.starts_with('[') {
        return bracketed(whole);
    }
    check_brackets(whole)?;
    let (host, rest) = whole.split_before(&[':', '/']);
    match (host.text.parse::<Ipv4Addr>(), prefix_length(rest)) {
        (Ok(address), Some((length, rest))) => Ok((network(host, address.into(), length)?, rest)),
        (Ok(address), None) => Ok((Target::Network(IpAddr::from(address).into()), rest)),
        (Err(_), length) => {
            let target = if host.text == "*" { Target::Any } else { Target::Name(name::parse(host)?) };
            match length {
                Some((length, _)) => Err(length.error(0, "only an address has a prefix length")),
                None => Ok((target, rest)),
            }
        }
    }
}

/// The prefix length that this begins with, if it is not a protocol, and the rest.
fn prefix_length(rest: Part) -> Option<(Part, Part)> {
    let text = rest.text.strip_prefix('/')?;
    // No protocol begins with a digit.
    text.starts_with(|c: char| c.is_ascii_digit()).then(|| rest.after(1).split_before(&[':', '/']))
}

/// Says what is wrong with IPv6 that has no brackets, which otherwise were a name with odd ports.
fn check_brackets(whole: Part) -> Result<(), RuleError> {
    let end = whole.text.find(|c: char| !c.is_ascii_hexdigit() && c != ':').unwrap_or(whole.text.len());
    let (digits, rest) = whole.split_at(end);
    if digits.text.matches(':').count() < 2 {
        return Ok(());
    }
    if rest.text.starts_with('%') {
        return Err(zone(rest));
    }
    Err(digits.error(0, "IPv6 goes in brackets, and a port after them, as in [2001:db8::1]:443"))
}

fn zone(part: Part) -> RuleError {
    let (zone, _) = part.split_before(&['/', ']']);
    part.error(0, format!("a rule has no zone: leave {:?} out", zone.text))
}

/// IPv6, as in `[2001:db8::/32]`.
fn bracketed(whole: Part) -> Result<(Target, Part), RuleError> {
    let (inside, rest) = whole.split_before(&[']']);
    if rest.text.is_empty() {
        return Err(whole.error(0, "this bracket is never closed"));
    }
    let (inside, rest) = (inside.after(1), rest.after(1));
    let (host, length) = inside.split_before(&['/']);
    if let Some(at) = host.text.find('%') {
        return Err(zone(inside.after(at)));
    }
    let Ok(address) = host.text.parse::<Ipv6Addr>() else {
        if host.text.parse::<Ipv4Addr>().is_ok() {
            return Err(whole.error(0, "only IPv6 goes in brackets: leave them out"));
        }
        return Err(host.error(0, format!("{:?} is not an IPv6 address", host.text)));
    };
    let target = if length.text.is_empty() {
        Target::Network(IpAddr::from(address).into())
    } else {
        network(host, address.into(), length.after(1))?
    };
    check_mapped(inside, &target)?;
    if prefix_length(rest).is_some() {
        return Err(rest.error(0, "the prefix length goes inside the brackets, as in [2001:db8::/32]"));
    }
    if !rest.text.is_empty() && !rest.text.starts_with([':', '/']) {
        return Err(rest.error(0, format!("{:?} is neither a port (:443) nor a protocol (/tcp)", rest.text)));
    }
    Ok((target, rest))
}

fn network(host: Part, address: IpAddr, length: Part) -> Result<Target, RuleError> {
    let most: u8 = if address.is_ipv4() { 32 } else { 128 };
    let number = length.number("prefix length", 0..=most.into())?;
    // Neither conversion can fail after that check.
    let net = u8::try_from(number).ok().and_then(|number| IpNet::new(address, number).ok());
    let net = net.ok_or_else(|| length.error(0, "not a prefix length"))?;
    let network = net.trunc();
    if net != network {
        let problem = format!("{net} has bits set beyond its prefix length: probably {network} is meant");
        return Err(host.error(0, problem));
    }
    Ok(Target::Network(net))
}

/// Refuses what a socket sends as IPv4: denied as IPv6, it would still be reached.
fn check_mapped(inside: Part, target: &Target) -> Result<(), RuleError> {
    let Target::Network(IpNet::V6(net)) = target else { return Ok(()) };
    if !MAPPED.contains(net) {
        return Ok(());
    }
    let [.., a, b, c, d] = net.addr().octets();
    let length = net.prefix_len() - MAPPED.prefix_len();
    let target = Target::Network(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length).into());
    Err(inside.error(0, format!("{:?} is IPv4-mapped, and sent as IPv4: write {target}", inside.text)))
}
