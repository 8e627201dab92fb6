"""A call of a ``SandboxExecutor`` can be cancelled at any time: its child is killed, and everybody is told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest

import executor_functions as functions
from executor_support import assert_cancelled, nothing_left, until, workers
from pyspawner import Cause


def test_a_call_that_runs_can_be_cancelled(executor, outbox):
    called = []
    with nothing_left():
        future = executor.submit(functions.hang, "name")
        future.add_done_callback(called.append)
        until((outbox / "name").exists)
        assert future.running()
        assert future.cancel()
        assert_cancelled(future)
        assert future.cancel(), "once more"
        until(lambda: not workers())
    assert called == [future]
    assert future.completed is not None
    assert future.completed.cause is Cause.KILLED


def test_who_waits_already_is_told_of_a_cancel(executor, outbox):
    future = executor.submit(functions.hang, "name")

    def expect_cancel(wait: Callable[[], object]) -> None:
        with pytest.raises(CancelledError):
            wait()

    threads = [
        threading.Thread(target=target, args=arguments)
        for target, *arguments in (
            (concurrent.futures.wait, [future]),
            (lambda: list(concurrent.futures.as_completed([future])),),
            (expect_cancel, future.result),
            (expect_cancel, future.exception),
        )
    ]
    for thread in threads:
        thread.start()
    until((outbox / "name").exists)
    future.cancel()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_a_call_that_waits_can_be_cancelled_and_is_never_made(executor, outbox):
    running = [executor.submit(functions.meet, str(number)) for number in range(3)]
    future = executor.submit(functions.touch, "never")
    assert future.cancel()
    assert_cancelled(future)
    (outbox / "go").touch()
    concurrent.futures.wait(running)
    until(lambda: not workers())
    assert not (outbox / "never").exists()
    assert future.completed is None


def test_a_call_can_be_cancelled_while_its_child_is_made(executor):
    zygote = executor._client.zygote_pid
    os.kill(zygote, signal.SIGSTOP)
    try:
        future = executor.submit(functions.hang, "name")
        until(future.running)
        assert future.cancel()
        assert_cancelled(future)
    finally:
        os.kill(zygote, signal.SIGCONT)
    until(lambda: not workers())
    assert executor.submit(functions.double, 1).result() == 2


def test_after_the_result_a_cancel_changes_nothing(executor):
    future = executor.submit(functions.double, 1)
    assert future.result() == 2
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result() == 2


def test_of_result_and_cancel_the_first_decides(executor):
    """At any of many moments; none of them is waited for."""
    outcomes = set()
    with nothing_left():
        for number in range(200):
            called = []
            future = executor.submit(functions.double, 1)
            future.add_done_callback(called.append)
            time.sleep(number / 200 * 0.02)
            is_cancelled = future.cancel()
            assert future.done()
            assert future.cancelled() == is_cancelled
            if is_cancelled:
                assert_cancelled(future)
            else:
                assert future.result() == 2
            outcomes.add(is_cancelled)
            assert called == [future]
        until(lambda: not workers())
    assert True in outcomes


def test_many_threads_may_cancel_at_once(executor, outbox):
    for number in range(20):
        called = []
        future = executor.submit(functions.hang, str(number))
        future.add_done_callback(called.append)
        if number % 2:
            until((outbox / str(number)).exists)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _, future=future: future.cancel(), range(8)))
        assert_cancelled(future)
        assert called == [future]
    until(lambda: not workers())


def test_a_callback_that_raises_breaks_nothing(executor, outbox):
    def leave(_: object) -> None:
        sys.exit("from a callback")

    cancelled, finished = (executor.submit(functions.meet, name) for name in "ab")
    for future in (cancelled, finished):
        future.add_done_callback(leave)
    with contextlib.suppress(SystemExit):
        cancelled.cancel()
    assert_cancelled(cancelled)
    (outbox / "go").touch()
    assert finished.result() == "b"
    until(lambda: not workers())
    assert [executor.submit(functions.double, n).result() for n in range(5)] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("how", ["run_in_executor", "wrap_future", "timeout"])
def test_a_task_that_is_cancelled_kills_its_child(executor, outbox, how):
    async def call() -> None:
        if how == "wrap_future":
            await asyncio.wrap_future(executor.submit(functions.hold_lock))
        else:
            await asyncio.get_running_loop().run_in_executor(executor, functions.hold_lock)

    async def main() -> None:
        task = asyncio.create_task(call())
        while not (outbox / "locked").exists():
            await asyncio.sleep(0.001)
        if how == "timeout":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(task, 0.01)
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    until(lambda: not workers())
    with open(outbox / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
