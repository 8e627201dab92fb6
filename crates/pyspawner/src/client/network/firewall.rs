//! The firewall: a table in the router, and one on the host.
//!
//! The router's judges. Who a packet is from is told by the interface that it comes in by, which nobody can forge; what that child may do, by
//! a number in the interface's name. So a spawn changes no rule, unless its policy is a new one. No program of the host's has to do with
//! that table: a firewall that is loaded anew takes away the way out, and never the judge.
//!
//! The host's table has the way out, and says once more what may not be.

use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::{GLOBAL_V6, NEVER_V4, NEVER_V6, Protocol, internal_v4, internal_v6};
use crate::error::NetworkError;

use super::block::{Block, LEAST_PREFIX};
use super::nft::{
    Table, accept, accepting, drop_it, dropping, from, interface, is_one_of, matches, meta, payload, refuse,
    refusing, to,
};
use super::policy::{Endpoint, Policy};
use super::router::{Router, UPLINK};

/// All interfaces of pyspawner's on a host begin with this, and no child reaches another one by any of them.
pub(super) const INTERFACES: &str = "psp";

/// All tables of pyspawner's on a host do.
pub(super) const TABLES: &str = "pyspawner-";

/// The router's table.
const JUDGE: &str = "pyspawner";

/// Those of children, in the router.
const CHILDREN: &str = "c*";

/// After conntrack (-200), before the host's changes of destinations (-100).
const BEFORE_DNAT: i32 = -150;
/// Before the host's own filters, whose word counts too.
const BEFORE_FILTER: i32 = -10;
const SOURCE_NAT: i32 = 100;

/// The most connections of a child at a time: all have to share what the host can remember.
const CONNECTIONS: u32 = 1024;

/// More than there are children of a block, each of which has an interface of its own.
const METER_SIZE: u32 = 512;

/// The name of a child's interface in the router.
pub(super) fn interface_of(policy: u8, child: u16) -> String {
    format!("c{policy:02x}{child:02x}")
}

/// Makes the router's table. Children whose policy is not in it reach nothing.
pub(super) fn make_judge(router: &Router) -> Result<(), NetworkError> {
    let table = judging(router);
    let mut commands = vec![table.create()];
    let v4: Vec<IpNet> = NEVER_V4.iter().map(|(network, _)| (*network).into()).collect();
    let v6: Vec<IpNet> = NEVER_V6.iter().map(|(network, _)| (*network).into()).collect();
    commands.push(table.add_set("never4", "ipv4_addr", &v4));
    commands.push(table.add_set("never6", "ipv6_addr", &v6));
    let v4: Vec<IpNet> = internal_v4().into_iter().map(IpNet::from).collect();
    let v6: Vec<IpNet> = internal_v6().into_iter().map(IpNet::from).collect();
    commands.push(table.add_set("internal4", "ipv4_addr", &v4));
    commands.push(table.add_set("internal6", "ipv6_addr", &v6));
    for name in ["host", "lan"] {
        commands.push(table.add_set(&format!("{name}4"), "ipv4_addr", &[]));
        commands.push(table.add_set(&format!("{name}6"), "ipv6_addr", &[]));
    }
    commands.push(table.add_hook("from_children", "prerouting", BEFORE_DNAT, "accept"));
    commands.push(table.add_hook("through", "forward", BEFORE_FILTER, "drop"));
    commands.push(table.add_hook("to_router", "input", BEFORE_FILTER, "drop"));
    commands.push(table.add_hook("masquerade", "postrouting", SOURCE_NAT, "accept"));
    commands.push(table.add_chain("by_policy"));
    commands.push(table.add_chain("to_policy"));

    // Only its own address: the second of its four, and the one to which the way leads back by the same interface.
    let spoofed = [
        vec![matches("!=", &json!({"&": [payload("ip", "saddr"), "0.0.0.3"]}), &json!("0.0.0.2"))],
        vec![matches("!=", &json!({"&": [payload("ip6", "saddr"), "::3"]}), &json!("::2"))],
        vec![matches("==", &json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}), &json!(false))],
    ];
    let nobodys = [
        // The router itself, broadcast, multicast.
        vec![matches("!=", &json!({"fib": {"result": "type", "flags": ["daddr"]}}), &json!("unicast"))],
        vec![matches("==", &payload("ip", "daddr"), &json!("@never4"))],
        vec![matches("==", &payload("ip6", "daddr"), &json!("@never6"))],
        vec![matches("==", &payload("ip", "daddr"), &json!("@host4"))],
        vec![matches("==", &payload("ip6", "daddr"), &json!("@host6"))],
    ];
    let mut from_children = vec![vec![matches("!=", &meta("iifname"), &json!(CHILDREN)), accept()]];
    from_children.extend(spoofed.into_iter().map(dropping));
    from_children.extend(nobodys.into_iter().map(refusing));
    from_children.push(vec![json!({"jump": {"target": "by_policy"}})]);
    from_children.push(vec![refuse()]);
    commands.extend(table.add_rules("from_children", &from_children));

    let state = |states: &[&str]| matches("==", &json!({"ct": {"key": "state"}}), &json!({"set": states}));
    let is_known = state(&["established", "related"]);
    let through = [
        refusing(vec![interface("iifname", CHILDREN), state(&["new"]), too_many()]),
        vec![interface("iifname", CHILDREN), interface("oifname", UPLINK), accept()],
        vec![interface("oifname", CHILDREN), is_known.clone(), json!({"jump": {"target": "to_policy"}})],
        vec![interface("iifname", UPLINK), interface("oifname", CHILDREN), is_known, accept()],
    ];
    commands.extend(table.add_rules("through", &through));
    commands.push(table.add_rule("masquerade", &[interface("oifname", UPLINK), json!({"masquerade": null})]));
    table.run(&commands)
}

