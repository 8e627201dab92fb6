//! Every example is read as meant, every problem is told in full, and no text is too strange.

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::config::ConfigError;

fn rule(target: Target, ports: &[RangeInclusive<u16>], protocol: Option<Protocol>) -> Rule {
    Rule { target, ports: ports.to_vec(), protocol }
}

fn net(text: &str) -> Target {
    Target::Network(text.parse().unwrap())
}

fn name(text: &str) -> Target {
    Target::Name(text.to_owned())
}

#[test]
fn what_can_be_written() {
    use Protocol::{Icmp, Tcp, Udp};
    for (text, expected) in [
        ("*", rule(Target::Any, &[], None)),
        ("*/icmp", rule(Target::Any, &[], Some(Icmp))),
        ("*:53,853/udp", rule(Target::Any, &[53..=53, 853..=853], Some(Udp))),
        ("1.2.3.4", rule(net("1.2.3.4/32"), &[], None)),
        ("1.2.3.4/32", rule(net("1.2.3.4/32"), &[], None)),
        ("1.2.3.4/udp", rule(net("1.2.3.4/32"), &[], Some(Udp))),
        ("1.2.3.4:1-65535", rule(net("1.2.3.4/32"), &[1..=65535], None)),
        ("1.2.3.0/24", rule(net("1.2.3.0/24"), &[], None)),
        ("1.2.3.0/24:443", rule(net("1.2.3.0/24"), &[443..=443], None)),
        ("1.2.3.0/24/tcp", rule(net("1.2.3.0/24"), &[], Some(Tcp))),
        ("1.2.3.0/24:443/tcp", rule(net("1.2.3.0/24"), &[443..=443], Some(Tcp))),
        ("0.0.0.0/0:80", rule(net("0.0.0.0/0"), &[80..=80], None)),
        ("10.0.0.5/icmp", rule(net("10.0.0.5/32"), &[], Some(Icmp))),
        ("[2001:db8::/32]", rule(net("2001:db8::/32"), &[], None)),
        ("[2001:DB8::1]", rule(net("2001:db8::1/128"), &[], None)),
        ("[::/0]/icmp", rule(net("::/0"), &[], Some(Icmp))),
        ("[2606:4700::1]:443/tcp", rule(net("2606:4700::1/128"), &[443..=443], Some(Tcp))),
        ("[64:ff9b::10.0.0.0/104]:1", rule(net("64:ff9b::a00:0/104"), &[1..=1], None)),
        ("example.org", rule(name("example.org"), &[], None)),
        ("example.org:443", rule(name("example.org"), &[443..=443], None)),
        ("Example.ORG./tcp", rule(name("example.org"), &[], Some(Tcp))),
        ("localhost:8000-8080,8081", rule(name("localhost"), &[8000..=8080, 8081..=8081], None)),
        ("xn--bcher-kva.example", rule(name("xn--bcher-kva.example"), &[], None)),
        ("1password.com", rule(name("1password.com"), &[], None)),
        ("3.pool.ntp.org:123/udp", rule(name("3.pool.ntp.org"), &[123..=123], Some(Udp))),
        // Neither a protocol nor an address is all digits.
        ("tcp/tcp", rule(name("tcp"), &[], Some(Tcp))),
        ("0x7g", rule(name("0x7g"), &[], None)),
        ("a--b", rule(name("a--b"), &[], None)),
        // The same ports twice are still these ports.
        ("*:80,80,1-100", rule(Target::Any, &[80..=80, 80..=80, 1..=100], None)),
    ] {
        assert_eq!(Rule::parse(text), Ok(expected), "{text}");
    }
    let longest = format!("{}.{}", vec!["a".repeat(63); 3].join("."), "a".repeat(61));
    assert_eq!(longest.len(), 253);
    assert_eq!(Rule::parse(&format!("{longest}.")), Ok(rule(name(&longest), &[], None)));
}

