"""What answers in a place of ``internet.py``: HTTP, echo and DNS at all of its addresses, and a memory of who has called.

``internet.py`` runs it in the place's namespace, as ``internet_server.py PLACE INTERFACE DESCRIPTOR``, and asks it over the
descriptor. It imports nothing of the project, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

HTTP_PORTS = (22, 25, 80, 443, 8080)
DNS_PORT = 53
ECHO_PORT = 9999

NAMES = {
    "example.org": ("93.184.215.14", "2606:2800:21f:cb07::14"),
    "internal.example": ("10.0.0.5", "fd00:5::5"),
    "metadata.example": ("169.254.169.254", "64:ff9b::a9fe:a9fe"),
    "host.example": ("81.2.69.10", "2a02:6b8:0:1::10"),
    "both.example": ("93.184.215.14", "10.0.0.5", "2606:2800:21f:cb07::14", "fd00:5::5"),
}
"""What every DNS server of the world says."""

_A, _AAAA, _NO_SUCH_NAME = 1, 28, 3
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_ECHO_REQUEST = {1: 8, 58: 128}
# What IPv6 nodes say to their neighbours all the time: multicast listeners, routers, neighbours.
_NEIGHBOURLY = {(58, kind) for kind in (130, 131, 132, 133, 134, 135, 136, 143)}
_ETH_P_ALL = 3
_FOR_OTHERS = {3, 4}  # PACKET_OTHERHOST, PACKET_OUTGOING
_SYN = 2
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_IP_MULTICAST_ALL, _SO_RCVBUFFORCE = 49, 33
_CONTROL_SPACE = socket.CMSG_SPACE(64)


def plain(address: str) -> str:
    """The address as people write it: IPv4 is not mapped to IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


# Answers.


def answer_dns(query: bytes) -> bytes:
    """The answer to one question; what is no question comes back as it is."""
    try:
        identity, flags, questions = struct.unpack_from("!HHH", query)
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        kind, _ = struct.unpack_from("!HH", query, at + 1)
    except (struct.error, IndexError, UnicodeDecodeError):
        return query
    if flags & 0x8000 or questions != 1:
        return query
    addresses = NAMES.get(".".join(labels).lower())
    records = [
        struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(packed)) + packed
        for packed in (ipaddress.ip_address(address).packed for address in addresses or ())
        if {_A: 4, _AAAA: 16}.get(kind) == len(packed)
    ]
    code = 0 if addresses else _NO_SUCH_NAME
    header = struct.pack("!HHHHHH", identity, 0x8180 | code, 1, len(records), 0, 0)
    return header + query[12 : at + 5] + b"".join(records)


def serve_http(connection: socket.socket, about: dict[str, object]) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        if not (more := connection.recv(65536)):
            return
        request += more
    body = json.dumps(about).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)


def serve_dns(connection: socket.socket, about: dict[str, object]) -> None:
    with connection.makefile("rwb") as stream:
        while size := stream.read(2):
            answer = answer_dns(stream.read(int.from_bytes(size, "big")))
            stream.write(len(answer).to_bytes(2, "big") + answer)
            stream.flush()


def serve_echo(connection: socket.socket, about: dict[str, object]) -> None:
    while some := connection.recv(65536):
        connection.sendall(some)


