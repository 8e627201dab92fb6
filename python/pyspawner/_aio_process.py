"""A child, as a task of an event loop holds it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING

from pyspawner._aio_pipes import PipeReader, PipeWriter
from pyspawner._aio_waiting import insist
from pyspawner._process import MIB, Completed, checked_conversation, time_out

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from pyspawner import _process

# How long a child may take to die of SIGKILL, in seconds.
_DEATH_PATIENCE = 10

# How long to leave a child alone that has ended and cannot be reaped yet, in seconds.
_PAUSE = 0.01


class ChildProcess:
    """:class:`pyspawner.ChildProcess` for asyncio: made by :meth:`Client.spawn_child`, and of its loop.

    Its pipes are asyncio's streams, with their flow control and their limit of 64 KiB a line: ``async for line in child.stdout`` works.
    It is reaped as soon as it has ended. As an asynchronous context manager it kills the child at the end of the block.

    A child that still runs when its loop ends is killed then, after the loop's last task; ``asyncio.run`` waits for it.
    """

    stdin: asyncio.StreamWriter
    """To the child's standard input."""

    stdout: asyncio.StreamReader
    """From the child's standard output. Its end comes with the child's at the latest."""

    stderr: asyncio.StreamReader
    """The same of standard error."""

    def __init__(self, child: _process.ChildProcess) -> None:
        loop = asyncio.get_running_loop()
        self._child = child
        self._loop = loop
        self._owner = os.getpid()
        # Its returncode; ``None``: it was reaped by other means.
        self._ended: asyncio.Future[int | None] = loop.create_future()
        self._writer = PipeWriter(child.stdin, loop)
        self._readers = PipeReader(child.stdout, loop), PipeReader(child.stderr, loop)
        self._outputs: tuple[_Output, _Output] | None = None
        self._completed: Completed | None = None
        self._guard = self._end_with_the_loop()
        self._is_ended_by_the_loop = False
        self.stdin = self._writer.stream
        self.stdout, self.stderr = (reader.stream for reader in self._readers)
        try:
            loop.add_reader(child.pidfd, self._on_end)
            for reader in self._readers:
                reader.resume_reading()
            # Up to its yield, where it awaits nothing.
            with contextlib.suppress(StopIteration):
                self._guard.__anext__().send(None)
        except BaseException:
            self._ended.cancel()
            self._abandon()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: pid {self.pid}, returncode {self.returncode}>"

    @property
    def pid(self) -> int:
        """As :attr:`pyspawner.ChildProcess.pid`."""
        return self._child.pid

    @property
    def layers(self) -> Mapping[str, str]:
        """As :attr:`pyspawner.ChildProcess.layers`."""
        return self._child.layers

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus a signal's number; ``None`` until the loop has seen that the child has ended."""
        return self._child.returncode

    def kill(self) -> None:
        """As :meth:`pyspawner.ChildProcess.kill`.

        :raises ProcessLookupError: the child has been reaped.
        """
        self._child.kill()

    def send_signal(self, signal: int) -> None:
        """As :meth:`pyspawner.ChildProcess.send_signal`.

        :raises ProcessLookupError: the child has been reaped.
        :raises ValueError: it is none of the standard signals.
        """
        self._child.send_signal(signal)

    def terminate(self) -> None:
        """As :meth:`pyspawner.ChildProcess.terminate`.

        :raises ProcessLookupError: the child has been reaped.
        """
        self._child.terminate()

    async def wait(self) -> int:
        """Wait for the child's end. Return :attr:`returncode`. Cancelled, it changes nothing.

        Have the pipes read meanwhile: a child that writes much waits for that.

        :raises ChildProcessError: the child was reaped by other means than this object.
        """
        await asyncio.wait([self._ended])
        return self._known_returncode()

    async def communicate(
        self,
        input: bytes | bytearray | memoryview | None = None,  # noqa: A002 (subprocess's name for it)
        *,
        timeout: float | None = None,
        max_output: int = MIB,
    ) -> Completed:
        """Feed the child, read all that it writes until it has ended, reap it, and close its pipes.

        As :meth:`pyspawner.ChildProcess.communicate`, with the same promises. The streams end at once for other tasks that read them; what
        they have read before is not in the result.

        A second call, of another task too, waits for the child as well and returns the same; its timeout ends the child too.

        :param input: for standard input, after what was written to ``stdin`` before; the child then reads its end.
        :param timeout: in seconds from now. The child is killed then, and what it has written so far is returned.
        :param max_output: how many bytes of each of standard output and error to keep. The rest is read, counted and dropped.
        :raises ValueError: ``input`` is given and ``stdin`` is closed, or this is not the first call; a negative ``max_output``.
        :raises TypeError: ``input`` is a string: encode it.
        :raises ChildProcessError: the child was reaped by other means than this object.

        Those two of wrong arguments change nothing. When it is cancelled, the child is killed and reaped, and its pipes are closed; what it
        has written until then, another call returns. A task that is cancelled before its first step has called nothing yet.
        """
        given, seconds, max_output = checked_conversation(input, timeout, max_output)
        if given and self._outputs is not None:
            raise ValueError("communicate() was called before, and input comes too late")
        if given and self._writer.has_eof:
            raise ValueError("input is given, and stdin is closed")
        try:
            if self._outputs is None:
                self._outputs = await self._talk(given, max_output)
            await self._wait_or_kill(seconds)
        except BaseException:
            self._kill()
            await self._wait_for_death()
            raise
        self._known_returncode()
        if self._completed is None:
            self._completed = self._complete(*self._outputs)
        return self._completed

    async def _talk(self, given: bytes, max_output: int) -> tuple[_Output, _Output]:
        """Have all said, and kept what comes. The loop does it: this waits for nothing."""
        outputs = _Output(max_output), _Output(max_output)
        for reader, output in zip(self._readers, outputs, strict=True):
            await reader.divert(output.add)
        self._writer.write(given)
        self._writer.close()
        return outputs

    async def _wait_or_kill(self, timeout: float | None) -> None:
        # A time that the loop's clock may not hold never comes.
        patience = timeout if timeout is not None and timeout <= threading.TIMEOUT_MAX else None
        await asyncio.wait([self._ended], timeout=patience)
        if not self._ended.done():
            time_out(self._child)
            self._kill()
            await asyncio.wait([self._ended])

    def _known_returncode(self) -> int:
        returncode = self._ended.result()
        if returncode is None:
            raise ChildProcessError(errno.ECHILD, "the child was reaped by other means")
        return returncode

    def _complete(self, stdout: _Output, stderr: _Output) -> Completed:
        # Its pipes are closed: this is about its end alone.
        return dataclasses.replace(
            self._child.communicate(),
            stdout=stdout.take(),
            stderr=stderr.take(),
            stdout_dropped=stdout.dropped,
            stderr_dropped=stderr.dropped,
        )

    def _kill(self) -> None:
        # One that has been reaped is as good as killed.
        with contextlib.suppress(ProcessLookupError):
            self.kill()

    async def _wait_for_death(self) -> None:
        # The task of a loop that was closed can await nothing any more.
        if not self._loop.is_closed():
            await insist(self._ended, _DEATH_PATIENCE)

    def _on_end(self) -> None:
        """Reap the child and close its pipes: its pidfd is readable."""
        self._loop.remove_reader(self._child.pidfd)
        try:
            returncode = self._child.poll()
        except ChildProcessError:
            self._ended.set_result(None)
        else:
            if returncode is None:
                # Whoever traces it has to let it go first.
                self._loop.call_later(_PAUSE, self._on_end)
                return
            self._ended.set_result(returncode)
        for reader in self._readers:
            reader.read_the_rest()
        self._writer.end()
        if not self._is_ended_by_the_loop:
            with contextlib.suppress(StopIteration):
                self._guard.aclose().send(None)

    async def _end_with_the_loop(self) -> AsyncGenerator[None, None]:
        """Kill the child when the loop closes its asynchronous generators, which it does after its last task."""
        try:
            yield
        finally:
            if not self._ended.done():
                self._is_ended_by_the_loop = True
                self._kill()
                await self._wait_for_death()

    def _abandon(self) -> None:
        """Kill, reap and close without the loop."""
        if not self._loop.is_closed():
            for descriptor in (self._child.pidfd, self._child.stdout.fileno(), self._child.stderr.fileno()):
                self._loop.remove_reader(descriptor)
        # Some loops change that of what they watch, and then nobody can wait for it.
        os.set_blocking(self._child.pidfd, True)
        with self._child:
            pass

    async def __aenter__(self) -> ChildProcess:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kill()
        if self._loop.is_closed():
            return
        try:
            await asyncio.wait([self._ended])
        except asyncio.CancelledError:
            await self._wait_for_death()
            raise

    def __del__(self) -> None:
        # A loop holds its running children: it was closed, and has not closed its asynchronous generators before.
        ended = getattr(self, "_ended", None)
        if ended is not None and not ended.done() and self._owner == os.getpid() and not sys.is_finalizing():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self._abandon()


class _Output:
    """What a child writes on one pipe: its beginning, and how much came after it."""

    def __init__(self, most: int) -> None:
        self.dropped = 0
        self._kept = bytearray()
        self._most = most

    def add(self, data: bytes) -> None:
        room = self._most - len(self._kept)
        self._kept += data[:room]
        self.dropped += max(len(data) - room, 0)

    def take(self) -> bytes:
        kept, self._kept = bytes(self._kept), bytearray()
        return kept
