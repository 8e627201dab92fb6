"""The caller's side: ``Client``."""

from __future__ import annotations

import functools
import operator
import os
import pickle
import shutil
import sys
import time
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pyspawner import _native
from pyspawner._errors import InsecureSandboxWarning
from pyspawner._process import ChildProcess, open_stdin
from pyspawner._reporter import Reporter, logger
from pyspawner._sandbox import to_native
from pyspawner._zygotes import Zygotes
from pyspawner.events import ChildEnded, ChildSpawned, ParkingFailed, SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from pyspawner._config import SandboxConfig
    from pyspawner._process import Cause, Usage
    from pyspawner.events import Event

# With the caller's own interpreter: find what the caller finds, this very package above all.
_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from pyspawner._zygote import main; main()"


class Client:
    """A zygote: a Python process that has imported what children need, and clones itself for each of them.

    Starting one is slow; make one at start-up and keep it. It is thread-safe, works under asyncio, and needs no signal handler. As a
    context manager it closes itself.

    :param child_main: full name of the function that each child runs, ``"package.module.function"``. It must be importable.
    :param environment: the whole environment of the zygote and of every child. Default: empty.
    :param preload_imports: modules to import in the zygote, present in every child. Their code is trusted, and whatever they hold in
        memory can be read by every child.
    :param executable: the Python interpreter. With the caller's own (default) the zygote has the caller's ``sys.path``; with another
        one, of a virtual environment for example, it has that one's, plus the working directory. pyspawner must be installed there.
    :param restart: whether the next spawn after the zygote's death starts a new one. It then takes as long as a start; the second of
        such starts in a row not before 0.1 seconds have passed, and each later one after twice as long, up to 30 seconds.
    :param warm_children: how many children to have parked of each ``SandboxConfig`` in use, from its second spawn on: cloned, locked in and
        ready. A spawn that finds one takes a tenth of a millisecond, and another one is made in its place. The four configurations that
        were used last have some. See also :meth:`prewarm`.
    :param warm_up: full name of a function without arguments, ``"package.module.function"``. Each parked child calls it before it parks, so
        that the request need not pay for what is slow the first time. It also runs once at the start, in a process that ends with
        it, and the zygote imports what it has imported there. Its code is trusted, and ``SystemExit`` in it is an error.
    :param on_event: is called with each of the :mod:`pyspawner.events`, in the thread in which it happens. Keep it short. What it raises
        is logged.
    :raises ZygoteStartError: a module is missing or raises, ``child_main`` does not exist or cannot be called, the executable cannot
        run or has no pyspawner. The message has the zygote's own traceback. No process is left.

    The threads that an import starts in the zygote are logged to the logger ``pyspawner``, at level INFO.
    """

    def __init__(
        self,
        *,
        child_main: str,
        environment: Mapping[str, str] = {},
        preload_imports: Sequence[str] = [],
        executable: str = sys.executable,
        restart: bool = False,
        warm_children: int = 0,
        warm_up: str | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        if isinstance(preload_imports, str):
            raise TypeError(
                f"preload_imports must be a list of module names, not the string {preload_imports!r}"
            )
        if "." not in child_main.strip("."):
            raise ValueError(f'child_main must be "package.module.function", not {child_main!r}')
        if warm_up is not None and "." not in warm_up.strip("."):
            raise ValueError(f'warm_up must be "package.module.function", not {warm_up!r}')
        warm_children = operator.index(warm_children)
        if warm_children < 0:
            raise ValueError(f"warm_children must not be negative: {warm_children}")
        self._warm_children = bool(warm_children)
        own_interpreter = executable == sys.executable
        self._owner = os.getpid()
        self._zygotes: Zygotes | None = None
        self._report = Reporter(on_event)
        start = functools.partial(
            _native.Client,
            executable=_find_executable(executable),
            arguments=_bootstrap_arguments() if own_interpreter else ["-u", "-m", "pyspawner._zygote"],
            environment=_checked_environment(environment),
            child_main=child_main,
            preload_imports=list(preload_imports),
            sys_path=[os.fsencode(entry) for entry in sys.path] if own_interpreter else None,
            warm_children=warm_children,
            warm_up=warm_up,
        )
        self._zygotes = Zygotes(start, self._report, restart=restart)
        for module, threads in self._zygotes.current.threads:
            logger.info(
                "importing %r started %d thread(s) in the zygote: %s; children do not have them",
                module,
                len(threads),
                ", ".join(threads),
            )

    @property
    def zygote_pid(self) -> int:
        """The zygote's pid, for monitoring. It shows as ``pyspawner: zygote`` in ps and top.

        :raises RuntimeError: the Client is closed.
        """
        return self._open().current.zygote_pid

    def __repr__(self) -> str:
        state = f"zygote pid {self._zygotes.current.zygote_pid}" if self._zygotes else "closed"
        return f"<{type(self).__name__}: {state}>"

    def spawn_child(
        self,
        args: Sequence[Any] = [],
        *,
        process_name: str | None = None,
        sandbox_config: SandboxConfig,
    ) -> ChildProcess:
        """Clone the zygote into a new sandbox and run ``child_main(*args)`` there.

        It returns when the sandbox is complete; from then on the child runs user code.

        :param args: arguments of ``child_main``. Pickled here, unpickled in the child, inside the sandbox.
        :param process_name: what ps and top show, in ``comm`` (its first 15 bytes) and in the command line.
        :param sandbox_config: how to lock the child in.
        :raises SandboxError: a layer of the sandbox could not be applied. No user code has run.
        :raises NetlinkError: the same, of the network; it is a ``SandboxError``.
        :raises ZygoteDiedError: the zygote has died. Make a new ``Client``; or with ``restart``, wait for as long as it says.
        :raises ZygoteStartError: with ``restart``, a new zygote does not start.
        :raises ValueError: the configuration makes no sense, for example an interface name of more than 15 bytes.
        :raises RuntimeError: the Client is closed, or belongs to another process (after a fork).
        :raises OSError: the caller lacks file descriptors (``EMFILE``) or memory.

        Whatever pickle raises for args that cannot be pickled is raised before anything is sent. After any error nothing is left behind.
        """
        if isinstance(args, (str, bytes)):
            raise TypeError(f"args must be a list of arguments for child_main, not {args!r}")
        sandbox = to_native(sandbox_config)
        zygotes = self._open()
        pickled = pickle.dumps(list(args), protocol=5)  # every supported Python reads 5
        if sandbox_config.skip_sandbox_except:
            warnings.warn(
                f"the sandbox is weakened: of its optional layers only {sorted(sandbox_config.skip_sandbox_except)} are on; "
                "skip_sandbox_except is for tests",
                InsecureSandboxWarning,
                stacklevel=2,
            )
        spawn = functools.partial(
            _native.Client.spawn,
            args=pickled,
            process_name=process_name,
            sandbox=sandbox,
        )
        started = time.monotonic()
        try:
            handle, stdin, stdout, stderr = zygotes.use(spawn)
        except BaseException as error:
            self._report(SpawnFailed(process_name, error, time.monotonic() - started))
            raise
        if self._warm_children:
            self._tell_parking_failure(zygotes.current)
        self._report(ChildSpawned(handle.pid, process_name, time.monotonic() - started))
        report = self._report

        def on_end(returncode: int, cause: Cause, usage: Usage, blocked_syscall: str | None) -> None:
            report(ChildEnded(handle.pid, process_name, returncode, cause, usage, blocked_syscall))

        return ChildProcess(
            pid=handle.pid,
            stdin=open_stdin(stdin),
            stdout=os.fdopen(stdout, "rb"),
            stderr=os.fdopen(stderr, "rb"),
            layers=MappingProxyType(dict(handle.layers)),
            _handle=handle,
            _on_end=on_end,
        )

    def prewarm(self, sandbox_config: SandboxConfig, count: int) -> None:
        """Have ``count`` children of this sandbox parked from now on, and return when they are.

        Each is used by one :meth:`spawn_child` with an equal ``sandbox_config``, and replaced by a new one. It is there however many other
        configurations come into use, until this is called with 0. See :ref:`warm-children`.

        :param count: how many. Each holds three descriptors of the caller's, and a process.
        :raises ValueError: the configuration is for one child at a time: it has an :class:`Overlay` with an ``upper``, or a
            :class:`NetworkConfig`; ``count`` is negative; or what :meth:`spawn_child` raises it for.
        :raises WarmUpError: ``warm_up`` has raised in a child, or did not come to an end.

        Other exceptions are those of :meth:`spawn_child`; then as many as there are stay, and it is tried again from time to time.
        """
        count = operator.index(count)
        if count < 0:
            raise ValueError(f"count must not be negative: {count}")
        sandbox = to_native(sandbox_config)
        zygotes = self._open()
        # If this fails, it is tried again.
        self._warm_children = self._warm_children or bool(count)
        zygotes.prewarm(sandbox, count)

    def _tell_parking_failure(self, zygote: _native.Client) -> None:
        """Report, if that is new, why no child could be parked: nobody's call has failed by it."""
        failure = zygote.parking_failure()
        if failure is not None:
            self._report(ParkingFailed(failure))

    def close(self) -> None:
        """End the zygote. Children go on running; those with a managed network lose it. A second call does nothing.

        Without it, children that still run when the caller ends are killed.
        """
        zygotes, self._zygotes = self._zygotes, None
        if zygotes is not None:
            zygotes.close()

    def _open(self) -> Zygotes:
        if self._zygotes is None:
            raise RuntimeError("the Client is closed")
        return self._zygotes

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # After a fork it is not this process's to close; and at the interpreter's end it counts as the caller's death: the watchdog kills
        # what still runs.
        is_open = self.__dict__.get("_zygotes") is not None and self._owner == os.getpid()
        if is_open and not sys.is_finalizing():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()


def _bootstrap_arguments() -> list[str]:
    path = [*sys.path, str(Path(__file__).parent.parent)]
    return ["-u", "-c", _BOOTSTRAP.format(path=path)]


def _find_executable(executable: str) -> str:
    """Search a bare name in the caller's PATH, as subprocess does: the zygote's environment may have none."""
    if not executable:
        raise ValueError(
            "executable is empty: sys.executable is unknown in this interpreter; pass the path of a Python"
        )
    return shutil.which(executable) or executable


def _checked_environment(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    for key, value in environment.items():
        # Of any type at run time, whatever the annotation says.
        if not (isinstance(key, str) and isinstance(value, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"environment must map str to str, and has {key!r}: {value!r}")
        if not key or "=" in key or "\0" in key + value:
            raise ValueError(f"environment has the illegal entry {key!r}: {value!r}")
    return list(environment.items())
