"""A small world for children with a network: a host, the Internet, an internal service, another host of the LAN.

::

    child -- veth --+                +-- Internet    PUBLIC, SPECIAL
                    host -- LAN -----+-- internal    INTERNAL
    guest -- veth --+  HOST          +-- other       OTHER

Each of the four is a network namespace of the test, and everything that a child may want to send leads to one of them: what does not
arrive was stopped by a firewall, and not by the lack of a route. In each, ``internet_server.py`` answers at all addresses and knows who
has called. The host forwards; it filters and translates nothing until a test lets it.

::

    with internet.world() as world:
        words = world.caller(internet.probe, sandbox, ["tcp/80 93.184.215.14", "icmp 10.0.0.5"])
        assert words == {"tcp/80 93.184.215.14": "reached", "icmp 10.0.0.5": "unreachable"}
        assert not world.internal.packets()
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_interface
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

import internet_server
import netns
import probes
import pyspawner
import support
from netns import Caller, Namespace, eventually

PUBLIC = ("93.184.215.14", "1.1.1.1", "8.8.8.8", "2606:2800:21f:cb07::14", "2606:4700:4700::1111")
"""Addresses of the Internet that everybody may call."""

METADATA = "169.254.169.254"

SPECIAL = (
    "0.1.2.3",  # this network
    "100.64.0.9",  # carrier-grade NAT
    "169.254.0.9",  # link-local
    METADATA,
    "192.0.0.9",  # protocol assignments
    "192.0.2.1",  # documentation
    "192.88.99.1",  # relays of 6to4
    "198.18.0.9",  # benchmarks
    "198.51.100.7",  # documentation
    "203.0.113.9",  # documentation
    "240.0.0.9",  # reserved
    "64:ff9b::a00:5",  # NAT64, of 10.0.0.5
    "64:ff9b::a9fe:a9fe",  # NAT64, of the metadata
    "64:ff9b:1::9",  # NAT64, local
    "100::9",  # discard
    "2001::9",  # Teredo
    "2001:db8::9",  # documentation
    "2002:a00:5::1",  # 6to4, of 10.0.0.5
    "3fff::9",  # documentation
    "4000::9",  # not assigned
    "5f00::9",  # segment routing
    "fd00:9::9",  # private
    "fec0::9",  # site-local
)
"""Addresses at which the Internet answers too, although nobody there should have them."""

INTERNAL = ("10.0.0.5", "192.168.7.5", "172.20.0.5", "fd00:5::5")
"""Addresses of the internal service."""

_NUMBERS = {"host": 10, "Internet": 1, "internal": 30, "other": 20}
_OFF_LAN = {
    "host": ("172.17.0.1", "fd00:17::1"),  # as if there were containers too
    "Internet": PUBLIC + SPECIAL,
    "internal": INTERNAL,
    "other": (),
}


def _on_lan(place: str) -> tuple[str, ...]:
    """A private address, one that looks public, and the same in IPv6."""
    forms = ("192.168.1.{}/24", "81.2.69.{}/24", "fd00:1::{}/64", "2a02:6b8:0:1::{}/64")
    return tuple(form.format(_NUMBERS[place]) for form in forms)


def _addresses(place: str) -> tuple[str, ...]:
    return tuple(str(ip_interface(address).ip) for address in _on_lan(place)) + _OFF_LAN[place]


HOST, OTHER = _addresses("host"), _addresses("other")
"""Addresses of the host, and of the other host in its LAN: private, public, private, public, and what the host has besides."""

HOST_PUBLIC = (HOST[1], HOST[3])
"""Who somebody is after masquerading."""

PROTOCOLS = ("tcp/80", "udp/53", "icmp")


def v4(addresses: Sequence[str]) -> list[str]:
    return [address for address in addresses if ":" not in address]


def v6(addresses: Sequence[str]) -> list[str]:
    return [address for address in addresses if ":" in address]


def targets(addresses: Sequence[str], protocols: Sequence[str] = PROTOCOLS) -> list[str]:
    """Each protocol at each address, as ``probes.py`` wants them."""
    return [f"{protocol} {address}" for address in addresses for protocol in protocols]


class Seen(NamedTuple):
    """A call, or packets that are alike."""

    protocol: str
    """``tcp``, ``udp``, ``icmp`` for an echo request, ``icmp type N`` for its other messages, ``protocol N``."""
    port: int
    at: str
    caller: str


@dataclass(frozen=True)
class Place:
    """A namespace of the world, and its server."""

    namespace: Namespace
    addresses: tuple[str, ...]
    _server: Connection

    def calls(self) -> list[Seen]:
        """Each TCP connection and each datagram at a port where the server answers, in order."""
        return self._seen()[0]

    def packets(self) -> set[Seen]:
        """What the LAN has brought to this place, whether anybody wanted it or not."""
        return self._seen()[1]

    def forget(self) -> None:
        self._server.send("forget")
        self._server.recv()

    def _seen(self) -> tuple[list[Seen], set[Seen]]:
        self._server.send("seen")
        calls, packets, lost = self._server.recv()
        assert not lost, "a memory with gaps proves nothing"
        return [Seen(*call) for call in calls], {Seen(*packet) for packet in packets}


@dataclass(frozen=True)
class World:
    host: Place
    internet: Place
    internal: Place
    other: Place
    caller: Caller
    """On the host, with a ``Client``."""

    def forget(self) -> None:
        """Let all places forget what they have seen."""
        for place in (self.host, self.internet, self.internal, self.other):
            place.forget()

    def forward(self, *, ipv4: bool = True, ipv6: bool = True) -> None:
        """Whether the host forwards."""
        self.host.namespace.sysctl(ipv4__ip_forward=int(ipv4), ipv6__conf__all__forwarding=int(ipv6))

    @contextlib.contextmanager
    def guest(
        self,
        interface: str = "guest",
        gateways: Sequence[str] = ("10.66.0.1/24", "fd66::1/64"),
        addresses: Sequence[str] = ("10.66.0.2/24", "fd66::2/64"),
    ) -> Iterator[Namespace]:
        """Make a namespace where a child would be, behind an interface of the host, that may send what no child can."""
        with netns.new() as guest:
            guest.sysctl(**_SETTINGS)
            self.host.namespace.ip(f"link add {interface} type veth peer name eth0 netns {guest.path}")
            try:
                # Who has no link-local address cannot ask for those of others.
                _settle(self.host.namespace, interface, (*gateways, "fe80::1/64"))
                _settle(guest, "eth0", (*addresses, "fe80::2/64"))
                guest.ip(*(f"route add default via {ip_interface(gateway).ip}" for gateway in gateways))
                _wait_for(guest, "eth0")
                yield guest
            finally:
                self.host.namespace.ip(f"link delete {interface}")


@contextlib.contextmanager
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        namespaces = {name: stack.enter_context(netns.new()) for name in _NUMBERS}
        _connect(namespaces)
        servers = {name: stack.enter_context(_server(name, namespaces[name])) for name in _NUMBERS}
        places = {name.lower(): Place(namespaces[name], _addresses(name), servers[name]) for name in _NUMBERS}
        caller = stack.enter_context(Caller(namespaces["host"]))
        made = World(**places, caller=caller)
        made.forward()
        for name in _NUMBERS:
            _wait_for(namespaces[name], "uplink")
            assert servers[name].recv() == "ready"
        yield made


# What a namespace begins with is partly the machine's.
_SETTINGS = {
    "ipv4__ip_forward": 0,
    "ipv4__conf__all__rp_filter": 0,
    "ipv4__conf__default__rp_filter": 0,
    "ipv4__ping_group_range": "0 2147483647",
    # No message of an error is held back because there are many.
    "ipv4__icmp_ratemask": 0,
    "ipv6__icmp__ratemask": 0,
    "ipv6__icmp__ratelimit": 0,
}


def _connect(namespaces: Mapping[str, Namespace]) -> None:
    """Give everybody addresses, an interface ``uplink`` in the LAN, and routes that lead everything to somebody."""
    switch = namespaces["Internet"]
    switch.ip("link add uplink type bridge mcast_snooping 0")
    for name in ("host", "internal", "other"):
        switch.ip(
            f"link add {name} type veth peer name uplink netns {namespaces[name].path}",
            f"link set {name} master uplink addrgenmode none up",
        )
    on_lan = {name: [ip_interface(address).ip for address in _on_lan(name)] for name in _NUMBERS}
    for name, namespace in namespaces.items():
        namespace.sysctl(**_SETTINGS)
        _settle(namespace, "uplink", (*_on_lan(name), f"fe80::{_NUMBERS[name]}/64"))
        namespace.ip(*(f"address add {address} dev lo" for address in _OFF_LAN[name]))
        # Who has been called by a child answers it through the host.
        _, default4, _, default6 = on_lan["Internet" if name == "host" else "host"]
        namespace.ip(*(f"route add default via {gateway}" for gateway in (default4, default6)))
        if name != "internal":
            gateway4, _, gateway6, _ = on_lan["internal"]
            namespace.ip(*(f"route add {address} via {gateway4}" for address in v4(INTERNAL)))
            namespace.ip(*(f"route add {address} via {gateway6}" for address in v6(INTERNAL)))


def _settle(namespace: Namespace, interface: str, addresses: Sequence[str]) -> None:
    """Bring up ``lo``, and an interface with addresses that are good at once: nobody looks for a double."""
    namespace.ip(
        "link set lo up",
        f"link set {interface} addrgenmode none",
        *(f"address add {address} dev {interface}" for address in v4(addresses)),
        *(f"address add {address} dev {interface} nodad" for address in v6(addresses)),
        f"link set {interface} up",
    )


def _wait_for(namespace: Namespace, interface: str) -> None:
    """Until it sends what it is given."""
    assert eventually(lambda: namespace.look().interfaces[interface]["operstate"] == "UP")


@contextlib.contextmanager
def _server(name: str, namespace: Namespace) -> Iterator[Connection]:
    ours, theirs = Pipe()
    with ours:
        with theirs:
            program = [sys.executable, internet_server.__file__, name, "uplink", str(theirs.fileno())]
            server = subprocess.Popen(namespace.command(*program), pass_fds=[theirs.fileno()])
        try:
            yield ours
        finally:
            server.kill()
            server.wait()


def probe_from(namespace: Namespace, targets: Sequence[str], *, seconds: float = 1) -> dict[str, str]:
    """Try to reach targets from a namespace; see ``probes.py`` for them and for the words that come back."""
    return json.loads(namespace.run(sys.executable, probes.__file__, str(seconds), *targets))


def send_as(source: str, target: str) -> list[str]:
    """A command that sends a datagram under the address of somebody else."""
    return [sys.executable, probes.__file__, "as", source, target]


def _allow_pings(pid: int) -> None:
    """Let all groups of a child's namespace send echo requests; a new one lets none.

    It is told from inside: the sysctl takes no group as high as those that a child has on the host.
    """
    enter = ["nsenter", f"--user=/proc/{pid}/ns/user", f"--net=/proc/{pid}/ns/net", "--preserve-credentials"]
    subprocess.run([*enter, "--", "sysctl", "-qw", "net.ipv4.ping_group_range=0 65535"], check=True)


# What callers are asked to do.


def probe(
    client: pyspawner.Client, sandbox: pyspawner.SandboxConfig, targets: Sequence[str], *, seconds: float = 1
) -> dict[str, str]:
    """Let a child try to reach targets; see ``probes.py`` for them and for the words that come back."""
    return probe_at_once(client, [(sandbox, targets)], seconds=seconds)[0]


def probe_at_once(
    client: pyspawner.Client,
    children: Sequence[tuple[pyspawner.SandboxConfig, Sequence[str]]],
    *,
    seconds: float = 1,
) -> list[dict[str, str]]:
    """Let a child in each sandbox try to reach its targets. None begins before all are there."""
    source = """
        import json, sys
        sys.stdin.read()
        import probes
        print(json.dumps(probes.attempt_all(targets, seconds)))
    """
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(children)) as pool:
        spawned = [
            stack.enter_context(
                support.spawn(client, source, sandbox=sandbox, targets=targets, seconds=seconds)
            )
            for sandbox, targets in children
        ]
        for child in spawned:
            _allow_pings(child.pid)
        return [json.loads(outcome.text) for outcome in pool.map(support.communicate, spawned)]
