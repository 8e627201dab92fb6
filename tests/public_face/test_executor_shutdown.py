"""The end of a ``SandboxExecutor``, and of the interpreter: nothing is left, and nothing hangs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Callable

import pytest

import executor_functions as functions
from executor_support import assert_cancelled, nothing_left, run_script, until, workers
from pyspawner import SandboxExecutor


def test_a_shutdown_waits_and_leaves_nothing(sandbox):
    with nothing_left():
        with SandboxExecutor(sandbox_config=sandbox, max_workers=2) as executor:
            futures = [executor.submit(functions.double, n) for n in range(6)]
        assert all(future.done() for future in futures)
        executor.shutdown()
        assert repr(executor) == "<SandboxExecutor: 0 running, shut down>"
        with pytest.raises(RuntimeError, match="shut down"):
            executor.submit(functions.double, 1)
        with pytest.raises(RuntimeError, match="shut down"):
            executor.submit(functions.echo, threading.Lock())
    assert [future.result() for future in futures] == [0, 2, 4, 6, 8, 10]


def test_a_shutdown_without_waiting_lets_the_calls_come_to_their_end(sandbox, outbox):
    with nothing_left():
        executor = SandboxExecutor(sandbox_config=sandbox, max_workers=1)
        futures = [executor.submit(functions.meet, name) for name in "ab"]
        executor.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="shut down"):
            executor.submit(functions.double, 1)
        (outbox / "go").touch()
        assert [future.result() for future in futures] == ["a", "b"]
        executor.shutdown()


def test_a_shutdown_can_cancel_what_waits(sandbox, outbox):
    with nothing_left():
        executor = SandboxExecutor(sandbox_config=sandbox, max_workers=1)
        futures = [executor.submit(functions.meet, name) for name in "abc"]
        until((outbox / "a").exists)
        executor.shutdown(wait=False, cancel_futures=True)
        for future in futures[1:]:
            assert_cancelled(future)
        assert futures[0].running()
        (outbox / "go").touch()
        assert futures[0].result() == "a"
        executor.shutdown()


def test_a_shutdown_of_what_was_never_used():
    with nothing_left():
        SandboxExecutor().shutdown()


def test_threads_may_shut_down_at_once_and_a_callback_too(sandbox):
    with nothing_left():
        executor = SandboxExecutor(sandbox_config=sandbox, max_workers=2)
        future = executor.submit(functions.double, 1)
        future.add_done_callback(lambda _: executor.shutdown())
        threads = [threading.Thread(target=executor.shutdown) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        executor.shutdown()
        assert future.result() == 2


def test_a_shutdown_while_others_submit(sandbox):
    with nothing_left():
        executor = SandboxExecutor(sandbox_config=sandbox, max_workers=2)
        futures: list[concurrent.futures.Future] = []

        def submit() -> None:
            with contextlib.suppress(RuntimeError):
                while True:
                    futures.append(executor.submit(functions.double, 1))

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(futures) > 5)
        executor.shutdown(cancel_futures=True)
        for thread in threads:
            thread.join()
        assert all(future.done() for future in futures)
        assert all(future.cancelled() or future.result() == 2 for future in futures)


def test_one_that_is_dropped_ends_its_zygote_with_a_warning(sandbox):
    with nothing_left():
        executor = SandboxExecutor(sandbox_config=sandbox)
        assert executor.submit(functions.double, 1).result() == 2
        until(lambda: not workers())
        with pytest.warns(ResourceWarning, match="unclosed <Client"):
            del executor


EXITS = {
    "a call that runs": "future = executor.submit(executor_functions.hold_lock)",
    "calls that wait": "futures = [executor.submit(executor_functions.hold_lock) for _ in range(5)]",
    "a thread of a pool that waits for a call": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor()
waiting = pool.submit(executor.submit(executor_functions.hold_lock).result)
""",
    "a thread that is waited for": """
import concurrent.futures, threading
future = executor.submit(executor_functions.hold_lock)
threading.Thread(target=concurrent.futures.wait, args=[[future]]).start()
""",
    "a child that is being made": """
import os, signal, threading
os.kill(executor._client.zygote_pid, signal.SIGSTOP)
futures = [executor.submit(executor_functions.hang, "other") for _ in range(2)]
executor = pyspawner.SandboxExecutor(sandbox_config=sandbox)
executor.submit(executor_functions.hold_lock)
""",
    "a shutdown without waiting": """
executor.submit(executor_functions.hold_lock)
executor.shutdown(wait=False)
""",
}


@pytest.mark.parametrize("how", EXITS)
@pytest.mark.parametrize("end", ["", "sys.exit(7)", "1 / 0", "import os; os.kill(os.getpid(), 2)"])
def test_the_interpreters_end_is_the_end_of_all_calls(how, end, outbox, tmp_path):
    source = f"""
import executor_functions, pathlib, time
sandbox = pyspawner.SandboxConfig(mounts=(pyspawner.Bind({str(outbox)!r}, "/out", writable=True),))
if __name__ == "__main__":
    executor = pyspawner.SandboxExecutor(sandbox_config=sandbox, max_workers=2)
    exec({EXITS[how]!r})
    while not pathlib.Path({str(outbox)!r}, "locked").exists():
        time.sleep(0.001)
    print("reached")
    {end}
"""
    ended = run_script(source, tmp_path)
    assert ended.stdout == "reached\n", ended
    assert "Exception" not in ended.stderr, ended
    with open(outbox / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_at_the_interpreters_end_there_is_no_new_one_and_no_new_call(tmp_path):
    ended = run_script(
        """
import atexit, threading, time
executor = pyspawner.SandboxExecutor()

def work():
    while "shut down" not in repr(executor):
        time.sleep(0.001)
    for attempt in (pyspawner.SandboxExecutor, lambda: executor.submit("threading.Event")):
        try:
            attempt()
        except RuntimeError as error:
            print(error)

threading.Thread(target=work).start()
atexit.register(executor.shutdown)
""",
        tmp_path,
    )
    assert (ended.stderr, ended.stdout.splitlines()) == (
        "",
        [
            "there can be no SandboxExecutor at the interpreter's end",
            "the SandboxExecutor is shut down",
        ],
    )


def in_a_fork(work: Callable[[], object]) -> None:
    """Do it in a fork of this process. An error or a hang fails."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(60)
            work()
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_fork_of_the_caller_cannot_use_it(executor):
    def submit() -> None:
        with pytest.raises(RuntimeError, match="another process"):
            executor.submit(functions.double, 1)

    in_a_fork(submit)


@pytest.mark.parametrize("end", ["shutdown", "_abandon_all"])
def test_a_fork_of_the_caller_cannot_end_it(executor, outbox, end):
    future = executor.submit(functions.meet, "name")
    until((outbox / "name").exists)
    in_a_fork(getattr(executor, end))
    (outbox / "go").touch()
    assert future.result() == "name"
    until(lambda: not workers())
    in_a_fork(getattr(executor, end))
    # As another thread may hold it at that moment.
    with executor._lock:
        in_a_fork(getattr(executor, end))
    assert executor.submit(functions.double, 1).result() == 2
