//! A network that pyspawner manages: addresses from a pool, NAT, and a firewall.

use std::net::IpAddr;
use std::num::NonZeroU64;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ranges::never;
use super::rules::{Rule, RuleError, Target};
use crate::config::ConfigError;

/// Each child has a network of four addresses: the kernel's use, the caller's end, the child's, and broadcast.
pub(crate) const CHILD_PREFIX_V4: u8 = 30;
/// The same of IPv6.
pub(crate) const CHILD_PREFIX_V6: u8 = 126;

/// The least that a child may have, in bytes per second: less than a few packets at a time, and nothing works.
const LEAST_BANDWIDTH: u64 = 10_000;

/// How a child reaches the Internet, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedNetwork {
    /// What it may reach; when empty, the public Internet.
    pub allow: Vec<String>,
    /// What it may not reach, whatever else is said.
    pub deny: Vec<String>,
    /// With IPv6.
    pub ipv6: bool,
    /// Resolvers; `None`: the host's, or with `allow`, none.
    pub dns: Option<Vec<String>>,
    /// Bytes per second, of each direction.
    pub bandwidth: Option<NonZeroU64>,
    /// Where addresses are taken from.
    pub subnet: String,
    /// The same of IPv6.
    pub subnet6: String,
}

/// The same, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Managed {
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) dns: Option<Vec<IpAddr>>,
    pub(crate) bandwidth: Option<NonZeroU64>,
    pub(crate) pool: Pool,
}

/// Where addresses are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) v4: Ipv4Net,
    /// `None`: children have no IPv6.
    pub(crate) v6: Option<Ipv6Net>,
}

impl ManagedNetwork {
    /// Reads all fields.
    ///
    /// # Errors
    ///
    /// The first that makes no sense.
    pub(crate) fn read(&self) -> Result<Managed, ConfigError> {
        let allow = rules("allow", &self.allow)?;
        for (index, rule) in allow.iter().enumerate() {
            let Target::Network(network) = &rule.target else { continue };
            if let Some(why) = never(network) {
                let problem = format!("{network} is {why}: no child ever reaches that");
                let error = RuleError { problem, at: 0 };
                return Err(ConfigError::Rule {
                    field: "allow",
                    index,
                    text: self.allow[index].clone(),
                    error,
                });
            }
        }
        if self.bandwidth.is_some_and(|bandwidth| bandwidth.get() < LEAST_BANDWIDTH) {
            return Err(field("bandwidth", format!("is less than {LEAST_BANDWIDTH} bytes per second")));
        }
        let dns = match &self.dns {
            None => None,
            Some(all) => Some(all.iter().map(|text| self.resolver(text)).collect::<Result<_, _>>()?),
        };
        Ok(Managed {
            allow,
            deny: rules("deny", &self.deny)?,
            dns,
            bandwidth: self.bandwidth,
            pool: self.pool()?,
        })
    }

    fn resolver(&self, text: &str) -> Result<IpAddr, ConfigError> {
        let address: IpAddr = text
            .parse()
            .map_err(|_| field("dns", format!("{text:?} is not an IP address: a resolver has no name")))?;
        if let Some(why) = never(&address.into()) {
            return Err(field("dns", format!("{address} is {why}: no child ever reaches that")));
        }
        if address.is_ipv6() && !self.ipv6 {
            return Err(field("dns", format!("{address} is an IPv6 address, and ipv6 is False")));
        }
        Ok(address)
    }

    fn pool(&self) -> Result<Pool, ConfigError> {
        let v4: Ipv4Net = subnet("subnet", &self.subnet, "198.19.0.0/16", CHILD_PREFIX_V4)?;
        let v6 = if self.ipv6 {
            Some(subnet("subnet6", &self.subnet6, "fd70:7973:7061:776e::/64", CHILD_PREFIX_V6)?)
        } else {
            None
        };
        Ok(Pool { v4, v6 })
    }
}

fn rules(name: &'static str, texts: &[String]) -> Result<Vec<Rule>, ConfigError> {
    let read = |(index, text): (usize, &String)| {
        Rule::parse(text).map_err(|error| ConfigError::Rule { field: name, index, text: text.clone(), error })
    };
    texts.iter().enumerate().map(read).collect()
}

fn field(field: &'static str, problem: String) -> ConfigError {
    ConfigError::Field { field, problem }
}

/// A network in which there is room for the router and one child at least.
fn subnet<N>(name: &'static str, text: &str, example: &str, of_child: u8) -> Result<N, ConfigError>
where
    N: std::str::FromStr + Copy + Into<IpNet>,
{
    let error = |problem: String| field(name, format!("{text:?} {problem}"));
    let network: N = text.parse().map_err(|_| error(format!("is not a network such as {example:?}")))?;
    let whole: IpNet = network.into();
    if whole.trunc() != whole {
        return Err(error(format!("has bits set after its prefix: {} is meant?", whole.trunc())));
    }
    if whole.prefix_len() >= of_child {
        return Err(error(format!("has no room: a /{} is the least, for one child", of_child - 1)));
    }
    if let Some(why) = never(&whole) {
        return Err(error(format!("is {why}")));
    }
    Ok(network)
}
