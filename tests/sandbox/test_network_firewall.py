"""The firewalls in ``examples``, for children with a ``NetworkConfig``: the public Internet, and nothing else.

Each test begins on a host that forwards nothing and has no rule.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import internet
import netns
import pyspawner
import support
from internet import HOST, HOST_PUBLIC, INTERNAL, OTHER, PUBLIC, SPECIAL, Place, Seen, World, targets, v4

EXAMPLES = Path(__file__).parents[2] / "examples"
NETWORK = pyspawner.NetworkConfig()
NETWORKED = pyspawner.SandboxConfig(network=NETWORK)
# With rights in its own namespaces.
PRIVILEGED = replace(support.only(), network=NETWORK)
CHILD = f"{NETWORK.kernel_veth_name}={NETWORK.child_ipv4_address}"
NEIGHBOUR = OTHER[1]

ALLOWED = targets(v4(PUBLIC))
DENIED = targets([*v4(SPECIAL + INTERNAL + HOST), OTHER[0], NETWORK.kernel_ipv4_address])
DENIED += [f"udp/9999 {address}" for address in ("224.0.0.1", "255.255.255.255", "192.168.123.255")]

FETCH = """
import urllib.request
print(urllib.request.urlopen("http://93.184.215.14/", timeout=30).read().decode())
"""
SPOOFED = [
    ("10.9.9.9", "udp/9999 1.1.1.1"),
    ("192.168.1.20", "udp/9999 192.168.123.1"),
    ("fe80::9", f"udp/9999 ff02::1%{NETWORK.child_veth_name}"),
    ("2a02:6b8:0:1::9", "udp/9999 2606:4700:4700::1111"),
]


@dataclass(frozen=True)
class Firewall:
    """One of the scripts, on the host."""

    script: Path
    world: World

    def run(self, *arguments: str, deny: str = "") -> subprocess.CompletedProcess[str]:
        command = self.world.host.namespace.command("env", f"DENY={deny}", str(self.script), *arguments)
        return subprocess.run(command, check=False, capture_output=True, text=True)

    @contextlib.contextmanager
    def up(self, *, deny: str = "") -> Iterator[None]:
        try:
            assert quiet(self.run("up", "uplink", CHILD, deny=deny))
            yield
        finally:
            assert quiet(self.run("down"))


def quiet(done: subprocess.CompletedProcess[str]) -> bool:
    return (done.returncode, done.stdout, done.stderr) == (0, "", "")


@contextlib.contextmanager
def forwarding(world: World) -> Iterator[None]:
    """Let the host forward, by itself."""
    world.forward()
    try:
        yield
    finally:
        world.forward(ipv4=False)


def forwards(world: World) -> bool:
    return world.host.namespace.run("sysctl", "-n", "net.ipv4.ip_forward") == "1\n"


def rules(world: World) -> list[str]:
    """Every rule of the host, whoever made it, and every chain and table that is not the kernel's."""
    listed = world.host.namespace.run("nft", "list", "ruleset")
    for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
        listed += world.host.namespace.run(program)
    # Less comments, tables, and the chains of the kernel.
    return [line for line in listed.splitlines() if not re.match(r"#|\*|COMMIT|:\w+ ACCEPT", line)]


def those(words: dict[str, str], *, reached: bool) -> list[str]:
    return [target for target, word in words.items() if (word == "reached") == reached]


@pytest.fixture(scope="module")
def world():
    with internet.world() as world:
        world.forward(ipv4=False)
        yield world


@pytest.fixture(params=["firewall-nft.sh", "firewall-iptables-legacy.sh"])
def firewall(request, world):
    world.forget()
    yield Firewall(EXAMPLES / request.param, world)
    assert rules(world) == []
    assert not forwards(world)


