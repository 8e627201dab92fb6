"""Many threads and tasks, and warm children."""

from __future__ import annotations

import asyncio
import functools
import threading

import pytest

import pyspawner
from pyspawner import SandboxConfig, aio
from support import SANDBOX, communicate, run, spawn
from warm_support import await_parked, eventually, parked, waiting

THREADS, EACH = 8, 25


def test_each_of_many_threads_gets_the_output_of_its_own_child():
    used: list[int] = []
    wrong: list[object] = []
    with pyspawner.Client(child_main="support.run_source", warm_children=4) as client:
        run(client, "")
        await_parked(client, 4)

        def spawn_some(thread: int) -> None:
            for number in range(EACH):
                child = spawn(client, "import sys; print(name, sys.stdin.read())", name=(thread, number))
                used.append(child.pid)
                outcome = communicate(child, f"{thread}.{number}".encode())
                if outcome.text != f"({thread}, {number}) {thread}.{number}\n":
                    wrong.append(outcome)

        threads = [threading.Thread(target=spawn_some, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(used) == THREADS * EACH


def test_prewarm_by_many_threads_ends_in_one_of_their_numbers(by_request):
    threads = [
        threading.Thread(target=by_request.prewarm, args=(SANDBOX, count)) for count in (1, 2, 3, 4) * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_request.prewarm(SANDBOX, 2)
    assert parked(by_request) == len(waiting()) == 2


def test_prewarm_to_and_fro_while_others_spawn(by_request):
    stop = threading.Event()

    def to_and_fro() -> None:
        while not stop.is_set():
            for count in (3, 0, 1):
                by_request.prewarm(SANDBOX, count)

    thread = threading.Thread(target=to_and_fro)
    thread.start()
    for number in range(50):
        assert run(by_request, f"print({number})").text == f"{number}\n"
    stop.set()
    thread.join()
    by_request.prewarm(SANDBOX, 0)
    assert parked(by_request) == 0


def run_async(work) -> None:
    asyncio.run(asyncio.wait_for(work(), 120))


class TestAsyncio:
    def test_it_wakes_parked_children(self):
        async def work() -> None:
            async with aio.Client(child_main="support.run_source", warm_children=1) as client:
                await client.prewarm(SANDBOX, 2)
                there = waiting()
                assert len(there) == 2
                child = await client.spawn_child(["print('warm')", {}], sandbox_config=SANDBOX)
                assert child.pid in there
                completed = await child.communicate()
                assert completed.stdout == b"warm\n"

        run_async(work)

    def test_a_cancelled_prewarm_returns_at_once_and_close_ends_it(self):
        async def work() -> None:
            async with aio.Client(
                child_main="support.run_source", warm_up="warm_ups.hang_in_sandbox"
            ) as client:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.prewarm(SANDBOX, 1), 0.2)
                child = await client.spawn_child(["print('cold')", {}], sandbox_config=SANDBOX)
                assert (await child.communicate()).stdout == b"cold\n"

        run_async(work)
        assert waiting() == set()

    def test_what_prewarm_raises_is_raised(self):
        async def work() -> None:
            async with aio.Client(
                child_main="support.run_source", warm_up="warm_ups.raise_in_sandbox"
            ) as client:
                with pytest.raises(pyspawner.WarmUpError, match="the model is missing"):
                    await client.prewarm(SANDBOX, 1)
                with pytest.raises(ValueError, match="negative"):
                    await client.prewarm(SANDBOX, -1)

        run_async(work)


def test_an_executor_is_as_ever():
    with pyspawner.SandboxExecutor(
        sandbox_config=SandboxConfig(), preload_imports=["executor_functions"]
    ) as executor:
        assert list(executor.map(functools.partial(pow, 2), range(5))) == [1, 2, 4, 8, 16]
    eventually(lambda: not waiting(), "no warm child")
