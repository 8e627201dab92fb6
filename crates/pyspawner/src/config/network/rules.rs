//! What a child's network lets through, as users write it: `target[:port[,port…]][/tcp|/udp|/icmp]`.
//!
//! For example `1.2.3.0/24:443/tcp`, `example.org:443`, `*:53,853/udp`, `[2001:db8::/32]`, `10.0.0.5/icmp` or
//! `*`. A problem is told to the user with its place, so every step works on a [`Part`] that knows where it
//! is.

mod name;
mod part;
mod target;

use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use part::Part;

/// What is allowed or denied. Displays as it could have been written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// To where.
    pub target: Target,
    /// To which ports, as given: they may overlap. Empty: all.
    pub ports: Vec<RangeInclusive<u16>>,
    /// By which protocol; `None`: by all that the ports allow, so only TCP and UDP where there are ports.
    pub protocol: Option<Protocol>,
}

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Everywhere, by IPv4 and IPv6.
    Any,
    /// A network without host bits; one address is a network of its full length.
    Network(IpNet),
    /// A host name in lower case, without a dot at its end. Whoever owns it chooses what it resolves to,
    /// which may be loopback or the host's own network: each address needs its own check.
    Name(String),
}

/// What is in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and `ICMPv6` to an IPv6 address.
    Icmp,
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}, at character {}", .at + 1)]
pub struct RuleError {
    /// What is wrong.
    pub problem: String,
    /// The character where that begins, counted from 0; the text's length where something is missing at its
    /// end.
    pub at: usize,
}

impl Rule {
    /// Reads a rule. Whether a child could ever reach its target is not checked: see [`never`](super::never).
    ///
    /// # Errors
    ///
    /// The first problem in the text, and where it is.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let whole = Part::new(text);
        check_whole(whole)?;
        let (target, rest) = target::parse(whole)?;
        let (list, rest) = rest.split_before(&['/']);
        let ports = if list.text.is_empty() { Vec::new() } else { ports(list.after(1))? };
        let protocol = if rest.text.is_empty() { None } else { Some(protocol(rest.after(1))?) };
        if protocol == Some(Protocol::Icmp) && !ports.is_empty() {
            return Err(list.error(0, format!("icmp has no ports: leave {:?} out", list.text)));
        }
        Ok(Self { target, ports, protocol })
    }
}

/// What would make a riddle of every later message.
fn check_whole(whole: Part) -> Result<(), RuleError> {
    if whole.text.is_empty() {
        return Err(whole.error(0, "an empty rule: for everywhere, write *"));
    }
    if let Some(at) = whole.text.find(char::is_whitespace) {
        return Err(whole.error(at, "a rule has no white space"));
    }
    let scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    match whole.text.split_once("://") {
        Some((before, _)) if !before.is_empty() && before.chars().all(scheme) => {
            Err(whole.error(0, format!("a rule is not a URL: leave \"{before}://\" out")))
        }
        _ => Ok(()),
    }
}

/// `port[,port…]`, where a port may be a range.
fn ports(part: Part) -> Result<Vec<RangeInclusive<u16>>, RuleError> {
    part.items(',')
        .map(|item| {
            if item.text == "*" {
                return Err(item.error(0, "\"*\" is not a port: to mean all, leave the ports out"));
            }
            let (first, last) = item.split_before(&['-']);
            let first = first.number("port", 1..=u16::MAX)?;
            let last =
                if last.text.is_empty() { first } else { last.after(1).number("port", 1..=u16::MAX)? };
            if first > last {
                return Err(item.error(0, format!("{first}-{last} is reversed: write {last}-{first}")));
            }
            Ok(first..=last)
        })
        .collect()
}

fn protocol(part: Part) -> Result<Protocol, RuleError> {
    let text = part.text;
    let problem = match text {
        "tcp" => return Ok(Protocol::Tcp),
        "udp" => return Ok(Protocol::Udp),
        "icmp" => return Ok(Protocol::Icmp),
        "" => "a protocol is missing: tcp, udp or icmp".to_owned(),
        "icmpv6" | "icmp6" => format!("{text:?} is not a protocol: icmp means ICMPv6 too"),
        _ if ["tcp", "udp", "icmp"].contains(&text.to_ascii_lowercase().as_str()) => {
            format!("{text:?} is not a protocol: write {}, in lower case", text.to_ascii_lowercase())
        }
        _ if text.starts_with("tcp:") || text.starts_with("udp:") => {
            return Err(part.error(3, "ports come before the protocol, as in example.org:443/tcp"));
        }
        _ => format!("{text:?} is not a protocol: tcp, udp or icmp"),
    };
    Err(part.error(0, problem))
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}", self.target)?;
        for (index, range) in self.ports.iter().enumerate() {
            let separator = if index == 0 { ':' } else { ',' };
            write!(f, "{separator}{}", range.start())?;
            if range.end() != range.start() {
                write!(f, "-{}", range.end())?;
            }
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{protocol}"))
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Name(name) => f.write_str(name),
            Self::Network(net) => {
                let whole = net.prefix_len() == net.max_prefix_len();
                let text = if whole { net.addr().to_string() } else { net.to_string() };
                if net.addr().is_ipv6() { write!(f, "[{text}]") } else { f.write_str(&text) }
            }
        }
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

#[cfg(test)]
mod tests;
