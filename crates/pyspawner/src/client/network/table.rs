//! The words of nftables: a table, and what its rules are made of. See libnftables-json(5).

use ipnet::IpNet;
use serde_json::{Value, json};

pub(super) const FAMILY: &str = "inet";

/// A table, of both families.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
}

impl Table {
    /// Makes it; an error if it is there.
    pub(super) fn create(&self) -> Value {
        json!({"create": {"table": {"family": FAMILY, "name": self.name}}})
    }

    /// Takes it away.
    pub(super) fn delete(&self) -> Value {
        json!({"delete": {"table": {"family": FAMILY, "name": self.name}}})
    }

    /// A chain that the kernel calls.
    pub(super) fn hook(&self, name: &str, kind: &str, hook: &str, priority: i32, policy: &str) -> Value {
        self.command(
            "add",
            "chain",
            name,
            json!({"type": kind, "hook": hook, "prio": priority, "policy": policy}),
        )
    }

    /// Does something with an object of the table.
    pub(super) fn command(&self, verb: &str, kind: &str, name: &str, mut what: Value) -> Value {
        what["family"] = json!(FAMILY);
        what["table"] = json!(self.name);
        what["name"] = json!(name);
        json!({verb: {kind: what}})
    }

    /// Takes all rules out of a chain.
    pub(super) fn flush(&self, chain: &str) -> Value {
        self.command("flush", "chain", chain, json!({}))
    }

    /// A set of networks, which may overlap.
    pub(super) fn addresses(&self, name: &str, networks: &[IpNet]) -> Value {
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

    /// A rule at the end of a chain.
    pub(super) fn rule(&self, chain: &str, expressions: &[Value]) -> Value {
        json!({"add": {"rule": {"family": FAMILY, "table": self.name, "chain": chain, "expr": expressions}}})
    }

    /// Several.
    pub(super) fn rules(&self, chain: &str, rules: &[Vec<Value>]) -> Vec<Value> {
        rules.iter().map(|expressions| self.rule(chain, expressions)).collect()
    }
}

pub(super) fn matches(operator: &str, left: &Value, right: &Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}

pub(super) fn interface(key: &str, name: &str) -> Value {
    matches("==", &meta(key), &json!(name))
}

pub(super) fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

pub(super) fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

pub(super) fn to(network: &IpNet) -> Value {
    let protocol = if network.addr().is_ipv6() { "ip6" } else { "ip" };
    matches("==", &payload(protocol, "daddr"), &self::network(network))
}

pub(super) fn from(protocol: &str, network: &IpNet) -> Value {
    matches("==", &payload(protocol, "saddr"), &self::network(network))
}

pub(super) fn network(network: &IpNet) -> Value {
    json!({"prefix": {"addr": network.network(), "len": network.prefix_len()}})
}

pub(super) fn accept() -> Value {
    json!({"accept": null})
}

pub(super) fn drop_it() -> Value {
    json!({"drop": null})
}

/// The child is told, and does not wait for an answer.
pub(super) fn refuse() -> Value {
    json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}})
}

pub(super) fn refusing(mut rule: Vec<Value>) -> Vec<Value> {
    rule.push(refuse());
    rule
}

pub(super) fn accepting(mut rule: Vec<Value>) -> Vec<Value> {
    rule.push(accept());
    rule
}

pub(super) fn dropping(mut rule: Vec<Value>) -> Vec<Value> {
    rule.push(drop_it());
    rule
}

pub(super) fn is_one_of(protocols: &[&str]) -> Value {
    matches("==", &meta("l4proto"), &json!({"set": protocols}))
}

/// More than so many bytes per second.
pub(super) fn over(bytes: u64) -> Value {
    const LEAST_BURST: u64 = 64 * 1024;
    json!({"limit": {
        "rate": bytes, "per": "second", "rate_unit": "bytes",
        "burst": LEAST_BURST.max(bytes / 8), "burst_unit": "bytes", "inv": true,
    }})
}
