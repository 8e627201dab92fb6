"""A child, as its caller holds it, and what became of it."""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import operator
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from pyspawner._errors import ChildFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from pyspawner import _native

MIB = 1024 * 1024


class Cause(enum.Enum):
    """Why a child ended: what the kernel says of it, and never what it says itself."""

    EXITED = "exited"
    """It came to its end, whatever its exit code."""

    EXCEPTION = "exception"
    """The same, by an exception that nobody has caught. This alone is the child's own word, as the exception is."""

    SIGNALED = "signaled"
    """A signal ended it: a crash, or one that it sent itself, or somebody else. ``returncode`` says which."""

    TIMED_OUT = "timed_out"
    """:meth:`ChildProcess.communicate` killed it at the timeout."""

    KILLED = "killed"
    """The caller's own signal ended it: :meth:`ChildProcess.kill` and its like, or the end of a ``with`` block."""

    CPU_TIME = "cpu_time"
    """It has used its ``cpu_seconds`` of :class:`Limits`."""

    OUT_OF_MEMORY = "out_of_memory"
    """It has used the ``memory_bytes`` of :class:`Limits`. Only of a child with a cgroup: others get ``MemoryError``."""

    BLOCKED_SYSCALL = "blocked_syscall"
    """It has made a system call that the sandbox blocks: ``blocked_syscall``. Its standard error says where that was. Without namespaces it
    is ``SIGNALED``: such a child can send itself this signal."""


@dataclass(frozen=True)
class Usage:
    """What a child has used.

    With a cgroup, it and all that it has started. Without, it and those of its descendants that it has waited for, see getrusage(2): a
    hostile child can hide what they use, so that is for information, and no bill.
    """

    wall_seconds: float
    """From the spawn to the moment when the child was reaped."""

    user_seconds: float
    """CPU time in user mode."""

    system_seconds: float
    """CPU time in the kernel."""

    peak_memory_bytes: int
    """The most memory at one time. Without a cgroup, or before Linux 5.19: of the largest of its processes, and what it shares with the
    zygote counts in full."""

    peak_processes: int | None = None
    """The most processes and threads at one time. ``None`` without a cgroup, or where the kernel does not say (Linux 6.12 does)."""

    refused_processes: int | None = None
    """How many processes and threads could not be made because of the limit. ``None`` without a cgroup."""


@dataclass(frozen=True)
class Completed:
    """What became of a child."""

    returncode: int
    """Its exit code; minus a signal's number if that ended it, as in ``subprocess``."""

    cause: Cause
    """Why it ended."""

    stdout: bytes
    """The beginning of what it wrote on standard output: at most ``max_output`` bytes."""

    stderr: bytes
    """The same of standard error."""

    stdout_dropped: int
    """How many bytes came after it."""

    stderr_dropped: int
    """The same of standard error."""

    usage: Usage

    blocked_syscall: str | None = None
    """The name of the system call, if :attr:`Cause.BLOCKED_SYSCALL` is the cause and no other program had replaced the child's (execve(2)).
    That there was one is certain, which one is the word of a handler in the child: a hostile child can have it name another one, as it
    could by making that one."""

    def check(self) -> Completed:
        """Return this object if the child ended with exit code 0.

        :raises ChildFailed: it did not. The message has the end of its standard error.
        """
        if self.returncode:
            raise ChildFailed(self)
        return self


class _Stdin(io.FileIO):
    """Standard input whose unsent bytes can be had: what lies in the buffer before it when the caller goes on with ``communicate``."""

    unsent: bytearray | None = None

    def write(self, data: Any, /) -> int:  # noqa: ANN401 (whatever has a buffer)
        if self.unsent is None:
            return super().write(data)
        self.unsent += data
        return len(data)


def open_stdin(descriptor: int) -> BinaryIO:
    """Open the caller's end of a child's standard input."""
    return io.BufferedWriter(_Stdin(descriptor, "wb"))


def open_output(descriptor: int) -> BinaryIO:
    """Open the caller's end of one of a child's outputs. Of what ``open()`` does, this leaves out to ask whether it is a terminal."""
    return io.BufferedReader(io.FileIO(descriptor, "rb"))


@dataclass
class _Outcome:
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Taken by who tells of the end.
    told: threading.Lock = field(default_factory=threading.Lock)
    owner: int | None = None
    completed: Completed | None = None
    is_lost: bool = False


