//! What a child may reach, in addresses: names are looked up when a child is spawned, and stay what they were then.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::config::{Managed, Protocol, Rule, Target, embedded, is_public, never};
use crate::error::NetworkError;
use crate::protocol::FileOrder;

/// Where programs find their resolvers.
const RESOLVERS: &str = "/etc/resolv.conf";

/// Where systemd-resolved says which resolvers it asks itself.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// What the firewall does for a child. Two children may have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) allow: Vec<Endpoint>,
    pub(super) deny: Vec<Endpoint>,
    pub(super) dns: Vec<IpAddr>,
    pub(super) bandwidth: Option<NonZeroU64>,
}

/// Where packets may or may not go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `None`, if allowed: the public Internet; if denied: everywhere.
    pub(super) network: Option<IpNet>,
    /// When empty: all.
    pub(super) ports: Vec<RangeInclusive<u16>>,
    /// `None`: TCP, UDP and, where there are no ports, ICMP echo.
    pub(super) protocol: Option<Protocol>,
}

/// A policy, and what the child is told of names.
pub(super) struct Resolved {
    pub(super) policy: Policy,
    pub(super) files: Vec<FileOrder>,
}

/// Looks up all names.
pub(super) fn resolve(managed: &Managed) -> Result<Resolved, NetworkError> {
    let ipv6 = managed.pool.v6.is_some();
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
    let mut allow = endpoints(&managed.allow, ipv6, |name, address| {
        // Whoever is asked for the name could else open the internal network.
        if !is_public(address) {
            return Err(NetworkError::NotPublic { name: name.to_owned(), address });
        }
        let _ = writeln!(hosts, "{address} {name}");
        Ok(())
    })?;
    let mut deny = endpoints(&managed.deny, ipv6, |_, _| Ok(()))?;
    // There may be a NAT64 behind the host.
    let again = deny.iter().filter_map(|denied| match denied.network {
        Some(IpNet::V4(network)) => {
            Some(Endpoint { network: Some(embedded(network).into()), ..denied.clone() })
        }
        _ => None,
    });
    deny.extend(again.collect::<Vec<_>>());
    let dns = match &managed.dns {
        Some(dns) => dns.clone(),
        None if allow.is_empty() => resolvers_of_host(ipv6)?,
        None => Vec::new(),
    };
    if allow.is_empty() {
        allow.push(Endpoint { network: None, ports: Vec::new(), protocol: None });
    }
    let resolvers = dns.iter().fold(String::new(), |all, address| all + &format!("nameserver {address}\n"));
    let files = vec![
        FileOrder { target: c"/etc/resolv.conf".into(), content: resolvers },
        FileOrder { target: c"/etc/hosts".into(), content: hosts },
    ];
    Ok(Resolved { policy: Policy { allow, deny, dns, bandwidth: managed.bandwidth }, files })
}

/// What rules mean; `found` is told of each address of a name.
fn endpoints(
    rules: &[Rule],
    ipv6: bool,
    mut found: impl FnMut(&str, IpAddr) -> Result<(), NetworkError>,
) -> Result<Vec<Endpoint>, NetworkError> {
    let mut endpoints = Vec::new();
    for rule in rules {
        let endpoint = |network| Endpoint { network, ports: rule.ports.clone(), protocol: rule.protocol };
        match &rule.target {
            Target::Any => endpoints.push(endpoint(None)),
            Target::Network(network) => endpoints.push(endpoint(Some(*network))),
            Target::Name(name) => {
                for address in look_up(name, ipv6)? {
                    found(name, address)?;
                    endpoints.push(endpoint(Some(address.into())));
                }
            }
        }
    }
    Ok(endpoints)
}

/// In order, so that the same answer in another order is the same policy.
fn look_up(name: &str, ipv6: bool) -> Result<BTreeSet<IpAddr>, NetworkError> {
    let error = |reason| NetworkError::Resolve { name: name.to_owned(), reason };
    // With a dot at its end it is not looked for in the domains of the host.
    let found = (format!("{name}."), 0).to_socket_addrs().or_else(|_| (name, 0).to_socket_addrs());
    let found = found.map_err(|io| error(io.to_string()))?;
    let found: BTreeSet<IpAddr> = found.map(|end| end.ip()).filter(|ip| ipv6 || ip.is_ipv4()).collect();
    if found.is_empty() {
        return Err(error("it has no IPv4 address, and ipv6 is False".to_owned()));
    }
    Ok(found)
}

/// Those of the host's resolvers that a child can reach.
fn resolvers_of_host(ipv6: bool) -> Result<Vec<IpAddr>, NetworkError> {
    let mut found = Vec::new();
    for path in [RESOLVERS, BEHIND_RESOLVED] {
        found.extend(name_servers(&fs::read_to_string(path).unwrap_or_default()));
        let usable: Vec<IpAddr> = found
            .iter()
            .copied()
            .filter(|address| never(&(*address).into()).is_none() && (ipv6 || address.is_ipv4()))
            .collect();
        if !usable.is_empty() {
            return Ok(usable);
        }
    }
    Err(NetworkError::NoResolver { found })
}

/// See resolv.conf(5). Link-local addresses with a zone are none that a child could use.
fn name_servers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok())
}