@pytest.fixture
def without_filter(world):
    """A host that only forwards and masquerades."""
    rule = "POSTROUTING -s 192.168.123.2 -o uplink -j MASQUERADE"
    with forwarding(world):
        world.host.namespace.run(*f"iptables-legacy -t nat -A {rule}".split())
        yield
        world.host.namespace.run(*f"iptables-legacy -t nat -D {rule}".split())


# What a child reaches.


def test_a_child_fetches_from_the_internet_as_if_it_were_the_host(firewall, world):
    with firewall.up():
        answer = json.loads(world.caller(support.run, FETCH, sandbox=NETWORKED).text)
    assert answer == {"place": "Internet", "port": 80, "at": "93.184.215.14", "caller": HOST_PUBLIC[0]}


def test_a_child_reaches_what_is_public(firewall, world):
    with firewall.up():
        assert those(world.caller(internet.probe, NETWORKED, ALLOWED, seconds=30), reached=False) == []


def test_a_child_reaches_nothing_else(firewall, world):
    with firewall.up():
        assert those(world.caller(internet.probe, NETWORKED, DENIED), reached=True) == []
    assert [place.packets() for place in (world.internet, world.internal, world.other)] == [set()] * 3
    assert world.host.calls() == []


def test_without_the_filter_it_reaches_all_of_that(without_filter, world):
    words = world.caller(internet.probe, NETWORKED, ALLOWED + DENIED, seconds=30)
    assert those(words, reached=False) == []


def test_what_is_denied_is_said_at_once(firewall, world):
    with firewall.up():
        words = world.caller(
            internet.probe, NETWORKED, ["tcp/80 10.0.0.5", "udp/53 192.168.1.10"], seconds=30
        )
    assert set(words.values()) == {"unreachable"}


def test_a_network_that_looks_public_can_be_denied(firewall, world):
    target = f"tcp/80 {NEIGHBOUR}"
    with firewall.up():
        assert world.caller(internet.probe, NETWORKED, [target], seconds=30) == {target: "reached"}
    with firewall.up(deny="10.1.0.0/16 81.2.69.0/24"):
        assert world.caller(internet.probe, NETWORKED, [target], seconds=30) == {target: "unreachable"}


def test_a_public_address_is_public_only_behind_the_uplink(firewall, world):
    target = "icmp 81.2.70.2"
    with world.guest("lan2", ["81.2.70.1/24"], ["81.2.70.2/24"]):
        with firewall.up():
            assert world.caller(internet.probe, NETWORKED, [target], seconds=30) == {target: "unreachable"}
        with forwarding(world):
            assert world.caller(internet.probe, NETWORKED, [target], seconds=30) == {target: "reached"}


BESIDE_A_RULE_THAT_DROPS = {"firewall-nft.sh": "timeout", "firewall-iptables-legacy.sh": "reached"}


def test_what_another_rule_drops_is_dropped_unless_ours_comes_first(firewall, world):
    target = "tcp/80 1.1.1.1"
    world.host.namespace.run(*["iptables-legacy", "-A", "FORWARD", "-j", "DROP"])
    try:
        with firewall.up():
            word = world.caller(internet.probe, NETWORKED, [target], seconds=3)[target]
    finally:
        world.host.namespace.run(*["iptables-legacy", "-D", "FORWARD", "-j", "DROP"])
    assert word == BESIDE_A_RULE_THAT_DROPS[firewall.script.name]


def test_a_child_finds_names_at_a_resolver_that_it_reaches(firewall, world, directory):
    resolv_conf = directory / "resolv.conf"
    resolv_conf.write_text("nameserver 1.1.1.1\n")
    sandbox = replace(NETWORKED, mounts=(pyspawner.Bind(resolv_conf, "/etc/resolv.conf"),))
    find = "import socket; print(socket.gethostbyname('example.org'))"
    with firewall.up():
        assert world.caller(support.run, find, sandbox=sandbox).text == "93.184.215.14\n"


# Who reaches a child.


