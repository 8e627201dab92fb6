"""The rules of a managed network: ``allow`` and ``deny``."""

from __future__ import annotations

import json

import pytest
from managed_support import PROBE, caller_of, children, managed, reached, run_at_once

import pyspawner
import support
from internet import HOST, INTERNAL, OTHER, PUBLIC, SPECIAL, targets

WEB4, DNS4, WEB6, DNS6 = PUBLIC[0], PUBLIC[1], PUBLIC[3], PUBLIC[4]
PORTS = ("tcp/22", "tcp/53", "tcp/80", "tcp/443", "tcp/8080", "udp/53", "udp/9999", "icmp")
EVERYWHERE = targets([WEB4, DNS4, INTERNAL[0], OTHER[0], WEB6, DNS6, INTERNAL[3], OTHER[2]], PORTS)


def at(addresses: list[str], *protocols: str) -> set[str]:
    return set(targets(addresses, protocols or PORTS))


TCP = tuple(port for port in PORTS if port.startswith("tcp"))
UDP = tuple(port for port in PORTS if port.startswith("udp"))
PUBLICS = [WEB4, DNS4, WEB6, DNS6]

ALLOWED = [
    ([WEB4], at([WEB4])),
    ([f"[{WEB6}]"], at([WEB6])),
    ([WEB4, f"[{DNS6}]"], at([WEB4, DNS6])),
    (["93.184.0.0/16"], at([WEB4])),
    (["[2606:2800::/32]"], at([WEB6])),
    (["0.0.0.0/0"], at([WEB4, DNS4, INTERNAL[0], OTHER[0]])),
    (["[::/0]"], at([WEB6, DNS6, INTERNAL[3], OTHER[2]])),
    (["*"], at(PUBLICS)),
    ([f"{WEB4}:80"], at([WEB4], "tcp/80")),
    ([f"{WEB4}:53"], at([WEB4], "tcp/53", "udp/53")),
    ([f"[{WEB6}]:53"], at([WEB6], "tcp/53", "udp/53")),
    ([f"{WEB4}:80,443"], at([WEB4], "tcp/80", "tcp/443")),
    ([f"[{WEB6}]:80-443"], at([WEB6], "tcp/80", "tcp/443")),
    ([f"{WEB4}:22,50-60,8000-9999,8080-8090"], at([WEB4], "tcp/22", "tcp/53", "udp/53", "tcp/8080", "udp/9999")),
    ([f"{WEB4}:1-65535"], at([WEB4], *TCP, *UDP)),
    ([f"{WEB4}:53/tcp"], at([WEB4], "tcp/53")),
    ([f"{WEB4}:53/udp"], at([WEB4], "udp/53")),
    ([f"{WEB4}/tcp"], at([WEB4], *TCP)),
    ([f"[{WEB6}]/udp"], at([WEB6], *UDP)),
    ([f"{WEB4}/icmp"], at([WEB4], "icmp")),
    ([f"[{WEB6}]/icmp"], at([WEB6], "icmp")),
    (["*:443"], at(PUBLICS, "tcp/443")),
    (["*:53/udp"], at(PUBLICS, "udp/53")),
    (["*/icmp"], at(PUBLICS, "icmp")),
    (["*/tcp", f"{WEB4}/udp"], at(PUBLICS, *TCP) | at([WEB4], *UDP)),
    ([INTERNAL[0]], at([INTERNAL[0]])),
    (["10.0.0.0/8:80", "[fd00:5::/32]:443/tcp"], at([INTERNAL[0]], "tcp/80") | at([INTERNAL[3]], "tcp/443")),
    (["*", f"[{INTERNAL[3]}]"], at([*PUBLICS, INTERNAL[3]])),
    (["192.168.1.0/24", "[fd00:1::/64]"], at([OTHER[0], OTHER[2]])),
    (["example.org"], at([WEB4, WEB6])),
    (["EXAMPLE.org.:80"], at([WEB4, WEB6], "tcp/80")),
    (["example.org:53/udp", DNS4], at([WEB4, WEB6], "udp/53") | at([DNS4])),
]  # fmt: skip

