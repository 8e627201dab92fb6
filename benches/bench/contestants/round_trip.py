"""The yardstick of a warm spawn: a process that is already there gets a message with four descriptors, and answers with a byte.

It is one process for all messages, has imported next to nothing, and shares no more with a sandboxed child than the
kernel's work: to send descriptors beside a message, to wake a process, to be woken by its pipe.
"""

from __future__ import annotations

import os
import socket

from . import YARDSTICK_WORKLOAD, Contestant, Running

_DESCRIPTORS = 4
_ANSWER = b"hi\n"


class RoundTrip(Contestant):
    """A process that waits in recvmsg."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            try:
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._pipe = (-1, -1)

    def prepare(self) -> None:
        """Make the pipe: that is the spawner's work."""
        self._pipe = os.pipe()

    def spawn(self, workload: str) -> Running:
        assert workload == YARDSTICK_WORKLOAD
        reader, writer = self._pipe
        socket.send_fds(self._socket, [b"x"], [writer] * _DESCRIPTORS)
        os.close(writer)

        def close() -> bytes:
            os.close(reader)
            return b""

        return Running(reader, self._pid, lambda: 0, close)

    def close(self) -> None:
        self._socket.close()
        os.waitpid(self._pid, 0)


def _serve(requests: socket.socket) -> None:
    while True:
        _, descriptors, _, _ = socket.recv_fds(requests, 1, _DESCRIPTORS)
        if not descriptors:
            return
        os.write(descriptors[0], _ANSWER)
        for descriptor in descriptors:
            os.close(descriptor)


start = RoundTrip
