//! Host names as in RFC 1123, and what is none although a resolver would take it.

use std::net::Ipv4Addr;

use super::RuleError;
use super::part::Part;

const LABEL_MAX: usize = 63;

/// Without the dot at its end: 255 bytes in a message, less the first length and the root.
const NAME_MAX: usize = 253;

/// In lower case, without the dot at its end.
pub(super) fn parse(host: Part) -> Result<String, RuleError> {
    if host.text.is_empty() {
        return Err(host.error(0, "a target is missing: an address, a name or *"));
    }
    check_characters(host)?;
    let (host, dot) = host.split_at(host.text.strip_suffix('.').unwrap_or(host.text).len());
    if host.text.parse::<Ipv4Addr>().is_ok() {
        return Err(dot.error(0, "an IPv4 address has no dot at its end"));
    }
    check_not_numeric(host)?;
    host.items('.').try_for_each(check_label)?;
    if host.text.len() > NAME_MAX {
        return Err(host.error(NAME_MAX, format!("a host name has at most {NAME_MAX} characters")));
    }
    Ok(host.text.to_ascii_lowercase())
}

fn check_characters(host: Part) -> Result<(), RuleError> {
    let bad = |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.';
    let Some((at, c)) = host.text.char_indices().find(|(_, c)| bad(*c)) else { return Ok(()) };
    let problem = match c {
        '*' => "only * alone or a full name works: names are resolved when a child starts".to_owned(),
        '_' => "a host name has no underscore: RFC 1123 has letters, digits, hyphens and dots".to_owned(),
        _ if c.is_ascii() => {
            format!("a host name has no {:?}: it has letters, digits, hyphens and dots", String::from(c))
        }
        _ => format!("{:?} is not ASCII: give the name's IDNA form (xn--…)", String::from(c)),
    };
    Err(host.error(at, problem))
}

/// A resolver takes `0x7f.1` and `2130706433` for 127.0.0.1, so what ends in a number never is a name.
fn check_not_numeric(host: Part) -> Result<(), RuleError> {
    let labels = || host.text.split('.');
    if !labels().next_back().is_some_and(is_number) {
        return Ok(());
    }
    let text = host.text;
    if !labels().all(|label| label.is_empty() || is_number(label)) {
        return Err(host.error(0, format!("{text:?} is not an address, and no host name ends in a number")));
    }
    let decimal = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let zero = |label: &Part| label.text.len() > 1 && label.text.starts_with('0');
    if labels().count() == 4 && labels().all(decimal) {
        if let Some(label) = host.items('.').find(zero) {
            let problem = format!("{} has a leading zero, which some programs take for octal", label.text);
            return Err(label.error(0, problem));
        }
    }
    Err(host
        .error(0, format!("{text:?} is not an IPv4 address, which is four decimal numbers from 0 to 255")))
}

/// As a resolver sees it: decimal, octal or hexadecimal.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

fn check_label(label: Part) -> Result<(), RuleError> {
    let text = label.text;
    if text.is_empty() {
        return Err(label.error(0, "a label of this host name is empty"));
    }
    if text.len() > LABEL_MAX {
        let problem =
            format!("a label of a host name has at most {LABEL_MAX} characters, not {}", text.len());
        return Err(label.error(0, problem));
    }
    if text.starts_with('-') {
        return Err(label.error(0, "a label of a host name does not begin with a hyphen"));
    }
    if text.ends_with('-') {
        return Err(label.error(text.len() - 1, "a label of a host name does not end with a hyphen"));
    }
    Ok(())
}
