"""What tests of ``pyspawner.aio`` share: every loop, and the proof that nothing is left behind."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop

import pyspawner
from pyspawner import aio
from support import READY, SANDBOX, children_of_this_process, open_descriptors

LOOPS: dict[str, Callable[[Coroutine[Any, Any, object]], object]] = {
    "asyncio": asyncio.run,
    "uvloop": uvloop.run,
}

ECHO = "import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data)"
HANG = READY + "import threading; threading.Event().wait()"


# libuv opens a pipe for signals once a process, and keeps it.
uvloop.run(asyncio.sleep(0))


def spawn(
    client: aio.Client, source: str, *, sandbox: pyspawner.SandboxConfig = SANDBOX, **names: Any
) -> Coroutine[Any, Any, aio.ChildProcess]:
    """Start ``source`` in a child; the client's ``child_main`` must be ``support.run_source``."""
    return client.spawn_child([source, names], sandbox_config=sandbox)


def held() -> tuple[list[str], set[int]]:
    """What must not grow. A pidfd belongs to its ChildProcess, which the test may still have."""
    pipes = sorted(target for target in open_descriptors().values() if target != "anon_inode:[pidfd]")
    return pipes, children_of_this_process()


async def turns(count: int = 20) -> None:
    """Let the loop do what it can do now."""
    for _ in range(count):
        await asyncio.sleep(0)


def run_main(loop: str, main: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run ``main`` in a loop of its own, which has nothing to complain of. After it, nothing is left."""
    complaints: list[str] = []

    async def heard() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
        await main()

    before = held()
    LOOPS[loop](heard())
    assert held() == before, (held(), before)
    assert not complaints, complaints


def run(loop: str, test: Callable[[aio.Client], Awaitable[object]]) -> None:
    """Run ``test`` with a client. Nothing is left when it returns."""

    async def main() -> None:
        async with aio.Client(child_main="support.run_source") as client:
            # What the loop opens once it opens now.
            await (await spawn(client, "")).communicate()
            before = held()
            await asyncio.wait_for(test(client), 120)
            assert held() == before, (held(), before)

    run_main(loop, main)


def in_every_loop(test: Callable[..., Awaitable[object]]) -> Callable[..., None]:
    """Make a test of a coroutine function, which takes a ``client`` and parameters of its own."""

    def run_test(loop: str, **parameters: object) -> None:
        run(loop, functools.partial(test, **parameters))

    own = [parameter for name, parameter in inspect.signature(test).parameters.items() if name != "client"]
    first = inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    functools.update_wrapper(run_test, test)
    run_test.__signature__ = inspect.Signature([first, *own])  # pyright: ignore[reportFunctionMemberAccess]
    return pytest.mark.parametrize("loop", LOOPS)(run_test)
