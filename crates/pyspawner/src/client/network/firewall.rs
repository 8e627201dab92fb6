//! The firewall: a table in the router, and one on the host.
//!
//! The router's judges. Who a packet is from is told by the interface that it comes in by, which nobody can forge; what that child may do, by
//! a number in the interface's name. So a spawn changes no rule, unless its policy is a new one. No program of the host's has to do with
//! that table: a firewall that is loaded anew takes away NAT, and so the answers, and never the judge.
//!
//! The host's table has the way out, and says once more what may not be.

use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::error::NetworkError;

use super::block::Block;
use super::judge::{connections, ends_here, hosts, judge, limit, neighbours, networks, nobodys, sets, state};
use super::nft::{
    Table, Where, accept, drop_it, dropping, from, interface, matches, meta, payload, refuse, refusing,
};
use super::policy::Policy;
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

/// More than there are children of a block, each of which has an interface of its own.
const METER_SIZE: u32 = 512;

/// The name of a child's interface in the router.
pub(super) fn interface_of(policy: u8, child: u16) -> String {
    format!("c{policy:02x}{child:02x}")
}

/// Makes the router's table. Children whose policy is not in it reach nothing.
pub(super) fn make_judge(router: &Router, block: &Block) -> Result<(), NetworkError> {
    let table = judging(router);
    let mut commands = vec![table.create()];
    commands.extend(sets(&table));
    let addresses = block
        .children()
        .flat_map(|child| block.addresses(child).into_iter().map(move |end| (end.address.addr(), child)));
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(|(address, _)| address.is_ipv4());
    commands.push(table.add_marks("children4", "ipv4_addr", &v4));
    commands.push(table.add_marks("children6", "ipv6_addr", &v6));
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
    let mut from_children = vec![vec![matches("!=", &meta("iifname"), &json!(CHILDREN)), accept()]];
    from_children.extend(spoofed.into_iter().map(dropping));
    from_children.extend(nobodys());
    // By its mark a connection is known to be a child's when that has ended.
    for (protocol, marks) in [("ip", "@children4"), ("ip6", "@children6")] {
        let mark = json!({"map": {"key": payload(protocol, "saddr"), "data": marks}});
        from_children.push(vec![json!({"mangle": {"key": {"ct": {"key": "mark"}}, "value": mark}})]);
    }
    from_children.push(vec![json!({"jump": {"target": "by_policy"}})]);
    from_children.push(vec![refuse()]);
    commands.extend(table.add_rules("from_children", &from_children));

    let is_known = state(&["established", "related"]);
    let through = [
        // It would leave without the change of its source.
        dropping(vec![state(&["invalid"])]),
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
    let own: Vec<IpNet> = addresses.iter().map(|network| network.addr().into()).collect();
    let commands = [hosts(&table, &own), neighbours(&table, &networks(addresses))].concat();
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
    if let Some(bandwidth) = policy.bandwidth {
        let over = over("iifname", &meter("up", number), bandwidth.get());
        commands.push(table.add_rule(&chain(number), &[over, drop_it()]));
    }
    commands.extend(table.add_rules(&chain(number), &judge(policy)));
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
    Table { name: JUDGE, place: Where::Namespace(router.namespace()) }
}

/// Makes the host's table, for the uplink of a block.
pub(super) fn make_way_out(router: &Router, block: &Block) -> Result<(), NetworkError> {
    let name = format!("{TABLES}{}", block.tag());
    let table = Table { name: &name, place: Where::Namespace(router.host()) };
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
    commands.push(table.add_rule("not_to_host", &dropping(vec![comes_in(), ends_here()])));
    commands.push(table.add_rule("to_host", &dropping(vec![comes_in()])));
    let is_known = state(&["established", "related"]);
    let through = [
        dropping(vec![comes_in(), interface("oifname", &anybody)]),
        vec![goes_out(), is_known, accept()],
        dropping(vec![goes_out()]),
    ];
    commands.extend(table.add_rules("through", &through));
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
    let table = Table { name: &name, place: host.map_or(Where::Here, Where::Namespace) };
    table.run(&[table.add(), table.delete()])
}

fn chain(policy: u8) -> String {
    format!("policy_{policy:02x}")
}

/// What counts the bytes of every interface, by a name of its own.
fn meter(direction: &str, policy: u8) -> String {
    format!("{direction}_{policy:02x}")
}

/// More connections at a time than one may have.
fn too_many() -> Value {
    meter_of("iifname", "connections", &connections())
}

/// More than so many bytes per second, of the packet's interface.
fn over(key: &str, meter: &str, bytes: u64) -> Value {
    meter_of(key, meter, &limit(bytes))
}

/// A statement that counts for each interface alone.
fn meter_of(key: &str, name: &str, statement: &Value) -> Value {
    json!({"meter": {"name": name, "key": meta(key), "size": METER_SIZE, "stmt": statement}})
}
