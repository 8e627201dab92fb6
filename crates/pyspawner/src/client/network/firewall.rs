//! The firewall: one nftables table for each block of children, written by the program `nft` in whole transactions.
//!
//! Who a packet is from is told by the interface that it comes in by, which nobody can forge; what that child may do, by a number in the
//! interface's name. So a spawn changes no rule, unless its policy is a new one. A packet is judged where it comes in, before the host's
//! own rules can give it another destination.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::{GLOBAL_V6, NEVER_V4, NEVER_V6, Protocol, internal_v4, internal_v6};
use crate::error::{Error, FailAt, NetworkError, Step};
use crate::layer::Layer;
use crate::sys::netlink::Netlink;

use super::block::{Block, lock_left_behind};
use super::policy::{Endpoint, Policy};

/// All interfaces of pyspawner's begin with this, and no child reaches another one by any of them.
pub(super) const INTERFACES: &str = "psp";

/// All tables of pyspawner's do.
const TABLES: &str = "pyspawner-";

const FAMILY: &str = "inet";

/// After conntrack (-200), before the host's changes of destinations (-100).
const BEFORE_DNAT: i32 = -150;
/// Before the host's own filters, whose word counts too.
const BEFORE_FILTER: i32 = -10;
const SOURCE_NAT: i32 = 100;

/// More than a block has children, each of which has an interface of its own.
const METER_SIZE: u32 = 512;

/// Where `nft` is for those whose `PATH` has no directories of an administrator's.
const ELSEWHERE: [&str; 2] = ["/usr/sbin/nft", "/sbin/nft"];

/// A table that exists.
#[derive(Debug)]
pub(super) struct Firewall {
    table: String,
    interfaces: String,
}

impl Firewall {
    /// Makes the table of a block. Children whose policy is not in it reach nothing.
    pub(super) fn make(block: &Block) -> Result<Self, Error> {
        let tag = block.tag();
        let firewall = Self { table: format!("{TABLES}{tag}"), interfaces: format!("{INTERFACES}{tag}") };
        run(&firewall.base(block))?;
        Ok(firewall)
    }

    /// The name of the interface on the host's side of a child.
    pub(super) fn interface(&self, policy: u8, child: u16) -> String {
        format!("{}{policy:02x}{child:02x}", self.interfaces)
    }

    /// Makes `policies` those that count, by their numbers. `new` was not there before; `gone` was and is not.
    pub(super) fn change(
        &self,
        policies: &[(u8, &Policy)],
        new: (u8, &Policy),
        gone: Option<u8>,
    ) -> Result<(), NetworkError> {
        let mut commands = vec![self.flush("by_policy"), self.flush("to_policy")];
        if let Some(gone) = gone {
            commands.push(self.flush(&chain(gone)));
            commands.push(self.command("delete", "chain", &chain(gone), json!({})));
        }
        let (number, policy) = new;
        commands.push(self.command("add", "chain", &chain(number), json!({})));
        commands.extend(self.rules(&chain(number), &judge(number, policy)));
        for (number, policy) in policies {
            let of_policy = format!("{}{number:02x}*", self.interfaces);
            commands.push(self.rule(
                "by_policy",
                &[interface("iifname", &of_policy), json!({"goto": {"target": chain(*number)}})],
            ));
            if let Some(bandwidth) = policy.bandwidth {
                let slow = [
                    interface("oifname", &of_policy),
                    over("oifname", &meter("down", *number), bandwidth.get()),
                    drop_it(),
                ];
                commands.push(self.rule("to_policy", &slow));
            }
        }
        run(&commands)
    }

    /// Cuts every child off that lives, and takes the table away.
    pub(super) fn remove(&self) -> Result<(), Error> {
        remove(&self.table, &self.interfaces)
    }

