"""What a managed network is refused for, in words that help; nothing is left then, and the next spawn works."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import pytest
from managed_support import (
    caller_of,
    children,
    close_client,
    left_in,
    left_open,
    managed,
    managed_by,
    spawn_all,
    tables,
)

import netns
import pyspawner
import support
from netns import Caller, eventually

BAD_RULES = {
    "": "an empty rule: for everywhere, write *, at character 1",
    "1.2.3.4 ": "a rule has no white space, at character 8",
    "https://example.org": 'a rule is not a URL: leave "https://" out, at character 1',
    "1.2.3.4:": "port",
    "1.2.3.4:0": "port",
    "1.2.3.4:65536": "port",
    "1.2.3.4:x": "port",
    "1.2.3.4:*": '"*" is not a port: to mean all, leave the ports out, at character 9',
    "1.2.3.4:90-80": "90-80 is reversed: write 80-90, at character 9",
    "1.2.3.4:80,": "port",
    "1.2.3.4:80/icmp": "icmp has no ports",
    "1.2.3.4/": "at character",
    "1.2.3.4/33": "at character",
    "1.2.3.4/sctp": '"sctp" is not a protocol: tcp, udp or icmp, at character 9',
    "1.2.3.4/TCP": "write tcp, in lower case",
    "1.2.3.4/icmpv6": "icmp means ICMPv6 too",
    "1.2.3.4/tcp:80": "ports come before the protocol",
    "1.2.3.256": "at character",
    "1.2.3.4/24": "at character",
    "2001:db8::1": "at character",
    "[2001:db8::1": "at character",
    "[2001:db8::1/129]": "at character",
    "[1.2.3.4]": "at character",
    "[::ffff:10.0.0.5]": "is IPv4-mapped, and sent as IPv4: write 10.0.0.5",
    "[fe80::1%eth0]": "at character",
    "-bad-.example": "at character",
    "bad_name!": "at character",
}

NEVER = {
    "0.0.0.0": "this network",
    "127.0.0.1": "loopback",
    "127.0.0.0/8": "loopback",
    "169.254.169.254": "link-local, where clouds keep their metadata",
    "224.0.0.1": "multicast",
    "255.255.255.255": "reserved or broadcast",
    "[::]": "unspecified",
    "[::1]": "loopback",
    "[fe80::1]": "link-local",
    "[ff02::1]": "multicast",
    "[fec0::1]": "site-local",
}

BAD_OPTIONS = [
    *(({"subnet": text}, f'subnet "{text}"') for text in ("", "10.0.0.0", "fd00::/64", "10.0.0.0/33", "x")),
    *(({"subnet6": text}, f'subnet6 "{text}"') for text in ("", "fd00::", "10.0.0.0/8", "fd00::/129", "x")),
    ({"subnet": "10.9.8.1/24"}, "has bits set after its prefix: 10.9.8.0/24 is meant?"),
    ({"subnet6": "fd00::1/64"}, "has bits set after its prefix: fd00::/64 is meant?"),
    ({"subnet": "10.9.8.0/30"}, "has no room: a /29 is the least, for one child"),
    ({"subnet": "10.9.8.0/32"}, "has no room"),
    ({"subnet6": "fd00::/126"}, "has no room: a /125 is the least, for one child"),
    ({"subnet": "127.0.0.0/16"}, "is loopback"),
    ({"subnet": "169.254.0.0/16"}, "is link-local"),
    ({"subnet": "224.0.0.0/16"}, "is multicast"),
    ({"subnet6": "fe80::/64"}, "is link-local"),
    ({"subnet6": "ff02::/64"}, "is multicast"),
    *(({"dns": (text,)}, "is not an IP address: a resolver has no name") for text in ("", "one.one", "1.1.1.1:53")),
    ({"dns": ("127.0.0.53",)}, "127.0.0.53 is loopback: no child ever reaches that"),
    ({"dns": ("169.254.169.253",)}, "is link-local"),
    ({"dns": ("1.1.1.1", "::1")}, "::1 is loopback"),
    ({"dns": ("2606:4700:4700::1111",), "ipv6": False}, "is an IPv6 address, and ipv6 is False"),
    ({"bandwidth": 1}, "bandwidth is less than 10000 bytes per second"),
    ({"bandwidth": 9_999}, "bandwidth is less than 10000 bytes per second"),
]  # fmt: skip


@pytest.fixture(scope="module")
def host():
    """A host that forwards."""
    with netns.new() as namespace:
        namespace.ip("link set lo up")
        namespace.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        yield namespace


@pytest.fixture(scope="module")
def caller(host, tmp_path_factory):
    with caller_of(host, tmp_path_factory.mktemp("etc")) as caller:
        caller(spawn_all, [managed()])
        yield caller


@contextlib.contextmanager
def refused(caller: Caller) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect the body's spawn to fail, to leave nothing behind, and to be no obstacle to the next."""
    before = caller(left_open), left_in(caller.namespace)
    with pytest.raises((OSError, ValueError, TypeError, OverflowError)) as caught:
        yield caught
    assert (caller(left_open), left_in(caller.namespace)) == before
    assert caller(spawn_all, [managed()]) == ["works\n"]


