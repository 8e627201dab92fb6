"""A server that speaks when it is told to, and not when it is asked."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

from netns import Namespace

PORT = 7777

_SERVE = f"""
import socket, sys, threading
receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
receiver.bind(("::", {PORT}))
heard = []

def hear():
    while True:
        datagram, control, _, peer = receiver.recvmsg(100, 1000)
        heard.append((control, peer))
        receiver.sendmsg([b"at once"], control, 0, peer)

threading.Thread(target=hear, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    for control, peer in heard:
        receiver.sendmsg([b"late"], control, 0, peer)
    print(len(heard), flush=True)
"""


@contextlib.contextmanager
def late_server(namespace: Namespace) -> Iterator[Callable[[], int]]:
    """Answer datagrams at all addresses, and once more all that have come, whenever the function is called that this yields."""
    argv = namespace.command(sys.executable, "-c", _SERVE)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        stdin, stdout = server.stdin, server.stdout
        assert stdin is not None
        assert stdout is not None
        assert stdout.readline() == "ready\n"

        def answer_late() -> int:
            stdin.write("\n")
            stdin.flush()
            return int(stdout.readline())

        try:
            yield answer_late
        finally:
            server.kill()
