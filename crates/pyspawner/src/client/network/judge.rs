//! What is decided about a packet of a child's, wherever its firewall is: on the host, or in its own network namespace.

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::{GLOBAL_V6, NEVER_V4, NEVER_V6, Protocol, internal_v4, internal_v6};

use super::policy::{Endpoint, Policy};
use super::table::{Table, accepting, is_one_of, matches, payload, refuse, refusing, to};

/// The sets of addresses that the rules here need.
pub(super) fn sets(table: &Table) -> Vec<Value> {
    vec![
        table.addresses("never4", &NEVER_V4.iter().map(|(network, _)| (*network).into()).collect::<Vec<_>>()),
        table.addresses("never6", &NEVER_V6.iter().map(|(network, _)| (*network).into()).collect::<Vec<_>>()),
        table.addresses("internal4", &internal_v4().into_iter().map(IpNet::from).collect::<Vec<_>>()),
        table.addresses("internal6", &internal_v6().into_iter().map(IpNet::from).collect::<Vec<_>>()),
    ]
}

/// Refuses what no policy allows: this machine as the firewall sees it, broadcast, multicast, and what is never reached.
pub(super) fn nobodys() -> Vec<Vec<Value>> {
    let is_unicast = json!({"fib": {"result": "type", "flags": ["daddr"]}});
    let nobodys = [
        matches("!=", &is_unicast, &json!("unicast")),
        matches("==", &payload("ip", "daddr"), &json!("@never4")),
        matches("==", &payload("ip6", "daddr"), &json!("@never6")),
    ];
    nobodys.into_iter().map(|matched| refusing(vec![matched])).collect()
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
    let v4 = (vec![matches("!=", &payload("ip", "daddr"), &json!("@internal4"))], false);
    let v6 = GLOBAL_V6.iter().map(|range| {
        (vec![to(&(*range).into()), matches("!=", &payload("ip6", "daddr"), &json!("@internal6"))], true)
    });
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