def spawn(caller: Caller, sandbox: pyspawner.SandboxConfig) -> None:
    caller(support.run, "print('ran')", sandbox=sandbox)


def check(error: BaseException, code: int, message: str, hint: str) -> None:
    assert isinstance(error, pyspawner.SandboxError), error
    assert (error.layer, error.errno) == ("network", code)
    assert message in str(error)
    assert hint in error.hint
    assert error.hint in str(error)


# What makes no sense.


@pytest.mark.parametrize("field", ["allow", "deny"])
@pytest.mark.parametrize("text", BAD_RULES)
def test_a_rule_that_cannot_be_read_is_shown_with_its_place(caller, field, text):
    with refused(caller) as caught:
        spawn(caller, managed_by({field: ("1.1.1.1", text)}))
    assert isinstance(caught.value, ValueError)
    assert f"{field}[1] " in str(caught.value)
    assert BAD_RULES[text] in str(caught.value)
    assert "at character" in str(caught.value)


@pytest.mark.parametrize("text", NEVER)
def test_what_no_child_ever_reaches_cannot_be_allowed(caller, text):
    with refused(caller) as caught:
        spawn(caller, managed(text))
    assert isinstance(caught.value, ValueError)
    assert "allow[0]" in str(caught.value)
    assert NEVER[text] in str(caught.value)
    assert "no child ever reaches that" in str(caught.value)


@pytest.mark.parametrize("text", NEVER)
def test_what_no_child_ever_reaches_may_be_denied(caller, text):
    assert caller(spawn_all, [managed(deny=(text,))]) == ["works\n"]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_an_option_that_makes_no_sense_is_refused(caller, options, message):
    with refused(caller) as caught:
        spawn(caller, managed(**options))
    assert isinstance(caught.value, ValueError)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("bandwidth", "error"),
    [(0, ValueError), (-1, (ValueError, OverflowError)), (2**64, (ValueError, OverflowError)), (1e6, TypeError), ("1", TypeError)],
)  # fmt: skip
def test_a_bandwidth_is_a_number_of_bytes(caller, bandwidth, error):
    with refused(caller) as caught:
        spawn(caller, managed(bandwidth=bandwidth))
    assert isinstance(caught.value, error)


@pytest.mark.parametrize("field", ["allow", "deny", "dns"])
def test_a_string_is_no_tuple_of_strings(field):
    with pytest.raises(
        TypeError, match=rf"{field} must be a tuple of strings, not a string: \('1\.1\.1\.1',\)"
    ):
        managed_by({field: "1.1.1.1"})


@pytest.mark.parametrize(
    "network", ["managed", ("*",), True, pyspawner.NetworkConfig, pyspawner.NetworkConfig.managed]
)
def test_a_network_is_one_of_the_three(caller, network):
    with refused(caller) as caught:
        spawn(caller, pyspawner.SandboxConfig(network=network))
    assert isinstance(caught.value, TypeError)
    assert "NetworkConfig.managed(...)" in str(caught.value)


# What the host does not have.


def test_a_host_that_does_not_forward_is_told_how(caller, host):
    for setting, word, hint, works in [
        ("ipv4__ip_forward", "the host does not forward IPv4", "net.ipv4.ip_forward=1", None),
        ("ipv6__conf__all__forwarding", "the host does not forward IPv6", "ipv6=False", managed(ipv6=False)),
    ]:
        host.sysctl(**{setting: 0})
        try:
            before = caller(left_open), left_in(host)
            with pytest.raises(pyspawner.SandboxError) as caught:
                spawn(caller, managed())
            check(caught.value, errno.ENETUNREACH, word, hint)
            assert (caller(left_open), left_in(host)) == before
            if works:
                assert caller(spawn_all, [works]) == ["works\n"]
        finally:
            host.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    assert caller(spawn_all, [managed()]) == ["works\n"]


