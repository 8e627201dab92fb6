//! What is decided about a packet of a child's, wherever its firewall is: in a router, or in the child's own network namespace.

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::{GLOBAL_V6, NEVER_V4, NEVER_V6, Protocol, internal_v4, internal_v6};

use super::block::LEAST_PREFIX;
use super::nft::{Table, accepting, is_one_of, matches, payload, refuse, refusing, to};
use super::policy::{Endpoint, Policy};

/// The most connections of a child at a time: all have to share what the host can remember.
const CONNECTIONS: u32 = 1024;

/// The sets of addresses that the rules here need. Those of the host are empty.
pub(super) fn sets(table: &Table<'_>) -> Vec<Value> {
    let never_v4: Vec<IpNet> = NEVER_V4.iter().map(|(network, _)| (*network).into()).collect();
    let never_v6: Vec<IpNet> = NEVER_V6.iter().map(|(network, _)| (*network).into()).collect();
    let internal_v4: Vec<IpNet> = internal_v4().into_iter().map(IpNet::from).collect();
    let internal_v6: Vec<IpNet> = internal_v6().into_iter().map(IpNet::from).collect();
    vec![
        table.add_set("never4", "ipv4_addr", &never_v4),
        table.add_set("never6", "ipv6_addr", &never_v6),
        table.add_set("internal4", "ipv4_addr", &internal_v4),
        table.add_set("internal6", "ipv6_addr", &internal_v6),
        table.add_set("host4", "ipv4_addr", &[]),
        table.add_set("host6", "ipv6_addr", &[]),
        table.add_set("lan4", "ipv4_addr", &[]),
        table.add_set("lan6", "ipv6_addr", &[]),
    ]
}

/// Fills those of the host: what is sent there would not leave it.
pub(super) fn hosts(table: &Table<'_>, networks: &[IpNet]) -> Vec<Value> {
    fill(table, ["host4", "host6"], networks)
}

/// Fills those of its neighbours, who may have public addresses and are no strangers.
pub(super) fn neighbours(table: &Table<'_>, networks: &[IpNet]) -> Vec<Value> {
    fill(table, ["lan4", "lan6"], networks)
}

/// The networks that these addresses are in.
pub(super) fn networks(addresses: &[IpNet]) -> Vec<IpNet> {
    let networks = addresses.iter().filter(|network| network.prefix_len() >= LEAST_PREFIX);
    networks.map(IpNet::trunc).collect()
}

fn fill(table: &Table<'_>, [of_v4, of_v6]: [&str; 2], networks: &[IpNet]) -> Vec<Value> {
    // Overlapping ones would be refused.
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
        IpNet::aggregate(&networks.to_vec()).into_iter().partition(|one| one.addr().is_ipv4());
    let mut commands = Vec::new();
    for (name, networks) in [(of_v4, v4), (of_v6, v6)] {
        commands.push(table.flush_set(name));
        if !networks.is_empty() {
            commands.push(table.add_elements(name, &networks));
        }
    }
    commands
}

/// Refuses what no policy allows: where the firewall is, the host, broadcast, multicast, and what is never reached.
pub(super) fn nobodys() -> Vec<Vec<Value>> {
    let nobodys = [
        ends_here(),
        matches("==", &payload("ip", "daddr"), &json!("@never4")),
        matches("==", &payload("ip6", "daddr"), &json!("@never6")),
        matches("==", &payload("ip", "daddr"), &json!("@host4")),
        matches("==", &payload("ip6", "daddr"), &json!("@host6")),
    ];
    nobodys.into_iter().map(|matched| refusing(vec![matched])).collect()
}

/// Where the rule is, the packet would not be sent on: it is for the host itself, broadcast or multicast.
pub(super) fn ends_here() -> Value {
    matches("!=", &json!({"fib": {"result": "type", "flags": ["daddr"]}}), &json!("unicast"))
}

