"""Attempts to reach somebody, from wherever this runs: in a child, or as a program in a namespace.

A target is a protocol with its port, and an address: ``tcp/80 1.1.1.1``, ``udp/53 2606:4700:4700::1111``, ``icmp 1.1.1.1``,
``udp/9999 ff02::1%eth0``, ``tcp/80 ::ffff:10.0.0.5``. What became of it is one word:

- ``reached``: a connection stood, or an answer came;
- ``refused``, ``unreachable``, ``permission``: the error that came, by kernel or packet; an administrative prohibition is
  ``unreachable`` in ICMP, and ``permission`` in ICMPv6;
- ``timeout``: nothing came.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

_WORDS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "refused",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
}
_A, _AAAA = 1, 28


def question(name: str, family: int) -> bytes:
    """A DNS query."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    kind = _AAAA if family == socket.AF_INET6 else _A
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def _echo_request(family: int) -> bytes:
    return struct.pack("!BBHHH", 128 if family == socket.AF_INET6 else 8, 0, 0, 0, 1) + b"ping"


def _call(target: str, seconds: float) -> None:
    kind, _, address = target.partition(" ")
    protocol, _, port = kind.partition("/")
    family, _, _, _, place = socket.getaddrinfo(
        address, int(port or 0), type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )[0]
    kind, number, message = {
        "tcp": (socket.SOCK_STREAM, 0, b""),
        "udp": (socket.SOCK_DGRAM, 0, question("example.org", socket.AF_INET)),
        "icmp": (
            socket.SOCK_DGRAM,
            socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP,
            _echo_request(family),
        ),
    }[protocol]
    with socket.socket(family, kind, number) as caller:
        caller.settimeout(seconds)
        for_many = ipaddress.ip_address(address.partition("%")[0]).is_multicast or address.endswith(".255")
        if for_many:
            # The answer comes from somebody's own address, which a connected socket would not hear.
            if family == socket.AF_INET:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            caller.sendto(message, place)
        else:
            caller.connect(place)
            if not message:
                return
            caller.send(message)
        caller.recv(65536)


def attempt(target: str, seconds: float) -> str:
    try:
        _call(target, seconds)
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return _WORDS.get(error.errno or 0) or errno.errorcode.get(error.errno or 0, str(error))
    return "reached"


def attempt_all(targets: Sequence[str], seconds: float) -> dict[str, str]:
    """All at once, so that those that time out do it together."""
    with ThreadPoolExecutor(max_workers=len(targets)) as pool:
        return dict(zip(targets, pool.map(attempt, targets, [seconds] * len(targets)), strict=True))


def look_up(name: str, server: str, family: int = socket.AF_INET) -> list[str]:
    """Ask a DNS server for the addresses of a name, by UDP."""
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.settimeout(30)
        caller.connect((server, 53))
        query = question(name, family)
        caller.send(query)
        answer = caller.recv(65536)
    size = 16 if family == socket.AF_INET6 else 4
    found, at = [], len(query)
    for _ in range(struct.unpack_from("!H", answer, 6)[0]):
        found.append(socket.inet_ntop(family, answer[at + 12 : at + 12 + size]))
        at += 12 + size
    return found


def send_as(source: str, target: str) -> None:
    """Send one datagram under the address of somebody else. Needs CAP_NET_RAW."""
    kind, _, address = target.partition(" ")
    port = int(kind.removeprefix("udp/"))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    scope = address.partition("%")[2]
    sender, receiver = (ipaddress.ip_address(each.partition("%")[0]).packed for each in (source, address))
    datagram = struct.pack("!HHHH", 9, port, 8 + 5, 0) + b"spoof"
    if family == socket.AF_INET6:
        words = sender + receiver + struct.pack("!II", len(datagram), 17) + datagram + b"\0"
        total = sum(struct.unpack(f"!{len(words) // 2}H", words))
        checksum = 0xFFFF - (total % 0xFFFF or 0xFFFF) or 0xFFFF
        datagram = datagram[:6] + checksum.to_bytes(2, "big") + datagram[8:]
        packet = struct.pack("!IHBB", 6 << 28, len(datagram), 17, 64) + sender + receiver + datagram
    else:
        # The kernel fills in what is zero.
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, 17, 0) + sender + receiver + datagram
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as anybody:
        scope_id = socket.if_nametoindex(scope) if scope else 0
        place = (address.partition("%")[0], 0, 0, scope_id) if family == socket.AF_INET6 else (address, 0)
        anybody.sendto(packet, place)


if __name__ == "__main__":
    if sys.argv[1] == "as":
        send_as(*sys.argv[2:])
    else:
        print(json.dumps(attempt_all(sys.argv[2:], float(sys.argv[1]))))
