"""``pyspawner.aio``: whoever is cancelled at any moment leaves no child, and no zygote."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from aio_support import ECHO, HANG, LOOPS, held, in_every_loop, run, run_main, spawn, turns
from pyspawner import Cause, _aio_client, aio


async def cancelled(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@in_every_loop
async def test_communicate_leaves_no_child_and_another_call_has_what_it_wrote(client):
    child = await spawn(client, HANG)
    task = asyncio.ensure_future(child.communicate(bytes(1_000_000)))
    await turns()
    await cancelled(task)
    assert child.returncode == -signal.SIGKILL
    assert (await child.communicate()).cause is Cause.KILLED


@in_every_loop
async def test_a_second_communicate_ends_the_first(client):
    child = await spawn(client, HANG)
    first, second = (asyncio.ensure_future(child.communicate()) for _ in range(2))
    await turns()
    await cancelled(second)
    assert (await first).cause is Cause.KILLED


@in_every_loop
async def test_wait_changes_nothing(client):
    async with await spawn(client, ECHO) as child:
        for _ in range(3):
            task = asyncio.ensure_future(child.wait())
            await turns()
            await cancelled(task)
        child.stdin.close()
        assert await child.wait() == 0


@in_every_loop
async def test_reading_and_draining_change_nothing(client):
    async with await spawn(client, ECHO) as child:
        child.stdin.write(data := os.urandom(1_000_000))
        # It only writes when it has read all.
        for work in (child.stdin.drain, child.stdout.read):
            task = asyncio.ensure_future(work())
            await asyncio.sleep(0)
            await cancelled(task)
        assert (await child.communicate(max_output=1_000_000)).stdout == data


@pytest.mark.usefixtures("patient")
@in_every_loop
async def test_a_spawn_at_any_moment_leaves_no_child(client):
    before = held()
    for number in range(100):
        task = asyncio.ensure_future(spawn(client, HANG))
        # Until another stage of it each time, as it happens.
        await asyncio.sleep(number / 10_000)
        task.cancel()
        try:
            async with await task:
                pass
        except asyncio.CancelledError:
            assert held() == before


class AtOnce(ThreadPoolExecutor):
    """Does its work before anybody waits for it."""

    def submit(self, fn, /, *args, **kwargs):
        job = Future()
        job.set_result(fn(*args, **kwargs))
        return job


@pytest.mark.parametrize("loop", LOOPS)
def test_a_spawn_that_is_done_when_its_task_has_not_heard_of_it_leaves_no_child(loop, monkeypatch):
    monkeypatch.setattr(_aio_client, "ThreadPoolExecutor", AtOnce)

    async def test(client: aio.Client) -> None:
        before = held()
        task = asyncio.ensure_future(spawn(client, HANG))
        await asyncio.sleep(0)
        assert held() != before
        await cancelled(task)
        assert held() == before

    run(loop, test)


@pytest.mark.usefixtures("patient")
@in_every_loop
async def test_many_spawns_of_which_few_have_begun(client):
    before = held()
    tasks = [asyncio.ensure_future(spawn(client, HANG)) for _ in range(200)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    assert held() == before


@in_every_loop
async def test_a_spawn_that_hangs_is_not_waited_for_and_leaves_no_child_later(client):
    before = held()
    os.kill(client.zygote_pid, signal.SIGSTOP)
    try:
        tasks = [asyncio.ensure_future(spawn(client, HANG)) for _ in range(20)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await turns()
        assert sum(task.done() for task in tasks) >= 12, "what waits for a thread is called off"
        for task in tasks:
            await cancelled(task)
    finally:
        os.kill(client.zygote_pid, signal.SIGCONT)
    # The zygote answers in order.
    await (await spawn(client, "")).communicate()
    while held() != before:
        await asyncio.sleep(0.001)


@in_every_loop
async def test_a_block_leaves_no_child_whatever_ends_it_and_however_often_it_is_cancelled(client):
    async def hold(child: aio.ChildProcess, error: Exception | None) -> None:
        async with child:
            assert await child.stdout.readline() == b"ready\n"
            if error:
                raise error
            await child.wait()

    before = held()
    with pytest.raises(ZeroDivisionError):
        await hold(await spawn(client, HANG), ZeroDivisionError())
    for times in (1, 2, 3):
        child = await spawn(client, HANG)
        task = asyncio.ensure_future(hold(child, None))
        await turns()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert child.returncode == -signal.SIGKILL
        assert held() == before
    async with await spawn(client, HANG) as child:
        child.stdin.write(b"never read")
    assert child.returncode == -signal.SIGKILL


async def wait_for(work):
    await asyncio.wait_for(work, 0.1)


async def timeout(work):
    async with asyncio.timeout(0.1):  # pyright: ignore[reportAttributeAccessIssue] (Python 3.11)
        await work


async def task_group(work):
    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise TimeoutError

    try:
        async with asyncio.TaskGroup() as group:  # pyright: ignore[reportAttributeAccessIssue] (Python 3.11)
            group.create_task(work)
            group.create_task(fail())
    except Exception as error:
        raise error.exceptions[0] from None  # pyright: ignore[reportAttributeAccessIssue]


WAYS = [wait_for, timeout, task_group] if sys.version_info >= (3, 11) else [wait_for]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("way", WAYS)
@in_every_loop
async def test_what_asyncio_has_to_cancel(client, way):
    async def lines() -> None:
        async with await spawn(client, "while True: print('line', flush=True)") as child:
            async for _ in child.stdout:
                pass

    async def spawn_on() -> None:
        while True:
            await (await spawn(client, "")).communicate()

    before = held()

    async def communicate() -> None:
        await (await spawn(client, HANG)).communicate()

    for work in (lines, spawn_on, communicate):
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await way(work())
        assert held() == before


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_start_that_is_cancelled_leaves_no_zygote(loop):
    async def main() -> None:
        before = held()
        for number in range(20):
            client = aio.Client(child_main="support.run_source")
            task = asyncio.ensure_future(client.start())
            # Until another stage of it each time, as it happens.
            await asyncio.sleep(number / 100)
            if task.done():
                await client.close()
            else:
                await cancelled(task)
            assert held() == before

    run_main(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_start_that_hangs_is_not_waited_for_and_leaves_no_zygote_later(loop, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / f"slow_{loop}.py").write_text(f"open({str(tmp_path / 'fifo')!r}).read()")
    before = held()

    async def main() -> None:
        client = aio.Client(child_main="support.run_source", preload_imports=[f"slow_{loop}"])
        task = asyncio.ensure_future(client.start())
        # Until the module is being imported.
        fifo = await asyncio.get_running_loop().run_in_executor(None, os.open, tmp_path / "fifo", os.O_WRONLY)
        await cancelled(task)
        os.close(fifo)
        while held()[1] != before[1]:
            await asyncio.sleep(0.001)

    run_main(loop, main)
