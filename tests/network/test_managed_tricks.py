"""A child that is root of its namespace sends what it likes: forged addresses, and lies to its neighbours.

No layer keeps it from that here, as if it had broken all of them but the namespaces.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from managed_support import NAME, SERVE, children, documented, lead_to, managed, router

import pyspawner
from internet import HOST, INTERNAL, PUBLIC, Seen, targets
from netns import Namespace, eventually

WEB4, WEB6 = PUBLIC[0], PUBLIC[3]


def root(sandbox: pyspawner.SandboxConfig) -> pyspawner.SandboxConfig:
    return replace(sandbox, skip_sandbox_except=frozenset({"no_new_privs"}))


TOOLS = """
import socket, struct

def checksum(data):
    if len(data) % 2:
        data += bytes(1)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

def packed(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)

def with_checksum(number, source, target, data, at):
    if ":" in source:
        pseudo = packed(source) + packed(target) + struct.pack("!II", len(data), number)
    else:
        pseudo = packed(source) + packed(target) + struct.pack("!BBH", 0, number, len(data))
    if number == 1:
        pseudo = b""
    return data[:at] + struct.pack("!H", checksum(pseudo + data)) + data[at + 2:]

def packet(number, source, target, data, at, hops=255):
    data = with_checksum(number, source, target, data, at)
    if ":" in source:
        return struct.pack("!IHBB", 6 << 28, len(data), number, hops) + packed(source) + packed(target) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 7, 0, hops, number, 0) + packed(source) + packed(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + data

def udp(source, target, port):
    return packet(17, source, target, struct.pack("!HHHH", 4444, port, 13, 0) + b"forge", 6)

def syn(source, target, port):
    return packet(6, source, target, struct.pack("!HHIIBBHHH", 4444, port, 1, 0, 0x50, 2, 1024, 0, 0), 16)

def ping(source, target):
    if ":" in source:
        return packet(58, source, target, struct.pack("!BBHHH", 128, 0, 0, 1, 1), 2)
    return packet(1, source, target, struct.pack("!BBHHH", 8, 0, 0, 1, 1), 2)

def send_frame(payload, kind=None, to=b"\\xff" * 6, sender=None):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((interface, 0))
        own = wire.getsockname()[4]
        if kind is None:
            kind = 0x86DD if payload[0] >> 4 == 6 else 0x0800
        wire.send(to + (sender or own) + struct.pack("!H", kind) + payload)
"""

FORGE = (
    TOOLS
    + """
for source, target in pairs:
    for forged in (udp(source, target, 9999), syn(source, target, 80), ping(source, target)):
        for to in (b"\\xff" * 6, bytes.fromhex(gateway.replace(":", ""))):
            send_frame(forged, to=to)
"""
)

ADOPT = """
import subprocess
subprocess.run(["ip", "address", "add", address, "dev", interface, *(["nodad"] if ":" in address else [])], check=True)
source = address.partition("/")[0]
import socket
family = socket.AF_INET6 if ":" in source else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as caller:
    caller.bind((source, 0))
    caller.sendto(b"adopted", (target, 9999))
# Or its own calls would come from there.
subprocess.run(["ip", "address", "delete", address, "dev", interface], check=True)
"""

LIE = (
    TOOLS
    + """
own = bytes.fromhex("02aabbccddee")
for victim in victims4:
    for operation in (1, 2):
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + own + packed(victim) + own + packed(victim)
        send_frame(arp, 0x0806, sender=own)
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + own + packed(victim) + bytes(6) + packed(near4)
        send_frame(arp, 0x0806, sender=own)
for victim in victims6:
    option = struct.pack("!BB", 2, 1) + own
    advertisement = struct.pack("!BBHI", 136, 0, 0, 0xE0000000) + packed(victim) + option
    for target in ("ff02::1", near6):
        send_frame(packet(58, victim, target, advertisement, 2), sender=own)
    solicitation = struct.pack("!BBHI", 135, 0, 0, 0) + packed(near6) + struct.pack("!BB", 1, 1) + own
    send_frame(packet(58, victim, near6, solicitation, 2), sender=own)
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + packed("2001:470:1::")
router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix + struct.pack("!BB", 1, 1) + own
send_frame(packet(58, "fe80::bad", "ff02::1", router, 2), sender=own)
send_frame(packet(58, "fe80::bad", near6, router, 2), sender=own)
for gateway4, target4 in redirects4:
    inner = udp(near4, target4, 53)
    redirect = struct.pack("!BBH", 5, 1, 0) + packed(gateway4) + inner[:28]
    send_frame(packet(1, child4, near4, redirect, 2))
redirect = struct.pack("!BBHI", 137, 0, 0, 0) + packed("fe80::bad") + packed("2606:2800:21f:cb07::14")
redirect += struct.pack("!BB", 2, 1) + own
send_frame(packet(58, "fe80::bad", near6, redirect, 2), sender=own)
"""
)


def tables(namespace: Namespace) -> list[str]:
    """What a namespace believes of its neighbours and ways."""
    shown = [["-4", "neigh"], ["-6", "neigh"], ["address"], ["-4", "route", "show", "table", "all"]]
    shown.append(["-6", "route", "show", "table", "all"])
    lines = [line for words in shown for line in namespace.run("ip", *words).splitlines()]
    # How fresh a neighbour is changes by itself, and is of the LAN.
    return sorted(line for line in lines if " uplink lladdr" not in line and "cache" not in line)


def link(namespace: Namespace, interface: str) -> str:
    return json.loads(namespace.run("ip", "-json", "link", "show", "dev", interface))[0]["address"]


def near_end(namespace: Namespace, address: str) -> str:
    """The interface there that has an address."""
    view = namespace.look()
    [found] = [
        name
        for name in view.interfaces
        if address in [each.partition("/")[0] for each in view.addresses(name)]
    ]
    return found


def gateway_of(child) -> str:
    [gateway] = [route["gateway"] for route in child.namespace.look().routes if route["dst"] == "default"]
    return gateway


def seen_everywhere(world) -> set[Seen]:
    """All that has left the host, and all that the host has answered."""
    places = (world.internet, world.internal, world.other)
    return {packet for place in places for packet in place.packets()} | set(world.host.calls())


PUBLIC_PAIRS = [
    ("8.8.8.8", WEB4),
    ("10.0.0.5", WEB4),
    (HOST[0], WEB4),
    (HOST[1], WEB4),
    ("127.0.0.1", WEB4),
    ("0.0.0.0", WEB4),
]
PUBLIC_PAIRS += [
    ("2606:4700:4700::1111", WEB6),
    ("fd00:5::5", WEB6),
    (HOST[3], WEB6),
    ("fe80::9", WEB6),
    ("::1", WEB6),
]


def test_forged_sources_arrive_nowhere(world, caller):
    with children(caller, root(managed()), managed()) as (child, sibling):
        between = router(child)
        gateway = link(between, near_end(between, gateway_of(child)))
        own4, own6 = child.addresses
        broadcast, network = (
            own4.rpartition(".")[0] + f".{int(own4.rpartition('.')[2]) + 1}",
            gateway_of(child),
        )
        pairs = [
            *PUBLIC_PAIRS,
            *((address, WEB6 if ":" in address else WEB4) for address in sibling.addresses),
            (broadcast, WEB4),
            (network, WEB4),
        ]
        world.forget()
        child.run(FORGE, interface=NAME, pairs=pairs, gateway=gateway)
        # What was sent before this has been judged.
        assert child.fetch(WEB4)["place"] == child.fetch(WEB6)["place"] == "Internet"
        seen = {(packet.protocol, packet.at) for packet in seen_everywhere(world) if packet.port != 80}
        assert seen == set()
        assert {packet.caller for packet in seen_everywhere(world)} == {HOST[1], HOST[3]}
        # The control: by the same way, with its own addresses.
        child.run(FORGE, interface=NAME, pairs=[(own4, WEB4), (own6, WEB6)], gateway=gateway)
        arrived = {("udp", WEB4), ("icmp", WEB4), ("udp", WEB6), ("icmp", WEB6)}
        assert eventually(
            lambda: {(p.protocol, p.at) for p in world.internet.packets() if p.port != 80} == arrived
        )


def test_forged_sources_of_a_child_that_nobody_judges_arrive(world, caller):
    with children(caller, root(documented())) as [child]:
        gateway = link(world.host.namespace, "open-0")
        world.forget()
        child.run(FORGE, interface=NAME, pairs=[("8.8.8.8", WEB4), ("10.0.0.5", WEB4)], gateway=gateway)
        forged = {Seen("udp", 9999, WEB4, "8.8.8.8"), Seen("tcp", 80, WEB4, "10.0.0.5")}
        assert eventually(lambda: forged <= world.internet.packets())


def test_forged_packets_to_the_host_and_to_a_sibling_arrive_nowhere(world, caller):
    with children(caller, root(managed()), managed(), managed(), of="") as (child, sibling, other):
        sibling.run(SERVE)
        lead_to(sibling)
        between = router(child)
        gateway = link(between, near_end(between, gateway_of(child)))
        v4, v6 = sibling.addresses
        sources4, sources6 = (
            (child.addresses[0], other.addresses[0], WEB4),
            (child.addresses[1], other.addresses[1], WEB6),
        )
        pairs = [
            (source, target)
            for source in sources4
            for target in (v4, HOST[0], HOST[1], INTERNAL[0], "255.255.255.255")
        ]
        pairs += [
            (source, target)
            for source in sources6
            for target in (v6, HOST[2], HOST[3], INTERNAL[3], "ff02::1")
        ]
        world.forget()
        child.run(FORGE, interface=NAME, pairs=pairs, gateway=gateway)
        assert child.fetch(WEB4)["place"] == child.fetch(WEB6)["place"] == "Internet"
        assert sibling.run("answer = heard") == []
        assert world.host.calls() == []
        assert world.internal.packets() | world.other.packets() == set()


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("10.0.0.5/32", WEB4),
        ("8.8.8.8/32", WEB4),
        ("fd00:5::5/128", WEB6),
        ("2606:4700:4700::1111/128", WEB6),
    ],
)
def test_an_address_that_a_child_gives_itself_is_of_no_use(world, caller, address, target):
    with children(caller, root(managed()), root(documented())) as (child, unmanaged):
        world.forget()
        child.run(ADOPT, interface=NAME, address=address, target=target)
        assert child.fetch(target)["place"] == "Internet"
        assert {packet for packet in world.internet.packets() if packet.port == 9999} == set()
        if ":" not in address:
            unmanaged.run(ADOPT, interface=NAME, address=address, target=target)
            adopted = Seen("udp", 9999, target, address.partition("/")[0])
            assert eventually(lambda: adopted in world.internet.packets())


def lies(child, near4: str, near6: str, victims: tuple[list[str], list[str]]) -> dict[str, object]:
    return {
        "interface": NAME,
        "victims4": victims[0],
        "victims6": victims[1],
        "near4": near4,
        "near6": near6,
        "child4": child.addresses[0],
        "redirects4": [(child.addresses[0], WEB4)],
    }


def test_lies_to_the_neighbours_change_nothing(world, caller):
    with children(caller, root(managed()), managed()) as (child, sibling):
        between = router(child)
        near4, near6 = gateway_of(child), child.addresses[1][:-1] + f"{int(child.addresses[1][-1], 16) - 1:x}"
        victims = (
            [sibling.addresses[0], near4, WEB4, HOST[0], child.addresses[0]],
            [sibling.addresses[1], near6, WEB6, HOST[2], child.addresses[1]],
        )
        assert child.fetch(WEB4)["place"] == child.fetch(WEB6)["place"] == "Internet"
        before = tables(world.host.namespace), tables(between), tables(sibling.namespace)
        child.run(LIE, **lies(child, near4, near6, victims))
        assert child.fetch(WEB4)["place"] == child.fetch(WEB6)["place"] == "Internet"
        assert (tables(world.host.namespace), tables(between), tables(sibling.namespace)) == before
        assert sibling.reached(targets([WEB4, WEB6]), seconds=30) == targets([WEB4, WEB6])


def test_the_neighbours_of_a_child_that_nobody_judges_believe_its_lies(world, caller):
    host = world.host.namespace
    with children(caller, root(documented())) as [child]:
        before = tables(host)
        host.ip("address add fd66::1/64 dev open-0 nodad")
        # A host that forwards listens to other routers only so.
        host.sysctl(**{"ipv6__conf__open-0__accept_ra": 2})
        victims = (["10.78.0.77"], ["fd66::77"])
        child.run(LIE, **lies(child, "10.78.0.1", "fd66::1", victims))
        assert eventually(lambda: any("02:aa:bb:cc:dd:ee" in line for line in tables(host))), before
        assert eventually(lambda: any("default via fe80::bad dev open-0" in line for line in tables(host)))


@pytest.mark.parametrize(
    "command",
    [
        "address add 81.2.69.1/32 dev lo",
        "link set eth0 address 02:00:00:00:00:09",
        "route replace default dev eth0",
    ],
)
def test_a_child_that_changes_its_own_end_changes_nothing_else(world, caller, command):
    source = "import subprocess; subprocess.run(['ip', *command.split()], check=True)"
    with children(caller, root(managed()), managed()) as (child, sibling):
        between = router(child)
        before = tables(world.host.namespace), tables(between)
        child.run(source, command=command)
        child.probe(targets([WEB4, *INTERNAL]), seconds=1)
        assert (tables(world.host.namespace), tables(between)) == before
        assert sibling.reached(targets([WEB4, WEB6]), seconds=30) == targets([WEB4, WEB6])