def call_in(client: pyspawner.Client, place: netns.Namespace, *, seconds: float = 30) -> str:
    """What comes of a call from a place to a child that listens."""
    source = """
        import socket, sys
        with socket.create_server(("0.0.0.0", 8080)):
            print("ready", flush=True)
            sys.stdin.read()
    """
    with support.spawn(client, source, sandbox=NETWORKED) as child:
        assert child.stdout.readline() == b"ready\n"
        target = f"tcp/8080 {NETWORK.child_ipv4_address}"
        return internet.probe_from(place, [target], seconds=seconds)[target]


@pytest.mark.parametrize("name", ["internet", "internal", "other"])
def test_nobody_calls_a_child(firewall, world, name):
    place: Place = getattr(world, name)
    with forwarding(world):
        with firewall.up():
            assert world.caller(call_in, place.namespace, seconds=1) == "timeout"
        assert world.caller(call_in, place.namespace) == "reached", "without the firewall"


def test_the_host_calls_a_child(firewall, world):
    with firewall.up():
        assert world.caller(call_in, world.host.namespace) == "reached"


# Under which address a child speaks.


def send(client: pyspawner.Client, source: str, **names: Any) -> None:
    """Run a child that has all rights in its namespaces, with a way out in IPv6."""
    source = f"import sys; sys.stdin.read()\n{source}"
    with support.spawn(client, source, sandbox=PRIVILEGED, **names) as child:
        gateway, own = NETWORK.kernel_veth_name, NETWORK.child_veth_name
        host, inside = netns.of_process(os.getpid()), netns.of_process(child.pid)
        inside.ip(
            f"address add fe80::9/64 dev {own} nodad",
            f"neighbour add fe80::1 lladdr {host.look().interfaces[gateway]['address']} dev {own}",
            f"route add default via fe80::1 dev {own}",
        )
        assert support.communicate(child).text == ""


def test_a_child_speaks_only_under_its_address(firewall, world):
    def arrived() -> set[Seen]:
        seen = world.internet.packets() | set(world.host.calls())
        return {each for each in seen if each.protocol == "udp"}

    source = "import probes\nfor datagram in datagrams: probes.send_as(*datagram)"
    with forwarding(world):
        with firewall.up():
            proper = (NETWORK.child_ipv4_address, "udp/9999 1.1.1.1")
            world.caller(send, source, datagrams=[*SPOOFED, proper])
            assert netns.eventually(lambda: bool(arrived()))
            assert arrived() == {Seen("udp", 9999, "1.1.1.1", HOST_PUBLIC[0])}
        world.forget()
        world.caller(send, source, datagrams=SPOOFED)
        everything = {
            Seen("udp", 9999, target.split()[1].partition("%")[0], address) for address, target in SPOOFED
        }
        assert netns.eventually(lambda: arrived() >= everything), "without the firewall"


def test_nothing_leaves_with_a_private_address(firewall, world):
    # What belongs to no connection is not masqueraded: here, the answer to an echo request that nobody has sent.
    source = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as anybody:
    anybody.sendto(bytes([0, 0, 0xFF, 0xFF, 0, 0, 0, 0]), ("1.1.1.1", 0))