/// Each text, where it goes wrong, and what its user is told.
const PROBLEMS: &[(&str, usize, &str)] = &[
    ("", 0, "an empty rule: for everywhere, write *"),
    (" ", 0, "a rule has no white space"),
    ("a.example, b.example", 10, "a rule has no white space"),
    ("bücher.example\n", 14, "a rule has no white space"),
    ("1.2.3.4\u{a0}", 7, "a rule has no white space"),
    ("https://example.org/", 0, "a rule is not a URL: leave \"https://\" out"),
    ("svn+ssh://1.2.3.4", 0, "a rule is not a URL: leave \"svn+ssh://\" out"),
    // The target.
    (":443", 0, "a target is missing: an address, a name or *"),
    ("/tcp", 0, "a target is missing: an address, a name or *"),
    ("//example.org", 0, "a target is missing: an address, a name or *"),
    ("2001:db8::/32", 0, "IPv6 goes in brackets, and a port after them, as in [2001:db8::1]:443"),
    ("::1", 0, "IPv6 goes in brackets, and a port after them, as in [2001:db8::1]:443"),
    ("::ffff:1.2.3.4", 0, "IPv6 goes in brackets, and a port after them, as in [2001:db8::1]:443"),
    ("2001:db8::1:80,443/tcp", 0, "IPv6 goes in brackets, and a port after them, as in [2001:db8::1]:443"),
    ("2001:db8::1]:443", 0, "IPv6 goes in brackets, and a port after them, as in [2001:db8::1]:443"),
    ("[2001:db8::1", 0, "this bracket is never closed"),
    ("[2001:db8::1:443/tcp", 0, "this bracket is never closed"),
    ("example.org]", 11, "a host name has no \"]\": it has letters, digits, hyphens and dots"),
    ("[2001:db8::1]443", 13, "\"443\" is neither a port (:443) nor a protocol (/tcp)"),
    ("[2001:db8::]/32", 12, "the prefix length goes inside the brackets, as in [2001:db8::/32]"),
    ("[]", 1, "\"\" is not an IPv6 address"),
    ("[2001:db8]", 1, "\"2001:db8\" is not an IPv6 address"),
    ("[example.org]", 1, "\"example.org\" is not an IPv6 address"),
    ("[1.2.3.0/24]", 0, "only IPv6 goes in brackets: leave them out"),
    ("fe80::1%eth0", 7, "a rule has no zone: leave \"%eth0\" out"),
    ("fe80::1%eth0/64", 7, "a rule has no zone: leave \"%eth0\" out"),
    ("[fe80::1%eth0]:80", 8, "a rule has no zone: leave \"%eth0\" out"),
    ("[fe80::%1/64]", 7, "a rule has no zone: leave \"%1\" out"),
    ("[::ffff:10.0.0.1]:80", 1, "\"::ffff:10.0.0.1\" is IPv4-mapped, and sent as IPv4: write 10.0.0.1"),
    ("[::ffff:a00:0/104]", 1, "\"::ffff:a00:0/104\" is IPv4-mapped, and sent as IPv4: write 10.0.0.0/8"),
    // The prefix length.
    ("1.2.3.4/24", 0, "1.2.3.4/24 has bits set beyond its prefix length: probably 1.2.3.0/24 is meant"),
    ("1.2.3.4/0", 0, "1.2.3.4/0 has bits set beyond its prefix length: probably 0.0.0.0/0 is meant"),
    (
        "[2001:db8::1/32]",
        1,
        "2001:db8::1/32 has bits set beyond its prefix length: probably 2001:db8::/32 is meant",
    ),
    ("1.2.3.0/33", 8, "33 is not a prefix length (0 to 32)"),
    ("1.2.3.0/256/tcp", 8, "256 is not a prefix length (0 to 32)"),
    ("1.2.3.0/024", 8, "024 is not a prefix length: it has a leading zero"),
    ("1.2.3.0/255.255.255.0", 8, "\"255.255.255.0\" is not a prefix length (0 to 32)"),
    ("[2001:db8::/129]", 12, "129 is not a prefix length (0 to 128)"),
    ("[2001:db8::/]", 12, "a prefix length is missing"),
    ("[2001:db8::/+32]", 12, "\"+32\" is not a prefix length (0 to 128)"),
    ("example.org/24", 12, "only an address has a prefix length"),
    ("*/0", 2, "only an address has a prefix length"),
    ("1.2.3.0/24/24", 11, "\"24\" is not a protocol: tcp, udp or icmp"),
    // The ports.
    ("1.2.3.0/24:70000/tcp", 11, "70000 is not a port (1 to 65535)"),
    ("*:0", 2, "0 is not a port (1 to 65535)"),
    ("*:65536", 2, "65536 is not a port (1 to 65535)"),
    ("*:99999999999999999999", 2, "99999999999999999999 is not a port (1 to 65535)"),
    ("*:443,https", 6, "\"https\" is not a port (1 to 65535)"),
    ("*:+80", 2, "\"+80\" is not a port (1 to 65535)"),
    ("*:080", 2, "080 is not a port: it has a leading zero"),
    ("*:٤", 2, "\"٤\" is not a port (1 to 65535)"),
    ("*:*", 2, "\"*\" is not a port: to mean all, leave the ports out"),
    ("*:", 2, "a port is missing"),
    ("*:/tcp", 2, "a port is missing"),
    ("*:53,,853", 5, "a port is missing"),
    ("*:53,", 5, "a port is missing"),
    ("*:-80", 2, "a port is missing"),
    ("*:80-", 5, "a port is missing"),
    ("*:80,8080-8000", 5, "8080-8000 is reversed: write 8000-8080"),
    ("*:1-2-3", 4, "\"2-3\" is not a port (1 to 65535)"),
    ("*:1-65536", 4, "65536 is not a port (1 to 65535)"),
    ("example.org:443:80", 12, "\"443:80\" is not a port (1 to 65535)"),
    // The protocol.
    ("*:443/icmp", 1, "icmp has no ports: leave \":443\" out"),
    ("[2001:db8::1]:1,2/icmp", 13, "icmp has no ports: leave \":1,2\" out"),
    ("example.org/http", 12, "\"http\" is not a protocol: tcp, udp or icmp"),
    ("*/tcp,udp", 2, "\"tcp,udp\" is not a protocol: tcp, udp or icmp"),
    ("*/tcp/udp", 2, "\"tcp/udp\" is not a protocol: tcp, udp or icmp"),
    ("*/TCP", 2, "\"TCP\" is not a protocol: write tcp, in lower case"),
    ("*:53/Udp", 5, "\"Udp\" is not a protocol: write udp, in lower case"),
    ("*/icmpv6", 2, "\"icmpv6\" is not a protocol: icmp means ICMPv6 too"),
    ("example.org/", 12, "a protocol is missing: tcp, udp or icmp"),
    ("*/tcp:443", 5, "ports come before the protocol, as in example.org:443/tcp"),
    // What a resolver would take for an address.
    ("010.0.0.1", 0, "010 has a leading zero, which some programs take for octal"),
    ("10.0.00.1/24", 5, "00 has a leading zero, which some programs take for octal"),
    ("1.2.3", 0, "\"1.2.3\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("1.2.3.4.5", 0, "\"1.2.3.4.5\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("1..2", 0, "\"1..2\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("256.1.1.1:80", 0, "\"256.1.1.1\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("0x7f.1", 0, "\"0x7f.1\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("0X7F000001", 0, "\"0X7F000001\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("0x7f.0.0.01", 0, "\"0x7f.0.0.01\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("2130706433/8", 0, "\"2130706433\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("127.1.", 0, "\"127.1\" is not an IPv4 address, which is four decimal numbers from 0 to 255"),
    ("1.2.3.4.", 7, "an IPv4 address has no dot at its end"),
    ("host.42", 0, "\"host.42\" is not an address, and no host name ends in a number"),
    ("10.0.0.1-10.0.0.9", 0, "\"10.0.0.1-10.0.0.9\" is not an address, and no host name ends in a number"),
    // Names.
    ("*.example.org", 0, "only * alone or a full name works: names are resolved when a child starts"),
    ("www.*:443", 4, "only * alone or a full name works: names are resolved when a child starts"),
    ("my_host.example", 2, "a host name has no underscore: RFC 1123 has letters, digits, hyphens and dots"),
    ("user@example.org", 4, "a host name has no \"@\": it has letters, digits, hyphens and dots"),
    ("example.org%eth0", 11, "a host name has no \"%\": it has letters, digits, hyphens and dots"),
    ("a\0b", 1, "a host name has no \"\\0\": it has letters, digits, hyphens and dots"),
    ("bücher.example:80", 1, "\"ü\" is not ASCII: give the name's IDNA form (xn--…)"),
    ("a\u{200b}b", 1, "\"\\u{200b}\" is not ASCII: give the name's IDNA form (xn--…)"),
    (".", 0, "a label of this host name is empty"),
    (".example.org", 0, "a label of this host name is empty"),
    ("a..example", 2, "a label of this host name is empty"),
    ("example.org..", 12, "a label of this host name is empty"),
    ("www.-example.org", 4, "a label of a host name does not begin with a hyphen"),
    ("www.example-.org", 11, "a label of a host name does not end with a hyphen"),
];

