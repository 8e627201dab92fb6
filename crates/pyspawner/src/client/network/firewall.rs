//! The firewall: one nftables table for each block of children, written by the program `nft` in whole transactions.
//!
//! Who a packet is from is told by the interface that it comes in by, which nobody can forge; what that child may do, by a number in the
//! interface's name. So a spawn changes no rule, unless its policy is a new one. A packet is judged where it comes in, before the host's
//! own rules can give it another destination.

use serde_json::{Value, json};

use crate::error::{Error, FailAt, NetworkError, Step};
use crate::layer::Layer;
use crate::sys::netlink::Netlink;

use super::block::{Block, lock_left_behind};
use super::judge::{judge, nobodys, sets};
use super::nft::{Where, nft, run};
use super::policy::Policy;
use super::table::{
    self, FAMILY, Table, accept, drop_it, dropping, from, interface, matches, meta, payload, refuse,
};

/// All interfaces of pyspawner's begin with this, and no child reaches another one by any of them.
pub(super) const INTERFACES: &str = "psp";

/// All tables of pyspawner's do.
const TABLES: &str = "pyspawner-";

/// After conntrack (-200), before the host's changes of destinations (-100).
const BEFORE_DNAT: i32 = -150;
/// Before the host's own filters, whose word counts too.
const BEFORE_FILTER: i32 = -10;
const SOURCE_NAT: i32 = 100;

/// More than a block has children, each of which has an interface of its own.
const METER_SIZE: u32 = 512;

/// A table that exists.
#[derive(Debug)]
pub(super) struct Firewall {
    table: Table,
    interfaces: String,
}

impl Firewall {
    /// Makes the table of a block. Children whose policy is not in it reach nothing.
    pub(super) fn make(block: &Block) -> Result<Self, Error> {
        let tag = block.tag();
        let firewall = Self {
            table: Table { name: format!("{TABLES}{tag}") },
            interfaces: format!("{INTERFACES}{tag}"),
        };
        run(&firewall.base(block), Where::Here)?;
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
        let mut commands = vec![self.table.flush("by_policy"), self.table.flush("to_policy")];
        if let Some(gone) = gone {
            commands.push(self.table.flush(&chain(gone)));
            commands.push(self.table.command("delete", "chain", &chain(gone), json!({})));
        }
        let (number, policy) = new;
        let too_fast = policy
            .bandwidth
            .map(|bandwidth| dropping(vec![over("iifname", &meter("up", number), bandwidth.get())]));
        let rules = too_fast.into_iter().chain(judge(policy)).collect::<Vec<_>>();
        commands.push(self.table.command("add", "chain", &chain(number), json!({})));
        commands.extend(self.table.rules(&chain(number), &rules));
        for (number, policy) in policies {
            let of_policy = format!("{}{number:02x}*", self.interfaces);
            commands.push(self.table.rule(
                "by_policy",
                &[interface("iifname", &of_policy), json!({"goto": {"target": chain(*number)}})],
            ));
            if let Some(bandwidth) = policy.bandwidth {
                let slow = [
                    interface("oifname", &of_policy),
                    over("oifname", &meter("down", *number), bandwidth.get()),
                    drop_it(),
                ];
                commands.push(self.table.rule("to_policy", &slow));
            }
        }
        run(&commands, Where::Here)
    }

    /// Cuts every child off that lives, and takes the table away.
    pub(super) fn remove(&self) -> Result<(), Error> {
        remove(&self.table, &self.interfaces)
    }

    fn base(&self, block: &Block) -> Vec<Value> {
        let ours = format!("{}*", self.interfaces);
        let anybody = format!("{INTERFACES}*");
        let mut commands = vec![self.table.create()];
        commands.extend(sets(&self.table));
        for (name, kind, hook, priority) in [
            ("from_children", "filter", "prerouting", BEFORE_DNAT),
            ("to_children", "filter", "forward", BEFORE_FILTER),
            ("to_host", "filter", "input", BEFORE_FILTER),
            ("masquerade", "nat", "postrouting", SOURCE_NAT),
        ] {
            commands.push(self.table.hook(name, kind, hook, priority, "accept"));
        }
        for name in ["by_policy", "to_policy"] {
            commands.push(self.table.command("add", "chain", name, json!({})));
        }
        // Only its own address: the second of its four, and the one to which the way leads back by the same interface.
        let spoofed = [
            vec![matches("!=", &json!({"&": [payload("ip", "saddr"), "0.0.0.3"]}), &json!("0.0.0.2"))],
            vec![matches("!=", &json!({"&": [payload("ip6", "saddr"), "::3"]}), &json!("::2"))],
            vec![matches("==", &json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}), &json!(false))],
        ];
        let mut from_children = vec![vec![matches("!=", &meta("iifname"), &json!(ours)), accept()]];
        from_children.extend(spoofed.into_iter().map(dropping));
        from_children.extend(nobodys());
        if block.v6.is_none() {
            from_children.push(dropping(vec![matches("==", &meta("nfproto"), &json!("ipv6"))]));
        }
        from_children.push(vec![json!({"jump": {"target": "by_policy"}})]);
        from_children.push(vec![refuse()]);
        commands.extend(self.table.rules("from_children", &from_children));
        commands.extend(self.table.rules(
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
        commands.extend(self.table.rules("to_host", &[dropping(vec![interface("iifname", &ours)])]));
        let outside = || matches("!=", &meta("oifname"), &json!(anybody));
        let mut masquerade = vec![vec![from("ip", &block.v4.into()), outside(), json!({"masquerade": null})]];
        if let Some(v6) = block.v6 {
            masquerade.push(vec![from("ip6", &v6.into()), outside(), json!({"masquerade": null})]);
        }
        commands.extend(self.table.rules("masquerade", &masquerade));
        commands
    }
}

/// Removes what processes have left behind that did not close their Clients.
pub(super) fn sweep() -> Result<(), Error> {
    let listed = nft(&["-j", "list", "tables", FAMILY], "", Where::Here)?;
    let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
    let objects = listed["nftables"].as_array().into_iter().flatten();
    for tag in objects.filter_map(|object| object["table"]["name"].as_str()?.strip_prefix(TABLES)) {
        // Held until it is gone, so that nobody takes the block meanwhile.
        if let Some(_lock) = lock_left_behind(tag) {
            remove(&Table { name: format!("{TABLES}{tag}") }, &format!("{INTERFACES}{tag}"))?;
        }
    }
    Ok(())
}

/// First the interfaces: what is left without them reaches nothing.
fn remove(table: &Table, interfaces: &str) -> Result<(), Error> {
    let mut netlink = Netlink::open().fail_at(Layer::Network, Step::OpenNetlink)?;
    let links = netlink.links().fail_at(Layer::Network, Step::FindStaleInterface)?;
    for link in links.iter().filter(|link| link.is_veth && link.name.starts_with(interfaces)) {
        // It may go by itself at the same time.
        let _ = netlink.delete(link.index);
    }
    Ok(run(&[table.delete()], Where::Here)?)
}

fn chain(policy: u8) -> String {
    format!("policy_{policy:02x}")
}

/// What counts the bytes of every interface, by a name of its own.
fn meter(direction: &str, policy: u8) -> String {
    format!("{direction}_{policy:02x}")
}

/// More than so many bytes per second, of the packet's interface.
fn over(key: &str, meter: &str, bytes: u64) -> Value {
    json!({"meter": {"name": meter, "key": meta(key), "size": METER_SIZE, "stmt": table::over(bytes)}})
}
