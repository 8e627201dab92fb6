"""A child's pipes as asyncio's streams. To make one awaits nothing: nobody can be cancelled half-way."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import sys
import termios
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

# What a pipe holds, mostly.
_CHUNK = 64 * 1024


class PipeReader(asyncio.ReadTransport):
    """Feeds a stream from a pipe, as fast as the stream is read."""

    def __init__(self, pipe: BinaryIO, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"pipe": pipe})
        os.set_blocking(pipe.fileno(), False)
        self._pipe = pipe
        self._loop = loop
        self.stream = asyncio.StreamReader(loop=loop)
        self.stream.set_transport(self)
        self._take: Callable[[bytes], object] = self.stream.feed_data

    async def divert(self, take: Callable[[bytes], object]) -> None:
        """Give ``take`` what the stream still has and all that comes from now on. The stream ends. This waits for nothing."""
        self._take = take
        self.stream.feed_eof()
        # Where the stream has paused the reading, this resumes it.
        take(await self.stream.read())

    def resume_reading(self) -> None:
        if not self._pipe.closed:
            self._loop.add_reader(self._pipe.fileno(), self._read, _CHUNK)

    def pause_reading(self) -> None:
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())

    def is_closing(self) -> bool:
        return self._pipe.closed

    def close(self) -> None:
        if not self._pipe.closed:
            # Before its number can be another one's.
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            self.stream.feed_eof()

    def read_the_rest(self) -> None:
        """Read what the child has written before its end, and close. What comes after that is somebody else's."""
        if self._pipe.closed:
            return
        left = int.from_bytes(fcntl.ioctl(self._pipe.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
        while left > 0 and (length := self._read(min(left, _CHUNK))):
            left -= length
        self.close()

    def _read(self, most: int) -> int:
        """Read at most ``most`` bytes. Return how many; none at the end of the file, or when there is nothing now."""
        try:
            data = os.read(self._pipe.fileno(), most)
        except BlockingIOError:
            return 0
        if data:
            self._take(data)
        else:
            self.close()
        return len(data)


class PipeWriter(asyncio.WriteTransport):
    """Writes to a pipe what its stream is given, and keeps what does not fit."""

    def __init__(self, pipe: BinaryIO, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"pipe": pipe})
        os.set_blocking(pipe.fileno(), False)
        self._pipe = pipe
        self._loop = loop
        self._unsent = bytearray()
        self._is_waiting = False
        self._is_paused = False
        self.has_eof = False
        """The caller has closed it; what was written before is still sent."""
        # It only knows of the other direction's flow control and end: there is no reader.
        self._protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)
        self._protocol.connection_made(self)
        self.set_write_buffer_limits()
        self.stream = asyncio.StreamWriter(self, self._protocol, None, loop)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _CHUNK if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._control_flow()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        # As with asyncio's own, it is drain() that tells of a pipe that is closed.
        if self.is_closing():
            return
        is_idle = not self._unsent
        self._unsent += data
        if is_idle and self._unsent:
            self._send()
        else:
            self._control_flow()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True
        if not self._unsent:
            self._lose(None)

    def close(self) -> None:
        self.write_eof()

    def abort(self) -> None:
        self.has_eof = True
        self._lose(None)

    def is_closing(self) -> bool:
        return self.has_eof or self._pipe.closed

    def end(self) -> None:
        """Close the pipe of a child that has ended."""
        self._lose(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) if self._unsent else None)

    def _send(self) -> None:
        try:
            sent = _write_without_sigpipe(self._pipe.fileno(), self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            # Its frames hold what holds it.
            self._lose(error.with_traceback(None))
            return
        del self._unsent[:sent]
        if self._unsent and not self._is_waiting:
            self._loop.add_writer(self._pipe.fileno(), self._send)
        elif self._is_waiting and not self._unsent:
            self._loop.remove_writer(self._pipe.fileno())
        self._is_waiting = bool(self._unsent)
        self._control_flow()
        if self.has_eof and not self._unsent:
            self._lose(None)

    def _control_flow(self) -> None:
        if not self._is_paused and len(self._unsent) > self._high:
            self._is_paused = True
            self._protocol.pause_writing()
        elif self._is_paused and len(self._unsent) <= self._low:
            self._is_paused = False
            self._protocol.resume_writing()

    def _lose(self, error: OSError | None) -> None:
        if self._pipe.closed:
            return
        # Before its number can be another one's.
        self._loop.remove_writer(self._pipe.fileno())
        self._unsent.clear()
        self._pipe.close()
        self._loop.call_soon(self._protocol.connection_lost, error)


def _write_without_sigpipe(descriptor: int, data: bytearray) -> int:
    """Write, where a child that has closed its end cannot end a caller that lets SIGPIPE do that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    was_pending = signal.SIGPIPE in before and signal.SIGPIPE in signal.sigpending()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        return os.write(descriptor, data)
    except BrokenPipeError:
        if not was_pending:
            signal.sigtimedwait({signal.SIGPIPE}, 0)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