DENIED = [
    ([WEB4], at([WEB4])),
    ([f"[{WEB6}]"], at([WEB6])),
    (["93.0.0.0/8", "[2606:4700::/32]"], at([WEB4, DNS6])),
    ([f"{WEB4}:80"], at([WEB4], "tcp/80")),
    ([f"{WEB4}:53", f"[{WEB6}]:50-60"], at([WEB4, WEB6], "tcp/53", "udp/53")),
    ([f"[{WEB6}]:53/udp"], at([WEB6], "udp/53")),
    ([f"{WEB4}/tcp"], at([WEB4], *TCP)),
    ([f"{WEB4}/icmp", f"[{DNS6}]/icmp"], at([WEB4, DNS6], "icmp")),
    (["*:22"], at(PUBLICS, "tcp/22")),
    (["*/udp"], at(PUBLICS, *UDP)),
    (["*/icmp"], at(PUBLICS, "icmp")),
    (["0.0.0.0/0"], at([WEB4, DNS4])),
    (["[::/0]"], at([WEB6, DNS6])),
    (["example.org:443"], at([WEB4, WEB6], "tcp/443")),
    (["*"], at(PUBLICS)),
]


def names(rules: list[str]) -> str:
    return " ".join(rules)


@pytest.fixture(scope="module")
def found(caller):
    """What children reach, all at once: one for each row of the tables."""
    sandboxes = [managed(*rules) for rules, _ in ALLOWED]
    sandboxes += [managed(deny=rules, dns=()) for rules, _ in DENIED]
    with children(caller, *sandboxes) as all_:
        answers = run_at_once(all_, PROBE, targets=EVERYWHERE, seconds=5)
    return [set(reached(words)) for words in answers]


@pytest.mark.parametrize("row", range(len(ALLOWED)), ids=[names(rules) for rules, _ in ALLOWED])
def test_what_is_allowed_is_reached_and_nothing_else(found, row):
    assert found[row] == ALLOWED[row][1]


@pytest.mark.parametrize("row", range(len(DENIED)), ids=[names(rules) for rules, _ in DENIED])
def test_what_is_denied_is_not_reached_and_all_else_is(found, row):
    assert found[len(ALLOWED) + row] == at(PUBLICS) - DENIED[row][1]


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ([WEB4, f"[{WEB6}]"], [f"{WEB4}:80", f"[{WEB6}]/icmp"], at([WEB4, WEB6]) - at([WEB4], "tcp/80") - at([WEB6], "icmp")),
        (["10.0.0.0/8", "[fd00:5::/32]"], ["10.0.0.5", "[fd00:5::5]:1-1000"], at([INTERNAL[3]], "tcp/8080", "udp/9999", "icmp")),
        ([WEB4], [WEB4], set()),
        ([WEB4], ["*"], set()),
        (["*", INTERNAL[0]], ["*"], set()),
        (["example.org"], ["93.184.215.14"], at([WEB6])),
        ([WEB4], ["example.org"], set()),
    ],
)  # fmt: skip
def test_what_is_denied_wins_over_what_is_allowed(caller, allow, deny, expected):
    with children(caller, managed(*allow, deny=deny)) as [child]:
        assert set(child.reached(EVERYWHERE)) == expected


def test_what_no_child_ever_reaches_is_not_reached_by_an_allowed_network(world, caller):
    never = [address for address in SPECIAL if address.startswith(("0.", "169.254.", "240.", "fec0:"))]
    assert len(never) == 5
    everywhere = managed("0.0.0.0/0", "[::/0]")
    with children(caller, everywhere, everywhere) as (child, sibling):
        world.forget()
        assert child.reached(targets([*never, *HOST, *sibling.addresses])) == []
        assert world.host.calls() == []
        assert world.internet.packets() == set()
        others = [address for address in SPECIAL if address not in never]
        assert set(child.reached(targets(others), seconds=30)) == set(targets(others))


@pytest.mark.parametrize(("allow", "is_reached"), [((), False), (("10.0.0.5",), True)])
def test_an_ipv6_socket_that_calls_ipv4_is_judged_as_ipv4(caller, allow, is_reached):
    mapped = ["tcp/80 ::ffff:10.0.0.5", "udp/53 ::ffff:10.0.0.5"]
    public = ["tcp/80 ::ffff:93.184.215.14"]
    with children(caller, managed(*allow)) as [child]:
        assert child.reached([*mapped, *public]) == (mapped if is_reached else public)