/// Tells the router all addresses of the host: what is sent to them would not leave it. And its networks, which may have public addresses
/// and be no stranger's.
pub(super) fn tell_addresses_of_host(router: &Router, addresses: &[IpNet]) -> Result<(), NetworkError> {
    let table = judging(router);
    let by_family = |networks: Vec<IpNet>| -> (Vec<IpNet>, Vec<IpNet>) {
        networks.into_iter().partition(|one| one.addr().is_ipv4())
    };
    let (v4, v6) = by_family(addresses.iter().map(|network| network.addr().into()).collect());
    let networks = addresses.iter().filter(|network| network.prefix_len() >= LEAST_PREFIX);
    let (lan4, lan6) = by_family(networks.map(IpNet::trunc).collect());
    let mut commands = Vec::new();
    for (name, networks) in [("host4", v4), ("host6", v6), ("lan4", lan4), ("lan6", lan6)] {
        commands.push(table.flush_set(name));
        if !networks.is_empty() {
            commands.push(table.add_elements(name, &networks));
        }
    }
    table.run(&commands)
}

/// Makes `policies` those that count, by their numbers. `new` was not there before; `gone` was and is not.
pub(super) fn change(
    router: &Router,
    policies: &[(u8, &Policy)],
    new: (u8, &Policy),
    gone: Option<u8>,
) -> Result<(), NetworkError> {
    let table = judging(router);
    let mut commands = vec![table.flush_chain("by_policy"), table.flush_chain("to_policy")];
    if let Some(gone) = gone {
        commands.push(table.flush_chain(&chain(gone)));
        commands.push(table.delete_chain(&chain(gone)));
    }
    let (number, policy) = new;
    commands.push(table.add_chain(&chain(number)));
    commands.extend(table.add_rules(&chain(number), &judge(number, policy)));
    for (number, policy) in policies {
        let interfaces = format!("c{number:02x}*");
        let goto = json!({"goto": {"target": chain(*number)}});
        commands.push(table.add_rule("by_policy", &[interface("iifname", &interfaces), goto]));
        if let Some(bandwidth) = policy.bandwidth {
            let over = over("oifname", &meter("down", *number), bandwidth.get());
            let slow = [interface("oifname", &interfaces), over, drop_it()];
            commands.push(table.add_rule("to_policy", &slow));
        }
    }
    table.run(&commands)
}