"""
    with firewall.up():
        world.caller(send, source)
        assert world.internet.packets() == set()
    with forwarding(world):
        world.caller(send, source)
        left = {Seen("icmp type 0", 0, "1.1.1.1", NETWORK.child_ipv4_address)}
        assert netns.eventually(lambda: world.internet.packets() == left), "without the firewall"


# What becomes of the host.


def test_the_host_forwards_for_nobody_else(firewall, world):
    target = "tcp/80 10.0.0.5"
    with world.guest("stranger", ["10.66.0.1/24"], ["10.66.0.2/24"]) as stranger:
        with firewall.up():
            assert internet.probe_from(stranger, [target]) == {target: "timeout"}
        with forwarding(world):
            assert internet.probe_from(stranger, [target], seconds=30) == {target: "reached"}


def test_a_host_that_forwards_goes_on_with_it(firewall, world):
    target = "tcp/80 10.0.0.5"
    with world.guest("stranger", ["10.66.0.1/24"], ["10.66.0.2/24"]) as stranger, forwarding(world):
        with firewall.up():
            assert internet.probe_from(stranger, [target], seconds=30) == {target: "reached"}
        assert forwards(world)


def test_up_may_be_said_again(firewall, world):
    with firewall.up():
        once = rules(world)
        assert quiet(firewall.run("up", "uplink", CHILD, "veth-other=192.168.124.2"))
        assert rules(world) != once
        assert quiet(firewall.run("up", "uplink", CHILD))
        assert rules(world) == once
        assert those(world.caller(internet.probe, NETWORKED, ALLOWED, seconds=30), reached=False) == []
    # The fixture sees that one "down" is enough, and that forwarding is off again.


def test_down_may_be_said_again(firewall):
    with firewall.up():
        pass
    assert quiet(firewall.run("down"))


def test_each_of_two_children_has_its_own_address(firewall, world):
    other = pyspawner.NetworkConfig("veth-other", "eth0", "192.168.124.1", "192.168.124.2")
    sandboxes = [NETWORKED, pyspawner.SandboxConfig(network=other)]
    siblings = targets(["192.168.123.1", "192.168.124.1", "192.168.123.2", "192.168.124.2"], ["tcp/80"])
    try:
        assert quiet(firewall.run("up", "uplink", CHILD, "veth-other=192.168.124.2"))
        children = [(sandbox, ["tcp/80 1.1.1.1", *siblings]) for sandbox in sandboxes]
        for words in world.caller(internet.probe_at_once, children, seconds=30):
            assert those(words, reached=True) == ["tcp/80 1.1.1.1"]
    finally:
        firewall.run("down")


BAD_ARGUMENTS = {
    "": "up UPLINK INTERFACE=ADDRESS... | down",
    "uplink": "up UPLINK INTERFACE=ADDRESS... | down",
    "up": "up needs an uplink, and INTERFACE=ADDRESS of each child",
    "up uplink": "up needs an uplink, and INTERFACE=ADDRESS of each child",
    f"up nothing {CHILD}": "there is no interface 'nothing'",
    f"up -x {CHILD}": "there is no interface '-x'",
    "up uplink uplink=192.168.123.2": "'uplink' cannot be the uplink and lead to a child",
    "up uplink =192.168.123.2": "'=192.168.123.2' does not begin with the name of an interface",
    "up uplink veth+=192.168.123.2": "'veth+=192.168.123.2' does not begin with the name of an interface",
    "up uplink a-name-of-16-byte=1.2.3.4": "'a-name-of-16-byte=1.2.3.4' does not begin with the name of an interface",
    **{
        f"up uplink {CHILD} {child}": f"'{child}' does not end with =ADDRESS, an IPv4 address"
        for child in ("b", "b=", "b=host", "b=::1", "b=1.2.3", "b=1.2.3.256", "b=1.2.3.04", "b=1.2.3.4/24")
    },
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_bad_arguments_change_nothing(firewall, arguments):
    # The fixture sees that nothing is there.
    done = firewall.run(*arguments.split())
    message = f"{firewall.script}: {BAD_ARGUMENTS[arguments]}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_bad_arguments_take_nothing_away(firewall, world):
    with firewall.up():
        found = rules(world)
        assert firewall.run("up", "uplink", CHILD, "nonsense").returncode == 2
        assert rules(world) == found
        assert forwards(world)


BAD_NETWORKS = ["81.2.69.0", "81.2.69.0/33", "81.2.69.0/999", "81.2.69/24", "example.org/24", "81.2.69.0/"]


@pytest.mark.parametrize("network", BAD_NETWORKS)
def test_a_bad_network_changes_nothing(firewall, network):
    done = firewall.run("up", "uplink", CHILD, deny=network)
    message = f"{firewall.script}: DENY: '{network}' is no IPv4 network like 81.2.69.0/24\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