def without_programs(client: pyspawner.Client) -> None:
    os.environ["PATH"] = "/nonexistent"


def with_program(client: pyspawner.Client, directory: str) -> None:
    os.environ["PATH"] = directory


def test_a_path_without_directories_of_an_administrator_is_enough(host, tmp_path):
    with caller_of(host, tmp_path) as caller:
        caller(without_programs)
        assert caller(spawn_all, [managed()]) == ["works\n"]


def test_without_the_program_nft_the_error_says_what_to_install(host, tmp_path):
    # An empty directory covers each that could have it; what Python needs is elsewhere.
    (tmp_path / "empty").mkdir()
    hide = 'for each in $(readlink -f /usr/sbin /sbin | sort -u); do mount --bind "$0" "$each" || exit 1; done; exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", hide, str(tmp_path / "empty")]
    with Caller(host, prefix=prefix) as caller:
        caller(without_programs)
        before = caller(left_open)
        with pytest.raises(pyspawner.SandboxError) as caught:
            spawn(caller, managed(dns=()))
        check(caught.value, errno.ENOENT, "there is no program nft", "apt-get install nftables")
        assert (caller(left_open), left_in(host)) == (before, left_in(host))
        assert caller(spawn_all, [support.SANDBOX]) == ["works\n"]