#[test]
fn every_problem_is_told() {
    for (text, at, problem) in PROBLEMS {
        let expected = RuleError { problem: (*problem).to_owned(), at: *at };
        assert_eq!(Rule::parse(text), Err(expected), "{text:?}");
    }
}

#[test]
fn names_that_are_too_long() {
    let label = format!("www.{}.org", "a".repeat(64));
    let problem = "a label of a host name has at most 63 characters, not 64".to_owned();
    assert_eq!(Rule::parse(&label), Err(RuleError { problem, at: 4 }));
    let name = format!("{}.{}", vec!["a".repeat(63); 3].join("."), "a".repeat(62));
    let problem = "a host name has at most 253 characters".to_owned();
    assert_eq!(Rule::parse(&name), Err(RuleError { problem, at: 253 }));
}

#[test]
fn a_configuration_says_which_rule() {
    let text = "1.2.3.0/24:70000/tcp".to_owned();
    let error = Rule::parse(&text).unwrap_err();
    assert_eq!(
        ConfigError::Rule { field: "allow", index: 1, text, error }.to_string(),
        "allow[1] \"1.2.3.0/24:70000/tcp\": 70000 is not a port (1 to 65535), at character 12"
    );
}

fn target() -> impl Strategy<Value = Target> {
    // Of a network, any length; mapped addresses are refused.
    let v4 = (any::<u32>(), 0..=32_u8).prop_map(|(bits, length)| {
        Target::Network(Ipv4Net::new(bits.into(), length).unwrap().trunc().into())
    });
    let v6 = (any::<u128>(), 0..=96_u32, 0..=128_u8)
        .prop_map(|(bits, shift, length)| Ipv6Net::new((bits >> shift).into(), length).unwrap().trunc())
        .prop_filter("mapped", |net| !crate::config::network::ranges::MAPPED.contains(net))
        .prop_map(|net| Target::Network(net.into()));
    let name =
        "([a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?\\.){0,4}[a-z]([a-z0-9-]{0,9}[a-z0-9])?".prop_map(Target::Name);
    prop_oneof![Just(Target::Any), v4, v6, name]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let port = prop_oneof![
        (1..=u16::MAX).prop_map(|port| port..=port),
        (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| a.min(b)..=a.max(b)),
    ];
    let protocol = option::of(select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp]));
    (target(), vec(port, 0..4), protocol).prop_map(|(target, mut ports, protocol)| {
        if protocol == Some(Protocol::Icmp) {
            ports.clear();
        }
        Rule { target, ports, protocol }
    })
}