    fn base(&self, block: &Block) -> Vec<Value> {
        let ours = format!("{}*", self.interfaces);
        let anybody = format!("{INTERFACES}*");
        let mut commands = vec![json!({"create": {"table": {"family": FAMILY, "name": self.table}}})];
        let v4: Vec<IpNet> = NEVER_V4.iter().map(|(network, _)| (*network).into()).collect();
        let v6: Vec<IpNet> = NEVER_V6.iter().map(|(network, _)| (*network).into()).collect();
        commands.push(self.addresses("never4", &v4));
        commands.push(self.addresses("never6", &v6));
        let v4: Vec<IpNet> = internal_v4().into_iter().map(IpNet::from).collect();
        let v6: Vec<IpNet> = internal_v6().into_iter().map(IpNet::from).collect();
        commands.push(self.addresses("internal4", &v4));
        commands.push(self.addresses("internal6", &v6));
        for (name, kind, hook, priority) in [
            ("from_children", "filter", "prerouting", BEFORE_DNAT),
            ("to_children", "filter", "forward", BEFORE_FILTER),
            ("to_host", "filter", "input", BEFORE_FILTER),
            ("masquerade", "nat", "postrouting", SOURCE_NAT),
        ] {
            let what = json!({"type": kind, "hook": hook, "prio": priority, "policy": "accept"});
            commands.push(self.command("add", "chain", name, what));
        }
        for name in ["by_policy", "to_policy"] {
            commands.push(self.command("add", "chain", name, json!({})));
        }
        // Only its own address: the second of its four, and the one to which the way leads back by the same interface.
        let spoofed = [
            vec![matches("!=", &json!({"&": [payload("ip", "saddr"), "0.0.0.3"]}), &json!("0.0.0.2"))],
            vec![matches("!=", &json!({"&": [payload("ip6", "saddr"), "::3"]}), &json!("::2"))],
            vec![matches("==", &json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}), &json!(false))],
        ];
        // The host itself, broadcast, multicast.
        let nobodys = [
            vec![matches("!=", &json!({"fib": {"result": "type", "flags": ["daddr"]}}), &json!("unicast"))],
            vec![matches("==", &payload("ip", "daddr"), &json!("@never4"))],
            vec![matches("==", &payload("ip6", "daddr"), &json!("@never6"))],
        ];
        let mut from_children = vec![vec![matches("!=", &meta("iifname"), &json!(ours)), accept()]];
        from_children.extend(spoofed.into_iter().map(dropping));
        from_children.extend(nobodys.into_iter().map(refusing));
        if block.v6.is_none() {
            from_children.push(dropping(vec![matches("==", &meta("nfproto"), &json!("ipv6"))]));
        }
        from_children.push(vec![json!({"jump": {"target": "by_policy"}})]);
        from_children.push(vec![refuse()]);
        commands.extend(self.rules("from_children", &from_children));
        commands.extend(self.rules(
            "to_children",
            &[
                dropping(vec![interface("iifname", &ours), interface("oifname", &anybody)]),
                vec![matches("!=", &meta("oifname"), &json!(ours)), accept()],
                dropping(vec![matches(
                    "!=",
                    &json!({"ct": {"key": "state"}}),
                    &json!({"set": ["established", "related"]}),
                )]),
                vec![json!({"jump": {"target": "to_policy"}})],
            ],
        ));
        commands.extend(self.rules("to_host", &[dropping(vec![interface("iifname", &ours)])]));
        let outside = || matches("!=", &meta("oifname"), &json!(anybody));
        let mut masquerade = vec![vec![from("ip", &block.v4.into()), outside(), json!({"masquerade": null})]];
        if let Some(v6) = block.v6 {
            masquerade.push(vec![from("ip6", &v6.into()), outside(), json!({"masquerade": null})]);
        }
        commands.extend(self.rules("masquerade", &masquerade));
        commands
    }

    fn command(&self, verb: &str, kind: &str, name: &str, mut what: Value) -> Value {
        what["family"] = json!(FAMILY);
        what["table"] = json!(self.table);
        what["name"] = json!(name);
        json!({verb: {kind: what}})
    }

    fn flush(&self, chain: &str) -> Value {
        self.command("flush", "chain", chain, json!({}))
    }

    fn addresses(&self, name: &str, networks: &[IpNet]) -> Value {
        let kind =
            if networks.iter().any(|network| network.addr().is_ipv6()) { "ipv6_addr" } else { "ipv4_addr" };
        let elements: Vec<Value> = networks.iter().map(network).collect();
        self.command(
            "add",
            "set",
            name,
            json!({"type": kind, "flags": ["interval"], "auto-merge": true, "elem": elements}),
        )
    }

    fn rule(&self, chain: &str, expressions: &[Value]) -> Value {
        json!({"add": {"rule": {"family": FAMILY, "table": self.table, "chain": chain, "expr": expressions}}})
    }

    fn rules(&self, chain: &str, rules: &[Vec<Value>]) -> Vec<Value> {
        rules.iter().map(|expressions| self.rule(chain, expressions)).collect()
    }
}