@pytest.mark.parametrize(
    "program", ["echo refused >&2; exit 1", "cat >&2; exit 3", "kill -9 $$", "exec 0<&-; exit 1"]
)
def test_what_nft_says_when_it_refuses_is_shown(host, tmp_path, program):
    (tmp_path / "nft").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "nft").chmod(0o755)
    with caller_of(host, tmp_path) as caller:
        before = caller(left_open), left_in(host)
        caller(with_program, f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(pyspawner.SandboxError) as caught:
            spawn(caller, managed())
        check(caught.value, errno.EIO, "nft refused: ", "CAP_NET_ADMIN")
        assert ("nft refused: refused" in str(caught.value)) == ("echo" in program)
        assert eventually(lambda: (caller(left_open), left_in(host)) == before)
        caller(without_programs)
        assert caller(spawn_all, [managed()]) == ["works\n"]


def test_without_net_admin_the_error_says_what_is_missing(host, tmp_path):
    prefix = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"]
    with Caller(host, prefix=prefix) as caller:
        before = caller(left_open), left_in(host)
        with pytest.raises(pyspawner.SandboxError) as caught:
            spawn(caller, managed(dns=()))
        check(caught.value, errno.EPERM, "", "CAP_NET_ADMIN")
        assert (caller(left_open), left_in(host)) == before
        assert caller(spawn_all, [support.SANDBOX]) == ["works\n"]


# Addresses.

ONE_CHILD = {"subnet": "10.9.8.0/29", "subnet6": "fd99::/125"}


def test_a_pool_that_another_client_has_is_refused_until_it_is_closed(caller, host):
    small = managed(**ONE_CHILD)
    with children(caller, small, of="first"):
        with refused(caller) as caught:
            spawn(caller, small)
        check(
            caught.value, errno.EADDRNOTAVAIL, "no addresses are left in 10.9.8.0/29 or fd99::/125", "subnet="
        )
        assert "other Clients have them" in str(caught.value)
    caller(close_client, "first")
    assert caller(spawn_all, [small, small]) == ["works\n"] * 2


def test_a_pool_with_room_for_one_child_has_none_for_a_second_until_the_first_ends(host, tmp_path):
    small = managed(subnet="10.9.9.0/29", subnet6="fd98::/125")
    with caller_of(host, tmp_path) as caller:
        with children(caller, small) as [child]:
            assert child.addresses == ["10.9.9.6", "fd98::6"]
            with refused(caller) as caught:
                spawn(caller, small)
            check(
                caught.value,
                errno.EAGAIN,
                "all 1 networks in 10.9.9.0/29 are taken by children that live",
                "let a child end",
            )
        assert caller(spawn_all, [small] * 3) == ["works\n"] * 3


@pytest.mark.parametrize("route", ["10.9.7.0/24", "10.9.7.3/32", "10.0.0.0/8", "fd97::/64", "fd97::5/128"])
def test_a_pool_to_which_the_host_has_a_route_is_refused(caller, host, route):
    host.ip(f"route add {route} dev lo")
    try:
        with refused(caller) as caught:
            spawn(caller, managed(subnet="10.9.7.0/29", subnet6="fd97::/125"))
        check(caught.value, errno.EADDRNOTAVAIL, f"the host's route to {route} leads there", "subnet=")
    finally:
        host.ip(f"route delete {route} dev lo")


def test_a_block_to_which_the_host_has_a_route_is_passed_over(host, tmp_path):
    host.ip("route add unreachable 10.9.16.0/22")
    try:
        with caller_of(host, tmp_path) as caller, children(caller, managed(subnet="10.9.16.0/20")) as [child]:
            assert child.addresses[0] == "10.9.20.6"
    finally:
        host.ip("route delete unreachable 10.9.16.0/22")


# Names.


@pytest.mark.parametrize(
    ("resolvers", "found"),
    [((), ""), (("127.0.0.53",), ": it has 127.0.0.53"), (("::1", "fe80::1", "169.254.1.1"), ": it has ::1, fe80::1, 169.254.1.1")],
)  # fmt: skip
def test_a_host_without_a_resolver_for_children_is_told_to_choose(host, tmp_path, resolvers, found):
    with caller_of(host, tmp_path, resolvers=resolvers) as caller:
        before = caller(left_open), left_in(host)
        with pytest.raises(pyspawner.SandboxError) as caught:
            spawn(caller, managed())
        check(
            caught.value,
            errno.EHOSTUNREACH,
            f"the host has no resolver that a child could reach{found}",
            "dns=()",
        )
        assert (caller(left_open), left_in(host)) == before
        assert caller(spawn_all, [managed(dns=()), managed("1.1.1.1")]) == ["works\n"] * 2


@pytest.mark.parametrize("field", ["allow", "deny"])
def test_a_name_that_nobody_knows_is_an_error(host, tmp_path, field):
    with caller_of(host, tmp_path, resolvers=("127.0.0.1",), hosts="10.0.0.5 internal.example\n") as caller:
        before = caller(left_open), left_in(host)
        with pytest.raises(pyspawner.SandboxError) as caught:
            spawn(caller, managed_by({"dns": (), field: ("nobody.example",)}))
        check(caught.value, errno.EHOSTUNREACH, 'cannot look up "nobody.example"', "at every spawn")
        assert (caller(left_open), left_in(host)) == before
        assert caller(spawn_all, [managed(dns=())]) == ["works\n"]


@pytest.mark.parametrize(
    "address", ["10.0.0.5", "127.0.0.1", "169.254.169.254", "fd00:5::5", "64:ff9b::a00:5", "0.0.0.0"]
)
def test_a_name_that_leads_to_a_private_address_is_an_error(host, tmp_path, address):
    with caller_of(host, tmp_path, hosts=f"93.184.215.14 some.example\n{address} some.example\n") as caller:
        before = caller(left_open), left_in(host)
        with pytest.raises(pyspawner.SandboxError) as caught:
            spawn(caller, managed("some.example"))
        check(
            caught.value,
            errno.EACCES,
            f'"some.example" is {address}, which is not a public address',
            "give the address",
        )
        assert (caller(left_open), left_in(host)) == before
        assert caller(spawn_all, [managed(deny=("some.example",), dns=())]) == ["works\n"]


def test_a_name_without_ipv4_is_an_error_when_ipv6_is_off(host, tmp_path):
    with caller_of(host, tmp_path, hosts="2606:4700:4700::1111 six.example\n") as caller:
        with pytest.raises(pyspawner.SandboxError) as caught:
            spawn(caller, managed("six.example", ipv6=False))
        check(caught.value, errno.EHOSTUNREACH, "it has no IPv4 address, and ipv6 is False", "")
        assert caller(spawn_all, [managed("six.example")]) == ["works\n"]


def test_a_client_that_is_closed_makes_no_network(caller, host):
    before = tables(host)
    with pytest.raises((RuntimeError, ValueError), match="closed"):
        caller(spawn_after_close, managed(subnet="10.9.6.0/29", subnet6="fd96::/125"))
    assert tables(host) == before


def spawn_after_close(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig) -> None:
    with pyspawner.Client(child_main="support.run_source") as other:
        support.run(other, "print('works')", sandbox=sandbox)
    support.run(other, "print('ran')", sandbox=sandbox)