fn judging(router: &Router) -> Table<'_> {
    Table { name: JUDGE, namespace: Some(router.namespace()) }
}

/// Makes the host's table, for the uplink of a block.
pub(super) fn make_way_out(router: &Router, block: &Block) -> Result<(), NetworkError> {
    let name = format!("{TABLES}{}", block.tag());
    let table = Table { name: &name, namespace: Some(router.host()) };
    let uplink = router.uplink();
    let anybody = format!("{INTERFACES}*");
    let comes_in = || interface("iifname", uplink);
    let goes_out = || interface("oifname", uplink);
    let mut commands = vec![
        table.create(),
        table.add_hook("not_to_host", "prerouting", BEFORE_DNAT, "accept"),
        table.add_hook("to_host", "input", BEFORE_FILTER, "accept"),
        table.add_hook("through", "forward", BEFORE_FILTER, "accept"),
        table.add_hook("masquerade", "postrouting", SOURCE_NAT, "accept"),
    ];
    let is_hosts = matches("!=", &json!({"fib": {"result": "type", "flags": ["daddr"]}}), &json!("unicast"));
    commands.push(table.add_rule("not_to_host", &dropping(vec![comes_in(), is_hosts])));
    commands.push(table.add_rule("to_host", &dropping(vec![comes_in()])));
    let is_unknown =
        matches("!=", &json!({"ct": {"key": "state"}}), &json!({"set": ["established", "related"]}));
    commands.push(table.add_rule("through", &dropping(vec![comes_in(), interface("oifname", &anybody)])));
    commands.push(table.add_rule("through", &dropping(vec![goes_out(), is_unknown])));
    let masquerade = json!({"masquerade": null});
    let outside = matches("!=", &meta("oifname"), &json!(anybody));
    commands.push(
        table.add_rule("masquerade", &[from("ip", &block.v4.into()), outside.clone(), masquerade.clone()]),
    );
    if let Some(v6) = block.v6 {
        commands.push(table.add_rule("masquerade", &[from("ip6", &v6.into()), outside, masquerade]));
    }
    table.run(&commands)
}

/// Takes away the host's table of a block: in the network namespace `host`, or in that of the calling thread. One that is not there is made
/// first: somebody else may be sweeping too.
pub(super) fn remove_way_out(tag: &str, host: Option<BorrowedFd<'_>>) -> Result<(), NetworkError> {
    let name = format!("{TABLES}{tag}");
    let table = Table { name: &name, namespace: host };
    table.run(&[table.add(), table.delete()])
}

fn chain(policy: u8) -> String {
    format!("policy_{policy:02x}")
}

/// What counts the bytes of every interface, by a name of its own.
fn meter(direction: &str, policy: u8) -> String {
    format!("{direction}_{policy:02x}")
}

/// The rules of a policy: the first that matches decides.
fn judge(number: u8, policy: &Policy) -> Vec<Vec<Value>> {
    let mut rules = Vec::new();
    if let Some(bandwidth) = policy.bandwidth {
        rules.push(vec![over("iifname", &meter("up", number), bandwidth.get()), drop_it()]);
    }
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

/// More connections at a time than one may have.
fn too_many() -> Value {
    let count = json!({"ct count": {"val": CONNECTIONS, "inv": true}});
    json!({"meter": {"name": "connections", "key": meta("iifname"), "size": METER_SIZE, "stmt": count}})
}

/// More than so many bytes per second, of the packet's interface.
fn over(key: &str, meter: &str, bytes: u64) -> Value {
    const LEAST_BURST: u64 = 64 * 1024;
    let limit = json!({
        "rate": bytes, "per": "second", "rate_unit": "bytes",
        "burst": LEAST_BURST.max(bytes / 8), "burst_unit": "bytes", "inv": true,
    });
    json!({"meter": {"name": meter, "key": meta(key), "size": METER_SIZE, "stmt": {"limit": limit}}})
}
