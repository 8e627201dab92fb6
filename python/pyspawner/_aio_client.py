"""A zygote, as tasks of an event loop use it: what blocks is done in threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pyspawner import _client
from pyspawner._aio_process import ChildProcess
from pyspawner._aio_waiting import insist

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from pyspawner import _process
    from pyspawner._config import SandboxConfig
    from pyspawner.events import Event

# More do not spawn faster: there is one zygote.
_THREADS = 8

# How long a task that is cancelled waits for the work of a thread, which cannot be taken back, in seconds.
_PATIENCE = 1

_Made = TypeVar("_Made", _client.Client, "_process.ChildProcess")


class Client:
    """:class:`pyspawner.Client` for asyncio, with the same parameters. :meth:`start` starts the zygote, or an ``async with`` block.

    Spawns have threads of their own: they do not wait for what else blocks in the loop's default executor. It may be used by one loop after
    the other. ``on_event`` is called in one of these threads when a child is spawned, and in the loop's when one has ended.
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
        self._prepare(
            functools.partial(
                _client.Client,
                child_main=child_main,
                environment=environment,
                preload_imports=preload_imports,
                executable=executable,
                zygotes=zygotes,
                restart=restart,
                memory_image=memory_image,
                warm_children=warm_children,
                warm_up=warm_up,
                max_spawns_per_zygote=max_spawns_per_zygote,
                on_event=on_event,
            )
        )

    def _prepare(self, make: Callable[[], _client.Client]) -> None:
        self._make = make
        self._owner = os.getpid()
        self._is_starting = False
        self._running: tuple[_client.Client, ThreadPoolExecutor] | None = None

    async def start(self) -> None:
        """Start the zygote. If it runs already, this does nothing. Cancelled, it leaves none.

        :raises ZygoteStartError: as :class:`pyspawner.Client`, and so are other exceptions.
        :raises RuntimeError: another task is starting it.
        """
        if self._is_starting:
            raise RuntimeError("another task is starting the Client")
        if self._running is not None:
            return
        self._is_starting = True
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="pyspawner")
        try:
            client = await _in_thread(pool, self._make, lambda client: _close(client, pool))
            self._owner = os.getpid()
            self._running = client, pool
        except BaseException:
            pool.shutdown(wait=False)
            raise
        finally:
            self._is_starting = False

    @property
    def zygote_pid(self) -> int:
        """As :attr:`pyspawner.Client.zygote_pid`.

        :raises RuntimeError: the Client is not started, or closed.
        """
        return self._open()[0].zygote_pid

    @property
    def parked(self) -> int:
        """As :attr:`pyspawner.Client.parked`.

        :raises RuntimeError: the Client is not started, or closed.
        """
        return self._open()[0].parked

    def __repr__(self) -> str:
        state = f"zygote pid {self.zygote_pid}" if self._running else "not started, or closed"
        return f"<{type(self).__name__}: {state}>"

    async def spawn_child(
        self,
        args: Sequence[Any] = [],
        *,
        process_name: str | None = None,
        sandbox_config: SandboxConfig,
    ) -> ChildProcess:
        """Clone the zygote, as :meth:`pyspawner.Client.spawn_child` does.

        It takes some milliseconds of a thread, where the args are pickled too: let nobody change them meanwhile.

        Cancelled, it leaves no child: it waits until the one that is being made is reaped. A zygote that does not answer it waits for no
        longer than a second; then the child is ended as soon as there is one.

        :raises RuntimeError: the Client is not started, or closed, or belongs to another process (after a fork).

        Other exceptions are those of :meth:`pyspawner.Client.spawn_child`.
        """
        client, pool = self._open()
        spawn = functools.partial(
            client.spawn_child, args, process_name=process_name, sandbox_config=sandbox_config
        )
        return ChildProcess(await _in_thread(pool, spawn, _end))

    async def prewarm(self, sandbox_config: SandboxConfig, count: int) -> None:
        """Have children parked, as :meth:`pyspawner.Client.prewarm` does. Cancelled, it returns at once, and they are parked all the same.

        :raises RuntimeError: the Client is not started, or closed, or belongs to another process (after a fork).
        """
        client, pool = self._open()
        job = pool.submit(client.prewarm, sandbox_config, count)
        await asyncio.wait([_when_done(job)])
        job.result()

    async def derive(
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
        """Make another Client, as :meth:`pyspawner.Client.derive` does, and start it. Cancelled, it leaves none.

        :raises RuntimeError: this Client is not started, or closed, or belongs to another process (after a fork).

        Other exceptions are those of :meth:`pyspawner.Client.derive`.
        """
        client, _ = self._open()
        derived = Client.__new__(Client)
        derived._prepare(
            functools.partial(
                client.derive,
                preload_imports=preload_imports,
                child_main=child_main,
                zygotes=zygotes,
                restart=restart,
                warm_children=warm_children,
                warm_up=warm_up,
                max_spawns_per_zygote=max_spawns_per_zygote,
                on_event=on_event,
            )
        )
        await derived.start()
        return derived

    async def close(self) -> None:
        """End the zygote, as :meth:`pyspawner.Client.close`. Children go on running. A second call does nothing.

        Cancelled, it is done all the same.
        """
        running, self._running = self._running, None
        if running is not None:
            await _close(*running)

    def _open(self) -> tuple[_client.Client, ThreadPoolExecutor]:
        if self._running is None:
            raise RuntimeError("the Client is not started, or closed")
        if self._owner != os.getpid():
            # Its threads are not here.
            raise RuntimeError(f"the Client belongs to the process {self._owner}; this is {os.getpid()}")
        return self._running

    async def __aenter__(self) -> Client:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


async def _in_thread(
    pool: ThreadPoolExecutor, make: Callable[[], _Made], undo: Callable[[_Made], Awaitable[None]]
) -> _Made:
    """Make something that takes a while. Cancelled, call it off if it has not begun, and else undo it as soon as it is done."""
    job = pool.submit(make)
    told = _when_done(job)
    try:
        await asyncio.wait([told])
    except asyncio.CancelledError:
        if not job.cancel():
            await insist(told, _PATIENCE)
            if not job.done():
                job.add_done_callback(_undo_there)
            elif job.exception() is None:
                await undo(job.result())
        raise
    except GeneratorExit:
        # The task of a loop that was closed can await nothing any more.
        if not job.cancel():
            job.add_done_callback(_undo_there)
        raise
    return job.result()


def _when_done(job: Future[Any]) -> asyncio.Future[None]:
    """Return what is done when the thread has done its job, and never complains."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()

    def tell(_: Future[Any]) -> None:
        # The loop may have ended.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(told.set_result, None)

    job.add_done_callback(tell)
    return told


def _undo_there(job: Future[Any]) -> None:
    """In the thread, when nobody waits any more: of a Client and of a child, the end of a block leaves nothing."""
    if job.exception() is None:
        with job.result():
            pass


async def _end(child: _process.ChildProcess) -> None:
    async with ChildProcess(child):
        pass


async def _close(client: _client.Client, pool: ThreadPoolExecutor) -> None:
    closed = _when_done(pool.submit(client.close))
    # Its threads end after that.
    pool.shutdown(wait=False)
    try:
        await asyncio.wait([closed])
    except asyncio.CancelledError:
        await insist(closed, _PATIENCE)
        raise