/// What is nearly a rule finds more than what is nothing like one.
fn text() -> impl Strategy<Value = String> {
    let pieces =
        ["/tcp", "/24", "/", ":", "::", "[", "]", "1.2.3.4", "2001:db8", "*", ",", "-", ".", "80", "ü", "%"];
    let changed = (any_rule(), any::<prop::sample::Index>(), any::<char>()).prop_map(|(rule, at, c)| {
        let mut text: Vec<char> = rule.to_string().chars().collect();
        let at = at.index(text.len());
        text[at] = c;
        text.into_iter().collect()
    });
    prop_oneof![
        any::<String>(),
        "[0-9a-fx:./,*\\[\\]%-]{0,20}",
        vec(select(pieces.to_vec()), 0..8).prop_map(|pieces| pieces.concat()),
        changed,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, ..ProptestConfig::default() })]

    #[test]
    fn a_rule_can_be_written_and_read_again(rule in any_rule()) {
        prop_assert_eq!(Rule::parse(&rule.to_string()), Ok(rule));
    }

    #[test]
    fn any_text_is_a_rule_or_has_a_problem_within_it(text in text()) {
        match Rule::parse(&text) {
            Ok(rule) => prop_assert_eq!(Rule::parse(&rule.to_string()), Ok(rule)),
            Err(error) => prop_assert!(error.at <= text.chars().count(), "{:?}", error),
        }
    }

    /// What the C library takes for an address is never a name.
    #[test]
    fn numbers_are_not_names(text in "(0x)?[0-9a-f]{1,4}(\\.(0x)?[0-9]{1,4}){0,3}\\.?") {
        let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default().to_owned();
        let number = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
        if let Ok(rule) = Rule::parse(&text) {
            prop_assert!(!number || !matches!(rule.target, Target::Name(_)), "{}", rule);
        }
    }
}