/// The rules of a policy: the first that matches decides.
pub(super) fn judge(policy: &Policy) -> Vec<Vec<Value>> {
    let mut rules = Vec::new();
    for endpoint in &policy.deny {
        rules.extend(denied(endpoint).into_iter().map(refusing));
    }
    for resolver in &policy.dns {
        let network = Some((*resolver).into());
        let resolver = Endpoint { network, ports: vec![53..=53], protocol: None };
        rules.extend(allowed(&resolver).into_iter().map(accepting));
    }
    for endpoint in &policy.allow {
        rules.extend(allowed(endpoint).into_iter().map(accepting));
    }
    rules.push(vec![refuse()]);
    rules
}

fn denied(endpoint: &Endpoint) -> Vec<Vec<Value>> {
    let place: Vec<Value> = endpoint.network.iter().map(to).collect();
    let protocol = match (endpoint.protocol, endpoint.ports.is_empty()) {
        (None, true) => Vec::new(),
        (Some(Protocol::Icmp), _) => vec![is_one_of(&["icmp", "icmpv6"])],
        _ => transport(endpoint),
    };
    vec![[place, protocol].concat()]
}

fn allowed(endpoint: &Endpoint) -> Vec<Vec<Value>> {
    let mut rules = Vec::new();
    for (place, is_v6) in places(endpoint) {
        if endpoint.protocol != Some(Protocol::Icmp) {
            rules.push([place.clone(), transport(endpoint)].concat());
        }
        let is_icmp = matches!(endpoint.protocol, None | Some(Protocol::Icmp)) && endpoint.ports.is_empty();
        if is_icmp {
            let field = payload(if is_v6 { "icmpv6" } else { "icmp" }, "type");
            rules.push([place, vec![matches("==", &field, &json!("echo-request"))]].concat());
        }
    }
    rules
}

/// Where an allowed endpoint is, in one rule for each family and range; and whether that is IPv6.
fn places(endpoint: &Endpoint) -> Vec<(Vec<Value>, bool)> {
    if let Some(network) = &endpoint.network {
        return vec![(vec![to(network)], network.addr().is_ipv6())];
    }
    let not_in = |protocol, sets: [&str; 2]| {
        sets.map(|set| matches("!=", &payload(protocol, "daddr"), &json!(set))).to_vec()
    };
    let v4 = (not_in("ip", ["@internal4", "@lan4"]), false);
    let v6 = GLOBAL_V6
        .iter()
        .map(|range| ([vec![to(&(*range).into())], not_in("ip6", ["@internal6", "@lan6"])].concat(), true));
    [v4].into_iter().chain(v6).collect()
}

/// Of TCP and UDP, what an endpoint means.
fn transport(endpoint: &Endpoint) -> Vec<Value> {
    let protocols: &[&str] = match endpoint.protocol {
        Some(Protocol::Tcp) => &["tcp"],
        Some(Protocol::Udp) => &["udp"],
        _ => &["tcp", "udp"],
    };
    let mut expressions = vec![is_one_of(protocols)];
    if !endpoint.ports.is_empty() {
        let ports = endpoint.ports.iter().map(|range| match (range.start(), range.end()) {
            (first, last) if first == last => json!(first),
            (first, last) => json!({"range": [first, last]}),
        });
        // Of a set, overlapping ranges would be refused.
        let ports: Vec<Value> = ports.collect();
        expressions.push(matches("==", &payload("th", "dport"), &json!({"set": ports})));
    }
    expressions
}

/// What the kernel knows of a packet's connection.
pub(super) fn state(states: &[&str]) -> Value {
    matches("==", &json!({"ct": {"key": "state"}}), &json!({"set": states}))
}

/// More connections at a time than a child may have.
pub(super) fn connections() -> Value {
    json!({"ct count": {"val": CONNECTIONS, "inv": true}})
}

/// More than so many bytes per second.
pub(super) fn limit(bytes: u64) -> Value {
    const LEAST_BURST: u64 = 64 * 1024;
    json!({"limit": {
        "rate": bytes, "per": "second", "rate_unit": "bytes",
        "burst": LEAST_BURST.max(bytes / 8), "burst_unit": "bytes", "inv": true,
    }})
}
