"""``pyspawner.aio``: no child outlives its loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import time
import warnings
from typing import Any

import pytest
import uvloop

from aio_support import ECHO, HANG, LOOPS, held, in_every_loop, run_main, spawn, turns
from pyspawner import aio
from support import children_of_this_process, run_caller


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("use", ["nothing", "wait", "communicate", "lines", "block", "spawn"])
def test_a_loop_that_ends_leaves_no_child(loop, use):
    kept = []

    async def use_it(client: aio.Client) -> None:
        child = await spawn(client, HANG)
        kept.append(child)
        if use == "wait":
            await child.wait()
        elif use == "communicate":
            await child.communicate(bytes(1_000_000))
        elif use == "lines":
            while True:
                await child.stdout.readline()
        elif use == "block":
            async with child:
                await child.wait()
        elif use == "spawn":
            # Until its Client is closed.
            with contextlib.suppress(RuntimeError):
                await use_it(client)

    async def main() -> None:
        async with aio.Client(child_main="support.run_source") as client:
            tasks = [asyncio.ensure_future(use_it(client)) for _ in range(3)]
            while len(kept) < 3:
                await asyncio.sleep(0)
            del tasks

    run_main(loop, main)
    assert {child.returncode for child in kept} == {-signal.SIGKILL}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_may_end_its_child_in_its_own_way_when_the_loop_ends(loop):
    heard = []

    async def talk(child: aio.ChildProcess) -> None:
        try:
            await child.wait()
        except asyncio.CancelledError:
            heard.append((await child.communicate(b"last words")).stdout)
            raise

    async def main() -> None:
        async with aio.Client(child_main="support.run_source") as client:
            asyncio.ensure_future(talk(await spawn(client, ECHO)))  # noqa: RUF006 (the loop's end cancels it)
            await turns()

    run_main(loop, main)
    assert heard == [b"last words"]


@pytest.mark.parametrize("loop", LOOPS)
def test_ctrl_c_leaves_nothing(loop):
    source = f"""
import asyncio, signal, uvloop
from pyspawner import aio
before = children_of_this_process()
async def main():
    async with aio.Client(child_main="support.run_source") as other:
        hang = ["import threading; threading.Event().wait()", {{}}]
        children = [await other.spawn_child(hang, sandbox_config=SANDBOX) for _ in range(3)]
        asyncio.get_running_loop().call_later(0.1, signal.raise_signal, signal.SIGINT)
        async with children[0]:
            await asyncio.gather(*(child.communicate() for child in children[1:]))
try:
    {loop}.run(main())
except KeyboardInterrupt:
    print(children_of_this_process() == before)
"""
    assert run_caller(source) == "True\n"


@pytest.fixture
def garbage():
    """It is collected when the test says so."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("garbage")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_is_closed_without_its_last_rites_is_complained_of_and_leaves_no_child(loop):
    event_loop = {"asyncio": asyncio, "uvloop": uvloop}[loop].new_event_loop()

    async def main() -> int:
        async with aio.Client(child_main="support.run_source") as client:
            child = await spawn(client, HANG)
            child.stdin.write(bytes(1_000_000))
            return child.pid

    pid = event_loop.run_until_complete(main())
    event_loop.close()
    assert pid in children_of_this_process()
    del event_loop
    # Of its streams and tasks too.
    with pytest.warns(ResourceWarning, match=r"unclosed") as complaints:
        gc.collect()
    assert f"unclosed <ChildProcess: pid {pid}, returncode None>" in [str(one.message) for one in complaints]
    assert pid not in children_of_this_process()


@pytest.mark.usefixtures("garbage")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("use", ["communicate", "block", "spawn"])
def test_the_tasks_of_a_loop_that_is_closed_without_its_last_rites_leave_no_child(loop, use):
    event_loop = {"asyncio": asyncio, "uvloop": uvloop}[loop].new_event_loop()
    client = aio.Client(child_main="support.run_source")
    complaints: list[str] = []

    async def use_it(begun: list[bool]) -> None:
        child = await spawn(client, HANG)
        begun.append(True)
        if use == "communicate":
            await child.communicate(bytes(1_000_000))
        async with child:
            await child.wait()

    async def main() -> asyncio.Future[None]:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context["message"])
        )
        await client.start()
        task = asyncio.ensure_future(use_it(begun := []))
        await turns()
        while use != "spawn" and not begun:
            await asyncio.sleep(0.001)
        return task

    task = event_loop.run_until_complete(main())
    event_loop.close()
    del event_loop, task
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        # A thread may still be at it.
        while not complaints:
            gc.collect()
            time.sleep(0.001)
    assert complaints == ["Task was destroyed but it is pending!"]
    asyncio.run(client.close())


@pytest.mark.parametrize("failing", [1, 2, 3])
@in_every_loop
async def test_a_loop_that_cannot_watch_a_child_leaves_none(client, failing, monkeypatch):
    loop, before, calls = asyncio.get_running_loop(), held(), []

    def add_reader(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "too many watches")
        type(loop).add_reader(loop, *arguments)

    monkeypatch.setattr(loop, "add_reader", add_reader)
    with pytest.raises(OSError, match="too many watches"):
        await spawn(client, HANG)
    assert held() == before
