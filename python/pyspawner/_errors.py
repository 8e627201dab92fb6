"""What can go wrong, as exceptions that say what to do about it."""

from __future__ import annotations

import signal
import sys
from concurrent import futures
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspawner._process import Completed

# Characters of standard error in the message of a ChildFailed.
_TAIL = 2000


class ZygoteStartError(RuntimeError):
    """The zygote did not start: an import failed, or the executable is not usable. No process is left."""

    traceback: str | None
    """The zygote's own traceback, or what its interpreter wrote on standard error before it ended."""

    def __init__(self, message: str, traceback: str | None = None) -> None:
        super().__init__(message)
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[ZygoteStartError], tuple[str, str | None]]:
        return type(self), (str(self), self.traceback)


class ZygoteDiedError(OSError):
    """The zygote has died: killed, or out of memory. Children already running are untouched; make a new ``Client``."""


class WarmUpError(RuntimeError):
    """A child could not be made ready: ``warm_up`` has raised, ended the process, or taken longer than a minute."""


class SandboxError(OSError):
    """A layer of the sandbox could not be applied. No user code has run, and nothing is left behind.

    ``errno`` is the kernel's answer, as in errno(3).
    """

    layer: str
    """The layer's name, for example ``"id_map"``."""

    hint: str
    """What to do about it; empty when only the errno is known."""

    def __init__(self, errno: int, message: str, layer: str = "", hint: str = "") -> None:
        super().__init__(errno, f"{message}. Hint: {hint}" if hint else message)
        self._message = message
        self.layer = layer
        self.hint = hint

    def __reduce__(self) -> tuple[type[SandboxError], tuple[int | None, str, str, str]]:
        return type(self), (self.errno, self._message, self.layer, self.hint)


class NetlinkError(SandboxError):
    """The kernel refused a network interface, address or route; see rtnetlink(7)."""

    @property
    def code(self) -> int:
        """The kernel's answer, as in errno(3)."""
        return self.errno or 0


class ChildFailed(Exception):  # noqa: N818 (as subprocess's TimeoutExpired)
    """A child did not end with exit code 0: :meth:`Completed.check`."""

    completed: Completed
    """What became of it."""

    def __init__(self, completed: Completed) -> None:
        super().__init__(completed)
        self.completed = completed

    def __str__(self) -> str:
        completed = self.completed
        code = completed.returncode
        how = (
            f"ended by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
            if code < 0
            else f"ended with exit code {code}"
        )
        tail = completed.stderr[-_TAIL:].decode(errors="backslashreplace").rstrip()
        dropped = completed.stderr_dropped
        cut = f" ({dropped} bytes after it were dropped)" if dropped else ""
        said = (
            f". The end of its standard error{cut}:\n{tail}"
            if tail
            else ", and wrote nothing on standard error"
        )
        blocked = f": {completed.blocked_syscall}" if completed.blocked_syscall else ""
        return f"the child {how} ({completed.cause.value}{blocked}){said}"


if sys.version_info >= (3, 11):
    _AnyTimeoutError = TimeoutError
else:

    class _AnyTimeoutError(futures.TimeoutError, TimeoutError):
        """Where these are two, whoever waits for either gets it."""


class ChildTimeoutError(ChildFailed, _AnyTimeoutError):
    """A call of a :class:`SandboxExecutor` has used up its ``timeout``, and its child was killed. It is a ``TimeoutError``."""


class RemoteError(Exception):
    """A function that a :class:`SandboxExecutor` ran has raised an exception. This is what the child told of it: text, and nothing else.

    None of it can be relied on: a hostile child says what it likes.
    """

    type_name: str
    """The name of the exception's class, with its module if that is not ``builtins``; at most 200 characters."""

    message: str
    """The beginning of ``str()`` of the exception; at most 5,000 characters."""

    traceback: str
    """The end of its traceback in the child, as Python prints it; at most 20,000 characters."""

    completed: Completed
    """What became of the child; what the function has printed is in its ``stderr``."""

    def __init__(self, type_name: str, message: str, traceback: str, completed: Completed) -> None:
        super().__init__(type_name, message, traceback, completed)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.completed = completed

    def __str__(self) -> str:
        said = f"{self.type_name}: {self.message}"
        lines = self.traceback.strip()
        return said if lines == said else f"{said}\n\nIn the child:\n{lines}"


class ResultError(Exception):
    """A child of a :class:`SandboxExecutor` has ended well, and what it sent is no result: none, too long, malformed, or more than one."""

    completed: Completed
    """What became of the child; what the function has printed is in its ``stderr``."""

    def __init__(self, message: str, completed: Completed) -> None:
        super().__init__(message, completed)
        self.completed = completed

    def __str__(self) -> str:
        return self.args[0]


class InsecureSandboxWarning(UserWarning):
    """``skip_sandbox_except`` has switched layers of the sandbox off. It is for tests of one layer at a time."""