/// Removes what processes have left behind that did not close their Clients.
pub(super) fn sweep() -> Result<(), Error> {
    let listed = nft(&["-j", "list", "tables", FAMILY], "")?;
    let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
    let objects = listed["nftables"].as_array().into_iter().flatten();
    for tag in objects.filter_map(|object| object["table"]["name"].as_str()?.strip_prefix(TABLES)) {
        // Held until it is gone, so that nobody takes the block meanwhile.
        if let Some(_lock) = lock_left_behind(tag) {
            remove(&format!("{TABLES}{tag}"), &format!("{INTERFACES}{tag}"))?;
        }
    }
    Ok(())
}

/// First the interfaces: what is left without them reaches nothing.
fn remove(table: &str, interfaces: &str) -> Result<(), Error> {
    let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    let links = netlink.links().fail_at(Layer::Network, Step::FindStaleInterface)?;
    for link in links.iter().filter(|link| link.is_veth && link.name.starts_with(interfaces)) {
        // It may go by itself at the same time.
        let _ = netlink.delete(link.index);
    }
    Ok(run(&[json!({"delete": {"table": {"family": FAMILY, "name": table}}})])?)
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

fn is_one_of(protocols: &[&str]) -> Value {
    matches("==", &meta("l4proto"), &json!({"set": protocols}))
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

fn matches(operator: &str, left: &Value, right: &Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}

fn interface(key: &str, name: &str) -> Value {
    matches("==", &meta(key), &json!(name))
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn to(network: &IpNet) -> Value {
    let protocol = if network.addr().is_ipv6() { "ip6" } else { "ip" };
    matches("==", &payload(protocol, "daddr"), &self::network(network))
}

fn from(protocol: &str, network: &IpNet) -> Value {
    matches("==", &payload(protocol, "saddr"), &self::network(network))
}

fn network(network: &IpNet) -> Value {
    json!({"prefix": {"addr": network.network(), "len": network.prefix_len()}})
}

fn accept() -> Value {
    json!({"accept": null})
}

fn drop_it() -> Value {
    json!({"drop": null})
}

/// The child is told, and does not wait for an answer.
fn refuse() -> Value {
    json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}})
}

fn refusing(mut rule: Vec<Value>) -> Vec<Value> {
    rule.push(refuse());
    rule
}

fn accepting(mut rule: Vec<Value>) -> Vec<Value> {
    rule.push(accept());
    rule
}

fn dropping(mut rule: Vec<Value>) -> Vec<Value> {
    rule.push(drop_it());
    rule
}

/// All commands, or none.
fn run(commands: &[Value]) -> Result<(), NetworkError> {
    nft(&["-j", "-f", "-"], &json!({"nftables": commands}).to_string()).map(drop)
}

/// Runs the program; its standard output.
fn nft(arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let elsewhere = ELSEWHERE.into_iter().filter(|path| Path::new(path).exists());
    let mut process = None;
    for program in ["nft"].into_iter().chain(elsewhere) {
        let started = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match started {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            started => {
                process = Some(started);
                break;
            }
        }
    }
    let failed = |source: io::Error| NetworkError::Nft { said: source.to_string() };
    let mut process = process.ok_or(NetworkError::NoNft)?.map_err(failed)?;
    if let Some(mut stdin) = process.stdin.take() {
        // One that does not read says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = process.wait_with_output().map_err(failed)?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    Err(NetworkError::Nft { said: String::from_utf8_lossy(&ended.stderr).trim().to_owned() })
}