@dataclass(frozen=True, eq=False)
class ChildProcess:
    """A running child.

    :meth:`communicate` does all that is mostly wanted. Otherwise read its pipes to their end, then :meth:`wait` for it: until then it stays
    a zombie. As a context manager it kills and reaps the child at the end of the block. It has a ``fileno()``, and so works with
    ``selectors``: readable when the child has ended.

    Dropping the object leaves the child running; its pipes close.
    """

    pid: int
    """The child's pid as the caller sees it. The child sees itself as 1."""

    stdin: BinaryIO
    """Pipe to the child's standard input."""

    stdout: BinaryIO
    """Pipe from the child's standard output. Iterate over it to get lines as they come."""

    stderr: BinaryIO
    """Pipe from the child's standard error."""

    _handle: _native.Child = field(repr=False)
    _on_end: Callable[[int, Cause, Usage, str | None], None] = field(repr=False)
    _outcome: _Outcome = field(repr=False, default_factory=_Outcome)

    @functools.cached_property
    def layers(self) -> Mapping[str, str]:
        """The layers of the sandbox that are on, in the order in which they were applied, each with what it does here."""
        return MappingProxyType(dict(self._handle.layers))

    @property
    def pidfd(self) -> int:
        """A descriptor that is readable when the child has ended: pidfd_open(2). It is this object's; do not close it."""
        return self._handle.pidfd

    def fileno(self) -> int:
        """Return :attr:`pidfd`, for ``selectors``."""
        return self.pidfd

    @property
    def returncode(self) -> int | None:
        """As in ``subprocess``: ``None`` until a method of this object has found that the child has ended; negative for a signal."""
        ended = self._handle.ended
        return None if ended is None else os.waitstatus_to_exitcode(ended.status)

    def poll(self) -> int | None:
        """Look whether the child has ended, and reap it if so. Return :attr:`returncode`.

        :raises ChildProcessError: the child was reaped by other means than this object, ``os.wait()`` for example.
        """
        self._handle.poll()
        self._tell_end()
        return self.returncode

    def kill(self) -> None:
        """End the child with SIGKILL, and with it, if it has namespaces, everything it started.

        It goes through a pidfd: a process that has got the same pid since is never hit. See pidfd_send_signal(2).

        :raises ProcessLookupError: the child has been reaped.
        """
        self._handle.kill()

    def send_signal(self, signal: int) -> None:
        """Send the child a signal, in the same way. See signal(7).

        The child is pid 1 of its own namespace: a signal that it handles reaches it, and of those that it does not, only SIGKILL and
        SIGSTOP. See pid_namespaces(7).

        :raises ProcessLookupError: the child has been reaped.
        :raises ValueError: it is none of the standard signals.
        """
        self._handle.send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM, which ends only a child that handles it: see :meth:`send_signal`. :meth:`kill` ends any."""
        self.send_signal(signal.SIGTERM)

    def wait(self, options: int = 0) -> tuple[int, int]:
        """Wait for the child's end and reap it, as ``os.waitpid(pid, options)`` does.

        :param options: ``os.WNOHANG`` and its siblings, or 0 to wait.
        :return: pid and status, for ``os.waitstatus_to_exitcode``; ``(0, 0)`` when ``WNOHANG`` finds the child running.
        :raises ChildProcessError: the child has been reaped already.
        """
        found = self._handle.wait(options)
        self._tell_end()
        return found

    def communicate(
        self,
        input: bytes | bytearray | memoryview | None = None,  # noqa: A002 (subprocess's name for it)
        *,
        timeout: float | None = None,
        max_output: int = MIB,
    ) -> Completed:
        """Feed the child, read all that it writes until it has ended, reap it, and close its pipes.

        However much the child writes, however long it takes, and whatever it does with its pipes: this returns, with a timeout at the
        latest then, and keeps no more than ``max_output`` bytes of each stream. The GIL is released. No other thread may use the pipes
        meanwhile: who waits in them makes this wait too.

        A second call, of another thread too, waits for the first one and returns the same; its timeout ends the child too. After
        :meth:`wait` or :meth:`poll` it returns what is left in the pipes.

        :param input: for standard input, after what was written to ``stdin`` before; the child then reads its end.
        :param timeout: in seconds from now. The child is killed then, and what it has written so far is returned.
        :param max_output: how many bytes of each of standard output and error to keep. The rest is read, counted and dropped.
        :raises ValueError: ``input`` is given and ``stdin`` is closed, or this is not the first call; a negative ``max_output``; an
            earlier call ended with an exception, and the output is lost.
        :raises TypeError: ``input`` is a string: encode it.
        :raises ChildProcessError: the child was reaped by other means than this object.

        Those two of wrong arguments change nothing. After any other exception, ``KeyboardInterrupt`` for one, the child is killed and
        reaped, and its pipes are closed.
        """
        given, seconds, max_output = checked_conversation(input, timeout, max_output)
        outcome = self._outcome
        if outcome.owner == threading.get_ident():
            raise RuntimeError("communicate() was called by a signal handler that has interrupted it")
        self._await_turn(seconds)
        try:
            outcome.owner = threading.get_ident()
            if outcome.is_lost:
                raise ValueError("an earlier communicate() ended with an exception: the output is lost")
            if outcome.completed is None:
                outcome.completed = self._communicate(given, seconds, max_output)
            elif given:
                raise ValueError(
                    "the child has ended: communicate() was called before, and input comes too late"
                )
            completed = outcome.completed
        finally:
            outcome.owner = None
            outcome.lock.release()
        self._tell_end()
        return completed

    def _await_turn(self, timeout: float | None) -> None:
        """Wait for another thread's call; the timeout of this one ends the child too."""
        # A lock waits for a year at most, or for ever.
        patience = timeout if timeout is not None and timeout <= threading.TIMEOUT_MAX else -1
        if not self._outcome.lock.acquire(timeout=patience):
            with contextlib.suppress(ProcessLookupError):
                self.kill()
            self._outcome.lock.acquire()

    def _communicate(self, given: bytes, timeout: float | None, max_output: int) -> Completed:
        if given and self.stdin.closed:
            raise ValueError("input is given, and stdin is closed")
        try:
            data = _take_unsent(self.stdin) + given
            already_read = _take_buffered(self.stdout), _take_buffered(self.stderr)
            with contextlib.ExitStack() as duplicates:
                stdin, stdout, stderr = (
                    _duplicate(pipe, duplicates) for pipe in (self.stdin, self.stdout, self.stderr)
                )
                self._close_pipes()
                duplicates.pop_all()
            completed = self._handle.communicate(
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                already_read=already_read,
                data=data,
                timeout=timeout,
                max_output=min(max_output, sys.maxsize),
            )
        except BaseException:
            self._outcome.is_lost = True
            self._end()
            raise
        return Completed(
            returncode=os.waitstatus_to_exitcode(completed.ended.status),
            cause=Cause(completed.ended.cause),
            stdout=completed.stdout,
            stderr=completed.stderr,
            stdout_dropped=completed.stdout_dropped,
            stderr_dropped=completed.stderr_dropped,
            usage=_usage(completed.ended),
            blocked_syscall=completed.ended.blocked_syscall,
        )

    def _tell_end(self) -> None:
        """Report the end, if it is known, once."""
        ended = self._handle.ended
        if ended is not None and self._outcome.told.acquire(blocking=False):
            returncode, cause = os.waitstatus_to_exitcode(ended.status), Cause(ended.cause)
            self._on_end(returncode, cause, _usage(ended), ended.blocked_syscall)

    def _end(self) -> None:
        """Kill, reap and close, whatever has been done of it already."""
        try:
            with contextlib.suppress(ProcessLookupError):
                self.kill()
            with contextlib.suppress(ChildProcessError):
                if self.returncode is None:
                    self.wait()
        finally:
            # Nobody reads it any more.
            _take_unsent(self.stdin)
            self._close_pipes()

    def _close_pipes(self) -> None:
        """Close them, when standard input's buffer is empty."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()


def _usage(ended: _native.Ended) -> Usage:
    return Usage(
        wall_seconds=ended.wall_seconds,
        user_seconds=ended.user_seconds,
        system_seconds=ended.system_seconds,
        peak_memory_bytes=ended.peak_memory_bytes,
        peak_processes=ended.peak_processes,
        refused_processes=ended.refused_processes,
    )


def time_out(child: ChildProcess) -> None:
    """Let it be a timeout if the caller kills the child from now on."""
    child._handle.time_out()  # pyright: ignore[reportPrivateUsage] (this module's)


def to_seconds(timeout: float | None) -> float | None:
    """Return a timeout as a number that is not negative."""
    # Arithmetic, because float() would take a string.
    return None if timeout is None else max(timeout + 0.0, 0.0)


def checked_conversation(
    input: bytes | bytearray | memoryview | None,  # noqa: A002 (as communicate has it)
    timeout: float | None,
    max_output: int,
) -> tuple[bytes, float | None, int]:
    """Return the arguments of ``communicate`` in one form each, or raise what it promises for wrong ones."""
    if isinstance(input, str):
        raise TypeError("input must be bytes, not a string: encode it")
    seconds = to_seconds(timeout)
    max_output = operator.index(max_output)
    if max_output < 0:
        raise ValueError(f"max_output must not be negative: {max_output}")
    given = b"" if input is None else memoryview(input).tobytes()
    return given, seconds, max_output


def _take_unsent(stdin: BinaryIO) -> bytes:
    """Empty the buffer of what the caller has written and the child has not been sent."""
    if stdin.closed:
        return b""
    raw: _Stdin = stdin.raw  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    raw.unsent = bytearray()
    stdin.flush()
    return bytes(raw.unsent)


def _take_buffered(reader: BinaryIO) -> bytes:
    """Return what the caller's own reads have left in the buffer."""
    if reader.closed:
        return b""
    # So that it only looks.
    os.set_blocking(reader.fileno(), False)
    return reader.peek()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]


def _duplicate(pipe: BinaryIO, duplicates: contextlib.ExitStack) -> int | None:
    if pipe.closed:
        return None
    descriptor = os.dup(pipe.fileno())
    duplicates.callback(os.close, descriptor)
    return descriptor
