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
from typing import TYPE_CHECKING, Any

from pyspawner import _native
from pyspawner._errors import InsecureSandboxWarning
from pyspawner._process import ChildProcess, open_output, open_stdin
from pyspawner._reporter import Reporter
from pyspawner._sandbox import to_native
from pyspawner._zygotes import Imports, Plan, Zygotes
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
    :param zygotes: how many zygotes serve, taking turns: one, and clones of it, which share its memory. A zygote makes one child at a time;
        more of them use more CPUs.
    :param restart: whether the next spawn after the zygote's death starts a new one. It then takes as long as a start; the second of
        such starts in a row not before 0.1 seconds have passed, and each later one after twice as long, up to 30 seconds.
    :param memory_image: whether what the imports leave in memory is kept in a sealed file of memory, of which children get what they
        touch: a clone need not copy it. Contents are the same without. Where the host does not allow it, the log says why, and clones
        take longer. Default: ``True``.
    :param warm_children: how many children to have parked of each ``SandboxConfig`` in use, from its second spawn on: cloned, locked in and
        ready. A spawn that finds one only wakes it, and another one is made in its place. The four configurations that
        were used last have some. See also :meth:`prewarm`.
    :param warm_up: full name of a function without arguments, ``"package.module.function"``. Each parked child calls it before it parks, so
        that the request need not pay for what is slow the first time. It also runs once at the start, in a process that ends with
        it, and the zygote imports what it has imported there. Its code is trusted, and ``SystemExit`` in it is an error.
    :param on_event: is called with each of the :mod:`pyspawner.events`, in the thread in which it happens. Keep it short. What it raises
        is logged.
    :param max_spawns_per_zygote: after how many children a zygote is replaced, with its clones, by a new interpreter, whose addresses in
        memory are others. It is started in a thread, while the old ones go on serving; a start that fails is tried again, with the pauses
        of ``restart``. Children of the old ones go on as they are. Default: never.
    :raises ZygoteStartError: a module is missing or raises, ``child_main`` does not exist or cannot be called, the executable cannot
        run or has no pyspawner. The message has the zygote's own traceback. No process is left.

    The threads that an import starts in the zygote are logged to the logger ``pyspawner``, at level INFO; so is why there is no
    memory image.
    """

    def __init__(
        self,
        *,
        child_main: str,
        environment: Mapping[str, str] = {},
        preload_imports: Sequence[str] = [],
        executable: str = sys.executable,
        zygotes: int = 1,
        restart: bool = False,
        memory_image: bool = True,
        warm_children: int = 0,
        warm_up: str | None = None,
        max_spawns_per_zygote: int | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        own_interpreter = executable == sys.executable
        interpreter = functools.partial(
            _native.Client,
            executable=_find_executable(executable),
            arguments=_bootstrap_arguments() if own_interpreter else ["-u", "-m", "pyspawner._zygote"],
            environment=_checked_environment(environment),
            sys_path=[os.fsencode(entry) for entry in sys.path] if own_interpreter else None,
            memory_image=memory_image,
        )
        imports = Imports(
            _checked_function("child_main", child_main),
            _checked_imports(preload_imports),
            None if warm_up is None else _checked_function("warm_up", warm_up),
        )
        plan = _checked_plan(zygotes, warm_children, max_spawns_per_zygote, restart=restart)
        self._begin(interpreter, imports, plan, on_event, None)

    def _begin(
        self,
        interpreter: Callable[..., _native.Client],
        imports: Imports,
        plan: Plan,
        on_event: Callable[[Event], object] | None,
        first: Callable[[], _native.Client] | None,
    ) -> None:
        self._owner = os.getpid()
        self._zygotes: Zygotes | None = None
        self._has_pools = plan.warm_children > 0
        self._report = Reporter(on_event)
        self._interpreter = interpreter
        self._imports = imports
        self._zygotes = Zygotes(interpreter, imports, self._report, plan, first=first)

    def derive(
        self,
        *,
        preload_imports: Sequence[str] = [],
        child_main: str | None = None,
        zygotes: int = 1,
        restart: bool = False,
        warm_children: int = 0,
        warm_up: str | None = None,
        max_spawns_per_zygote: int | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> Client:
        """Make another Client, whose zygote is a clone of this one's and imports more.

        The two share the memory of what they have in common, and the clone need not import it again. Apart from that, each lives by
        itself: it has its own children and is closed for itself, and the end of one is not the end of the other. The environment, the
        executable and ``sys.path`` are this one's.

        A zygote that is started in place of the derived one is a new interpreter, which imports all that both have imported.

        :param preload_imports: modules to import, beside those that the zygote has.
        :param child_main: as :class:`Client` has it. Default: this one's.
        :param zygotes: as :class:`Client` has it, and so are the other parameters.
        :raises ZygoteStartError: as :class:`Client`. No process is left.
        :raises ZygoteDiedError: the zygote has died.
        :raises RuntimeError: this Client is closed, or belongs to another process (after a fork).
        """
        more = _checked_imports(preload_imports)
        imports = self._imports.more(
            None if child_main is None else _checked_function("child_main", child_main),
            more,
            None if warm_up is None else _checked_function("warm_up", warm_up),
        )
        plan = _checked_plan(zygotes, warm_children, max_spawns_per_zygote, restart=restart)
        parents = self._open()

        def clone() -> _native.Client:
            return parents.use(
                lambda zygote: zygote.derive(
                    child_main=imports.child_main,
                    preload_imports=list(more),
                    warm_children=plan.warm_children_each,
                    warm_up=imports.warm_up,
                )
            )

        derived = Client.__new__(Client)
        derived._begin(self._interpreter, imports, plan, on_event, clone)
        return derived

    @property
    def zygote_pid(self) -> int:
        """The zygote's pid, for monitoring. It shows as ``pyspawner: zygote`` in ps and top.

        :raises RuntimeError: the Client is closed.
        """
        return self._open().current.zygote_pid

    @property
    def parked(self) -> int:
        """How many warm children wait for a request at this moment, of all configurations.

        :raises RuntimeError: the Client is closed.
        """
        return self._open().parked

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
        if self._has_pools:
            for failure in zygotes.parking_failures():
                self._report(ParkingFailed(failure))
        report = self._report
        if report.is_heard:
            report(ChildSpawned(handle.pid, process_name, time.monotonic() - started))

        def on_end(returncode: int, cause: Cause, usage: Usage, blocked_syscall: str | None) -> None:
            if report.is_heard:
                report(ChildEnded(handle.pid, process_name, returncode, cause, usage, blocked_syscall))

        return ChildProcess(
            pid=handle.pid,
            stdin=open_stdin(stdin),
            stdout=open_output(stdout),
            stderr=open_output(stderr),
            _handle=handle,
            _on_end=on_end,
        )

    def prewarm(self, sandbox_config: SandboxConfig, count: int) -> None:
        """Have ``count`` children of this sandbox parked from now on, and return when they are.

        Each is used by one :meth:`spawn_child` with an equal ``sandbox_config``, and replaced by a new one. It is there however many other
        configurations come into use, until this is called with 0. docs/warm-children.md has the rest.

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
        self._has_pools = self._has_pools or bool(count)
        zygotes.prewarm(sandbox, count)

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


def _checked_function(what: str, name: str) -> str:
    if "." not in name.strip("."):
        raise ValueError(f'{what} must be "package.module.function", not {name!r}')
    return name


def _checked_imports(preload_imports: Sequence[str]) -> tuple[str, ...]:
    if isinstance(preload_imports, str):
        raise TypeError(f"preload_imports must be a list of module names, not the string {preload_imports!r}")
    return tuple(preload_imports)


def _checked_plan(
    zygotes: int, warm_children: int, max_spawns_per_zygote: int | None, *, restart: bool
) -> Plan:
    if operator.index(zygotes) < 1:
        raise ValueError(f"zygotes must be at least 1, not {zygotes}")
    if operator.index(warm_children) < 0:
        raise ValueError(f"warm_children must not be negative: {warm_children}")
    if max_spawns_per_zygote is not None and operator.index(max_spawns_per_zygote) < 1:
        raise ValueError(f"max_spawns_per_zygote must be at least 1, not {max_spawns_per_zygote}")
    return Plan(zygotes, restart, max_spawns_per_zygote, warm_children)


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