class Server:
    def __init__(self, place: str, interface: str, asker: Connection) -> None:
        self.place = place
        self.calls: list[tuple[str, int, str, str]] = []
        self.packets: set[tuple[str, int, str, str]] = set()
        self.connections: set[bytes] = set()
        self.selector = selectors.DefaultSelector()
        self.asker = asker
        for port in HTTP_PORTS:
            self.listen(port, serve_http)
        self.listen(DNS_PORT, serve_dns)
        self.listen(ECHO_PORT, serve_echo)
        self.receive(DNS_PORT, answer_dns)
        self.receive(ECHO_PORT, lambda datagram: datagram)
        self.sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self.sniffer.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self.sniffer.bind((interface, _ETH_P_ALL))
        self.register(self.sniffer, self.sniff)

    def register(self, source: socket.socket, handle: Callable[[], None]) -> None:
        source.setblocking(False)
        self.selector.register(source, selectors.EVENT_READ, handle)

    def listen(self, port: int, serve: Callable[[socket.socket, dict[str, object]], None]) -> None:
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
        )

        def accept() -> None:
            connection, peer = listener.accept()
            connection.setblocking(True)
            caller, at = plain(peer[0]), plain(connection.getsockname()[0])
            self.calls.append(("tcp", port, at, caller))
            about: dict[str, object] = {"place": self.place, "port": port, "at": at, "caller": caller}
            threading.Thread(target=converse, args=(connection, about), daemon=True).start()

        def converse(connection: socket.socket, about: dict[str, object]) -> None:
            # People hang up.
            with connection, contextlib.suppress(OSError):
                serve(connection, about)

        self.register(listener, accept)

    def receive(self, port: int, answer: Callable[[bytes], bytes]) -> None:
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        # As a socket of IPv4 does by itself.
        receiver.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 1)
        receiver.bind(("::", port))

        def reply() -> None:
            datagram, control, _, peer = receiver.recvmsg(65536, _CONTROL_SPACE)
            at = next(data[:16] for _, kind, data in control if kind == socket.IPV6_PKTINFO)
            self.calls.append(("udp", port, plain(socket.inet_ntop(socket.AF_INET6, at)), plain(peer[0])))
            # From the address that was called; from any other if that one is for many.
            try:
                receiver.sendmsg([answer(datagram)], control, 0, peer)
            except OSError:
                with contextlib.suppress(OSError):
                    receiver.sendto(answer(datagram), peer)

        self.register(receiver, reply)

    def sniff(self) -> None:
        packet, (_, _, kind, *_) = self.sniffer.recvfrom(128)
        if kind not in _FOR_OTHERS:
            self.remember(packet)

    def remember(self, packet: bytes) -> None:
        if packet[:1] and packet[0] >> 4 == 4:
            number, caller, at = packet[9], packet[12:16], packet[16:20]
            rest = packet[(packet[0] & 15) * 4 :]
        elif packet[:1] and packet[0] >> 4 == 6:
            number, caller, at, rest = packet[6], packet[8:24], packet[24:40], packet[40:]
            if number == 0 and len(rest) > 8:  # options before it
                number, rest = rest[0], rest[(rest[1] + 1) * 8 :]
        else:
            return
        protocol, port = _PROTOCOLS.get(number, f"protocol {number}"), 0
        if protocol == "icmp" and rest:
            if (number, rest[0]) in _NEIGHBOURLY:
                return
            if rest[0] != _ECHO_REQUEST[number]:
                protocol = f"icmp type {rest[0]}"
        elif protocol in ("tcp", "udp") and len(rest) >= 4:
            (port,) = struct.unpack_from("!H", rest, 2)
        if protocol == "tcp" and len(rest) > 13:
            # How a connection ends may take longer than the test that made it.
            connection = caller + at + rest[:4]
            if rest[13] & _SYN:
                self.connections.add(connection)
            elif connection in self.connections:
                return
        self.packets.add((protocol, port, str(ipaddress.ip_address(at)), str(ipaddress.ip_address(caller))))

    def handle(self, timeout: float | None) -> bool:
        """Handle what has come; whether there was anything but a question of the test."""
        ready = [key.data for key, _ in self.selector.select(timeout) if key.fileobj is not self.asker]
        for handle in ready:
            with contextlib.suppress(OSError):
                handle()
        return bool(ready)

    def run(self) -> None:
        self.selector.register(self.asker, selectors.EVENT_READ)
        self.asker.send("ready")
        while True:
            self.handle(None)
            if not self.asker.poll():
                continue
            try:
                question = self.asker.recv()
            except EOFError:
                return
            # What came before the question belongs to the answer.
            while self.handle(0):
                pass
            _, lost = struct.unpack("II", self.sniffer.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
            if question == "seen":
                self.asker.send((self.calls, self.packets, lost))
            else:
                self.calls, self.packets = [], set()
                self.asker.send(None)


if __name__ == "__main__":
    Server(sys.argv[1], sys.argv[2], Connection(int(sys.argv[3]))).run()
