//! The program `nft`, and the words of its JSON: libnftables-json(5).

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::error::NetworkError;
use crate::sys::command::{run_in_network_namespace, run_in_network_of};

use super::program::find;

const FAMILY: &str = "inet";

/// Whose network it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Where<'a> {
    /// That of the calling thread.
    Here,
    /// Another network namespace.
    Namespace(BorrowedFd<'a>),
    /// That of the process with this pidfd, and with the rights of its user namespace.
    Process(BorrowedFd<'a>),
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    pub(super) name: &'a str,
    pub(super) place: Where<'a>,
}

impl Table<'_> {
    pub(super) fn create(&self) -> Value {
        json!({"create": {"table": {"family": FAMILY, "name": self.name}}})
    }

    /// The same, where it may be there already.
    pub(super) fn add(&self) -> Value {
        json!({"add": {"table": {"family": FAMILY, "name": self.name}}})
    }

    pub(super) fn delete(&self) -> Value {
        json!({"delete": {"table": {"family": FAMILY, "name": self.name}}})
    }

    /// A chain that others lead to.
    pub(super) fn add_chain(&self, name: &str) -> Value {
        self.command("add", "chain", name, json!({}))
    }

    /// A chain where the kernel sends packets to. What no rule decides is let through, or dropped.
    pub(super) fn add_hook(&self, name: &str, hook: &str, priority: i32, policy: &str) -> Value {
        let kind = if hook == "postrouting" { "nat" } else { "filter" };
        self.command(
            "add",
            "chain",
            name,
            json!({"type": kind, "hook": hook, "prio": priority, "policy": policy}),
        )
    }

    pub(super) fn delete_chain(&self, name: &str) -> Value {
        self.command("delete", "chain", name, json!({}))
    }

    pub(super) fn flush_chain(&self, name: &str) -> Value {
        self.command("flush", "chain", name, json!({}))
    }

    pub(super) fn flush_set(&self, name: &str) -> Value {
        self.command("flush", "set", name, json!({}))
    }

    /// A set of networks of one family.
    pub(super) fn add_set(&self, name: &str, kind: &str, networks: &[IpNet]) -> Value {
        let elements: Vec<Value> = networks.iter().map(network).collect();
        let mut what = json!({"type": kind, "flags": ["interval"], "auto-merge": true});
        if !elements.is_empty() {
            what["elem"] = json!(elements);
        }
        self.command("add", "set", name, what)
    }

    /// A map from addresses of one family to marks.
    pub(super) fn add_marks(&self, name: &str, kind: &str, marks: &[(IpAddr, u16)]) -> Value {
        let mut what = json!({"type": kind, "map": "mark"});
        if !marks.is_empty() {
            what["elem"] = json!(marks);
        }
        self.command("add", "map", name, what)
    }

    pub(super) fn add_elements(&self, name: &str, networks: &[IpNet]) -> Value {
        let elements: Vec<Value> = networks.iter().map(network).collect();
        self.command("add", "element", name, json!({"elem": elements}))
    }

    pub(super) fn add_rule(&self, chain: &str, expressions: &[Value]) -> Value {
        json!({"add": {"rule": {"family": FAMILY, "table": self.name, "chain": chain, "expr": expressions}}})
    }

    pub(super) fn add_rules(&self, chain: &str, rules: &[Vec<Value>]) -> Vec<Value> {
        rules.iter().map(|expressions| self.add_rule(chain, expressions)).collect()
    }

    fn command(&self, verb: &str, kind: &str, name: &str, mut what: Value) -> Value {
        what["family"] = json!(FAMILY);
        what["table"] = json!(self.name);
        what["name"] = json!(name);
        json!({verb: {kind: what}})
    }

    /// Carries out all commands, or none.
    pub(super) fn run(&self, commands: &[Value]) -> Result<(), NetworkError> {
        let input = json!({"nftables": commands}).to_string();
        nft(&["-j", "-f", "-"], &input, self.place).map(drop)
    }
}

/// The names of all tables in the network namespace of the calling thread.
pub(super) fn tables() -> Result<Vec<String>, NetworkError> {
    let listed = nft(&["-j", "list", "tables", FAMILY], "", Where::Here)?;
    let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
    let objects = listed["nftables"].as_array().into_iter().flatten();
    Ok(objects.filter_map(|object| Some(object["table"]["name"].as_str()?.to_owned())).collect())
}

/// Runs the program; its standard output.
fn nft(arguments: &[&str], input: &str, place: Where<'_>) -> Result<String, NetworkError> {
    let mut command = Command::new(find("nft").ok_or(NetworkError::NoNft)?);
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    match place {
        Where::Here => {}
        Where::Namespace(namespace) => run_in_network_namespace(&mut command, namespace),
        Where::Process(pidfd) => run_in_network_of(&mut command, pidfd),
    }
    let failed = |source: io::Error| NetworkError::Nft { said: source.to_string() };
    let mut process = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = process.stdin.take() {
        // One that does not read says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let (mut output, mut said) = (String::new(), String::new());
    for (pipe, text) in [
        (process.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read>), &mut output),
        (process.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read>), &mut said),
    ] {
        pipe.map_or(Ok(0), |mut pipe| pipe.read_to_string(text)).map_err(failed)?;
    }
    let has_worked = match process.wait() {
        Ok(status) => status.success(),
        // Somebody else has reaped it: the caller may ignore SIGCHLD, or have a handler that waits for everybody.
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => said.is_empty(),
        Err(error) => return Err(failed(error)),
    };
    if has_worked { Ok(output) } else { Err(NetworkError::Nft { said: said.trim().to_owned() }) }
}

pub(super) fn is_one_of(protocols: &[&str]) -> Value {
    matches("==", &meta("l4proto"), &json!({"set": protocols}))
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