# Resolvers.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"allow": (WEB4,), "dns": (DNS4,)}, at([WEB4]) | at([DNS4], "tcp/53", "udp/53")),
        ({"allow": (WEB4,), "dns": (DNS6,)}, at([WEB4]) | at([DNS6], "tcp/53", "udp/53")),
        ({"allow": (WEB4,), "dns": (INTERNAL[0],)}, at([WEB4]) | at([INTERNAL[0]], "tcp/53", "udp/53")),
        ({"allow": (WEB4,), "dns": ()}, at([WEB4])),
        ({"allow": (WEB4,)}, at([WEB4])),
        ({"dns": (INTERNAL[3],)}, at(PUBLICS) | at([INTERNAL[3]], "tcp/53", "udp/53")),
        ({"dns": ()}, at(PUBLICS)),
        ({"dns": (DNS4,), "deny": ("*:53",)}, at(PUBLICS) - at(PUBLICS, "tcp/53", "udp/53")),
    ],
)
def test_only_the_resolvers_that_are_given_are_reached_and_only_by_dns(caller, options, expected):
    with children(caller, pyspawner.SandboxConfig(network=pyspawner.NetworkConfig.managed(**options))) as [
        child
    ]:
        assert set(child.reached(EVERYWHERE)) == expected


def test_a_resolver_of_the_hosts_network_is_reached_by_dns_alone(world, tmp_path):
    resolvers = [INTERNAL[0], INTERNAL[3]]
    with (
        caller_of(world.host.namespace, tmp_path, resolvers=resolvers) as caller,
        children(caller, managed()) as [child],
    ):
        assert set(child.reached(EVERYWHERE)) == at(PUBLICS) | at(resolvers, "tcp/53", "udp/53")


# Names.

LOOK_UP = """
import socket
try:
    answer = sorted({info[4][0] for info in socket.getaddrinfo(name, 80)})
except socket.gaierror:
    answer = None
"""


def test_a_name_that_is_allowed_is_known_without_a_resolver_and_no_other(caller):
    with children(caller, managed("example.org:80")) as [child]:
        assert child.run(LOOK_UP, name="example.org") == [WEB6, WEB4]
        assert child.run(LOOK_UP, name="internal.example") is None
        assert child.fetch("example.org")["place"] == "Internet"


def test_a_name_is_what_it_was_at_the_spawn(world, tmp_path):
    hosts = tmp_path / "hosts"
    with (
        caller_of(world.host.namespace, tmp_path, hosts=f"{WEB4} moving.example\n") as caller,
        children(caller, managed("moving.example")) as [before],
    ):
        # In place: it is mounted.
        hosts.write_text(f"127.0.0.1 localhost\n{DNS4} moving.example\n")
        with children(caller, managed("moving.example")) as [after]:
            for child, address in ((before, WEB4), (after, DNS4)):
                assert child.run(LOOK_UP, name="moving.example") == [address]
                assert child.reached(targets([WEB4, DNS4], ["tcp/80"])) == [f"tcp/80 {address}"]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("internal.example", "10.0.0.5"),
        ("metadata.example", "169.254.169.254"),
        ("both.example", "10.0.0.5"),
    ],
)
def test_a_name_of_which_the_resolver_says_that_it_is_private_is_an_error(caller, name, address):
    with pytest.raises(pyspawner.SandboxError, match=f"{name}.* is {address}, which is not a public address"):
        caller(support.run, "print('ran')", sandbox=managed(name))


@pytest.mark.parametrize("name", ["nobody.example", "example"])
def test_a_name_that_the_resolver_does_not_know_is_an_error(caller, name):
    with pytest.raises(pyspawner.SandboxError, match=f'cannot look up "{name}"'):
        caller(support.run, "print('ran')", sandbox=managed(name))


def test_a_name_of_the_host_itself_is_allowed_and_not_reached(world, caller):
    # Its addresses look public.
    with children(caller, managed("host.example")) as [child]:
        world.forget()
        assert child.reached(targets(HOST)) == []
        assert world.host.calls() == []


# Without IPv6.


def test_without_ipv6_there_is_none(world, caller):
    with children(caller, managed("*", "0.0.0.0/0", "example.org", ipv6=False)) as [child]:
        view = child.namespace.look()
        assert [address for address in view.addresses("eth0") if ":" in address] == []
        assert json.loads(child.namespace.run("ip", "-json", "-6", "route", "show", "default")) == []
        world.forget()
        found = child.reached(EVERYWHERE)
        assert {target for target in found if ":" in target} == set()
        assert set(found) == at([WEB4, DNS4, INTERNAL[0], OTHER[0]])
        assert {packet.caller for packet in world.internet.packets()} == {HOST[1]}
        assert child.run(LOOK_UP, name="example.org") == [WEB4]


def test_without_ipv6_the_host_need_not_forward_it(world, tmp_path):
    world.forward(ipv6=False)
    try:
        with (
            caller_of(world.host.namespace, tmp_path) as caller,
            children(caller, managed(ipv6=False)) as [child],
        ):
            assert child.reached(["tcp/80 93.184.215.14"], seconds=30) == ["tcp/80 93.184.215.14"]
    finally:
        world.forward()
