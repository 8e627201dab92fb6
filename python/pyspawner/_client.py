"""The caller's side: ``Client``."""

from __future__ import annotations

import functools
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
from pyspawner._config import SandboxConfig
from pyspawner._errors import InsecureSandboxWarning
from pyspawner._limits import Limits
from pyspawner._mounts import Mount
from pyspawner._network import to_native
from pyspawner._process import ChildProcess, open_stdin
from pyspawner._reporter import Reporter, logger
from pyspawner._zygotes import Zygotes
from pyspawner.events import ChildEnded, ChildSpawned, SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

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
    :param memory_image: whether what the imports leave in memory is kept in a sealed file of memory, of which children get what they
        touch: a clone need not copy it. Contents are the same without. Where the host does not allow it, the log says why, and clones
        take longer. Default: ``True``.
    :param on_event: is called with each of the :mod:`pyspawner.events`, in the thread in which it happens. Keep it short. What it raises
        is logged.
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
        restart: bool = False,
        memory_image: bool = True,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        if isinstance(preload_imports, str):
            raise TypeError(
                f"preload_imports must be a list of module names, not the string {preload_imports!r}"
            )
        if "." not in child_main.strip("."):
            raise ValueError(f'child_main must be "package.module.function", not {child_main!r}')
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
            memory_image=memory_image,
        )
        self._zygotes = Zygotes(start, self._report, restart=restart)
        for module, threads in self._zygotes.current.threads:
            logger.info(
                "importing %r started %d thread(s) in the zygote: %s; children do not have them",
                module,
                len(threads),
                ", ".join(threads),
            )
        if self._zygotes.current.no_memory_image is not None:
            logger.info("the zygote has no memory image: %s", self._zygotes.current.no_memory_image)

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
        # Of any type at run time, whatever the annotation says.
        if not isinstance(sandbox_config, SandboxConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"sandbox_config must be a SandboxConfig, not {sandbox_config!r}")
        if isinstance(sandbox_config.mounts, Mount):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"mounts must be a tuple, such as ({sandbox_config.mounts!r},)")
        network = to_native(sandbox_config.network)
        mounts = [_to_native(index, mount) for index, mount in enumerate(sandbox_config.mounts)]
        if isinstance(sandbox_config.skip_sandbox_except, str):
            raise TypeError("skip_sandbox_except must be a frozenset of layer names, not a string")
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
            chroot_dir=_path(sandbox_config.chroot_dir),
            mounts=mounts,
            working_dir=_path(sandbox_config.working_dir),
            proc=sandbox_config.proc,
            namespaces=sandbox_config.namespaces,
            max_landlock_abi=sandbox_config.max_landlock_abi,
            network=network,
            limits=_limits(sandbox_config.limits),
            skip_sandbox_except=sorted(sandbox_config.skip_sandbox_except),
        )
        started = time.monotonic()
        try:
            handle, stdin, stdout, stderr = zygotes.use(spawn)
        except BaseException as error:
            self._report(SpawnFailed(process_name, error, time.monotonic() - started))
            raise
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


def _to_native(index: int, mount: Mount) -> _native.Mount:
    # Of any type at run time, whatever the annotation says.
    if not isinstance(mount, Mount):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"mounts[{index}] must be one of Bind, Tmpfs, Overlay, Proc and Dev, not {mount!r}")
    try:
        return mount.to_native()
    except (TypeError, ValueError) as error:
        # Which argument it was may be in a note.
        what = ", ".join([str(error), *getattr(error, "__notes__", [])])
        raise type(error)(f"mounts[{index}]: {what}") from None


def _limits(limits: Limits | str) -> Limits:
    if limits == "required":
        return Limits(cgroup="required")
    # Of any type at run time, whatever the annotation says.
    if not isinstance(limits, Limits):
        raise TypeError(f'limits must be Limits(...) or "required", not {limits!r}')
    return limits


def _path(path: Path | None) -> Path | None:
    """Be as lenient as ``open()``: a string is a path too."""
    return None if path is None else Path(path)


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
