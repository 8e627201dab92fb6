"""``SandboxExecutor``: an executor like others, whose every call has a child of its own; and nothing is left."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import functools
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

import executor_functions as functions
import pyspawner
from pyspawner import Cause, ChildFailed, ChildTimeoutError, RemoteError, SandboxExecutor
from support import children_of_this_process, open_descriptors, visible_directory


@pytest.fixture(scope="module")
def outbox():
    """Where children leave files for a test to find, as ``/out``."""
    with visible_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def sandbox(outbox):
    return pyspawner.SandboxConfig(mounts=(pyspawner.Bind(outbox, "/out", writable=True),))


@pytest.fixture(scope="module")
def executor(sandbox):
    with SandboxExecutor(
        sandbox_config=sandbox, max_workers=3, preload_imports=["executor_functions"]
    ) as executor:
        yield executor


@pytest.fixture(autouse=True)
def empty_outbox(outbox):
    yield
    for file in outbox.iterdir():
        file.unlink()


def printed(future: pyspawner.SandboxFuture) -> bytes:
    assert future.completed is not None
    assert future.completed.stdout == b""
    return future.completed.stderr


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pyspawner-executor"]


@contextlib.contextmanager
def nothing_left():
    def held():
        return sorted(open_descriptors().values()), children_of_this_process(), threading.enumerate()

    before = held()
    yield
    assert held() == before


def run_script(source: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run ``source`` as a program. One that hangs fails."""
    script = directory / "script.py"
    script.write_text(f"import sys; sys.path += {sys.path!r}\nimport pyspawner\n{source}")
    command = [sys.executable, "-W", "error", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# Calls. ---------------------------------------------------------------------------------------------------


def test_a_function_and_its_name_are_the_same(executor):
    assert executor.submit(functions.double, 21).result() == 42
    assert executor.submit("executor_functions.double", 21).result() == 42
    assert executor.submit(math.sqrt, 4).result() == 2, "a built-in one"


def test_arguments_and_keyword_arguments(executor):
    future = executor.submit(functions.echo, 1, "two", three=3, function=4, self=5)
    assert future.result() == [[1, "two"], {"three": 3, "function": 4, "self": 5}]


def test_a_partial_gives_the_function_its_own_timeout(executor):
    partial = functools.partial(functions.wait_beyond, 1, timeout=2)
    assert executor.submit(partial, timeout=60).result() == [1, 2]
    assert executor.submit(functools.partial(functions.wait_beyond, 1), 2).result() == [1, 2]


def test_each_call_has_a_child_of_its_own(executor):
    assert [executor.submit(functions.count_calls).result() for _ in range(3)] == [[1]] * 3


def test_arguments_are_unpickled_in_the_child(executor):
    assert executor.submit(functions.echo, functions.WhereUnpickled()).result() == 1


def test_what_cannot_be_unpickled_is_the_calls_error(executor):
    with pytest.raises(RemoteError, match="ZeroDivisionError: division by zero"):
        executor.submit(functions.echo, functions.NotThere()).result()


def test_what_cannot_be_pickled_is_the_calls_error_and_no_child_is_made(executor):
    future = executor.submit(functions.echo, threading.Lock())
    assert future.done()
    assert not future.running()
    with pytest.raises(TypeError, match="pickle"):
        future.result()
    assert future.completed is None
    assert executor.submit(functions.double, 1).result() == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda: None,
        functions.nested(),
        functions.Callable().method,
        functions.Callable.method,
        functools.partial(lambda: None),
        functools.wraps(functions.double)(lambda: None),
    ],
)
def test_a_function_that_no_child_can_import_is_refused(executor, function):
    with pytest.raises(ValueError, match="a child cannot import"):
        executor.submit(function)


@pytest.mark.parametrize("function", [functions.Callable(), 3, None, b"math.sqrt", [].append])
def test_what_is_no_function_is_refused(executor, function):
    with pytest.raises(TypeError, match="not a function"):
        executor.submit(function)


@pytest.mark.parametrize("name", ["", "sqrt", "math.", ".sqrt", "math..sqrt", "math.sqrt()", "a b.c", "m.\0"])
def test_what_is_no_full_name_is_refused(executor, name):
    with pytest.raises(ValueError, match=r"package\.module\.function"):
        executor.submit(name)


def test_a_function_of_main_is_refused_and_can_be_named(tmp_path):
    ended = run_script(
        """
def double(number):
    return 2 * number

if __name__ == "__main__":
    with pyspawner.SandboxExecutor(preload_imports=["script"]) as executor:
        for function in (double, "__main__.double"):
            try:
                executor.submit(function, 21)
            except ValueError as error:
                print(error)
        print(executor.submit("script.double", 21).result())
""",
        tmp_path,
    )
    refused = "a child cannot import 'double' of __main__: its __main__ is another one. "
    assert ended.stdout.count(refused) == 2, ended
    assert ended.stdout.endswith("\n42\n"), ended


@pytest.mark.parametrize("name", ["no_such_module.function", "math.no_such_function"])
def test_a_name_that_leads_nowhere_is_the_calls_error(executor, name):
    with pytest.raises(RemoteError, match=r"ModuleNotFoundError: .* preload_imports|AttributeError"):
        executor.submit(name).result()


# What becomes of a call. ----------------------------------------------------------------------------------


def test_an_exception_comes_as_text(executor):
    future = executor.submit(functions.fail)
    with pytest.raises(RemoteError) as raised:
        future.result()
    error = raised.value
    assert (error.type_name, error.message) == ("ValueError", "no such luck")
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert error.traceback.endswith("ValueError: no such luck\n")
    assert "in fail\n" in error.traceback
    assert "_executor_child" not in error.traceback, "our own frame"
    assert str(error).startswith("ValueError: no such luck\n\nIn the child:\nTraceback")
    assert error.completed is future.completed
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_exceptions_class_is_a_name_and_is_not_made(executor):
    with pytest.raises(RemoteError) as raised:
        executor.submit(functions.fail_in_particular).result()
    assert raised.value.type_name == "executor_functions.Particular"
    assert functions.Particular.made == 0


@pytest.mark.parametrize(
    ("source", "type_name"),
    [
        ("sys.exit(3)", "SystemExit"),
        ("sys.exit()", "SystemExit"),
        ("signal.raise_signal(2)", "KeyboardInterrupt"),
        ("bytes(2**62)", "MemoryError"),
    ],
)
def test_an_exception_of_any_kind_is_one_of_the_function(executor, source, type_name):
    with pytest.raises(RemoteError) as raised:
        executor.submit(functions.evaluate, source).result()
    assert raised.value.type_name == type_name


@pytest.mark.parametrize(
    ("source", "returncode", "cause"),
    [
        ("os._exit(3)", 3, Cause.EXITED),
        ("__import__('ctypes').string_at(0)", -signal.SIGSEGV, Cause.SIGNALED),
        ("os.setuid(0)", -signal.SIGSYS, Cause.SIGNALED),
    ],
)
def test_a_child_that_dies(executor, source, returncode, cause):
    future = executor.submit(functions.evaluate, source)
    with pytest.raises(ChildFailed) as raised:
        future.result()
    completed = raised.value.completed
    assert (completed.returncode, completed.cause) == (returncode, cause)
    assert completed is future.completed
    assert not isinstance(raised.value, TimeoutError)


def test_what_is_printed_is_kept_apart_from_the_result(executor):
    future = executor.submit(functions.talk)
    assert future.result() == "returned"
    assert printed(future) == b"printed\ncomplained\nwritten\nof a subprocess\n"


def test_what_is_printed_has_a_limit(sandbox):
    with SandboxExecutor(sandbox_config=sandbox, max_output=10) as executor:
        future = executor.submit(functions.talk, 5_000_000)
        assert future.result() == "returned"
        assert printed(future) == b"printed\nco"
        assert future.completed is not None
        everything = len(b"printed\ncomplained\nwritten\nof a subprocess\n") + 5_000_000
        assert future.completed.stderr_dropped == everything - 10


def test_an_error_has_what_was_printed_before(executor):
    with pytest.raises(RemoteError) as raised:
        executor.submit(functions.evaluate, "print('before') or 1 / 0").result()
    assert raised.value.completed.stderr == b"before\n"


def test_a_call_that_takes_too_long(executor):
    with nothing_left():
        future = executor.submit(functions.hang, "name", timeout=0.1)
        with pytest.raises(ChildTimeoutError) as raised:
            future.result()
        until(lambda: not workers())
    assert isinstance(raised.value, TimeoutError)
    assert isinstance(raised.value, concurrent.futures.TimeoutError)
    assert isinstance(raised.value, ChildFailed)
    assert raised.value.completed.cause is Cause.TIMED_OUT
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_the_executors_timeout_is_for_calls_without_one(sandbox):
    with SandboxExecutor(sandbox_config=sandbox, timeout=0) as executor:
        with pytest.raises(ChildTimeoutError):
            executor.submit(functions.hang, "name").result()
        assert executor.submit(functions.double, 1, timeout=60).result() == 2
        assert executor.submit(functions.double, 1, timeout=math.inf).result() == 2


@pytest.mark.parametrize("timeout", ["1", b"1", [1]])
def test_a_timeout_is_a_number(executor, timeout):
    with pytest.raises(TypeError):
        executor.submit(functions.double, 1, timeout=timeout)


# Many calls. ----------------------------------------------------------------------------------------------


def test_no_more_than_max_workers_run_at_once(executor, outbox):
    futures = [executor.submit(functions.meet, str(number)) for number in range(7)]
    until(lambda: len(list(outbox.iterdir())) == 3)
    assert [future.running() for future in futures] == [True] * 3 + [False] * 4
    assert ["running" in repr(future) for future in futures] == [True] * 3 + [False] * 4
    assert repr(executor) == "<SandboxExecutor: 3 running, 4 waiting>"
    assert len(workers()) == 3
    (outbox / "go").touch()
    assert [future.result() for future in futures] == [str(number) for number in range(7)]
    until(lambda: not workers())


def test_many_threads_may_submit(executor):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(lambda n: executor.submit(functions.double, n), range(64)))
    assert [future.result() for future in futures] == [2 * n for n in range(64)]


def test_map_keeps_the_order(executor):
    assert list(executor.map(functions.echo, "abcdef")) == list("abcdef")
    assert list(executor.map(pow, [2, 3], [3, 2])) == [8, 9]


def test_maps_timeout_ends_the_children(executor):
    with nothing_left():
        results = executor.map(functions.hang, "abcdef", timeout=0.2)
        with pytest.raises(concurrent.futures.TimeoutError) as raised:
            next(results)
        assert not isinstance(raised.value, ChildTimeoutError)
        until(lambda: not workers())


def test_maps_first_error_ends_the_other_children(executor, outbox):
    with nothing_left():
        results = executor.map(functions.evaluate, ["1 / 0", "threading.Event().wait()"])
        with pytest.raises(RemoteError):
            next(results)
        until(lambda: not workers())


def test_as_completed_and_wait(executor, outbox):
    slow = executor.submit(functions.meet, "slow")
    fast = executor.submit(functions.double, 1)
    assert concurrent.futures.wait([slow, fast], return_when="FIRST_COMPLETED") == ({fast}, {slow})
    completed = concurrent.futures.as_completed([slow, fast])
    assert next(completed) is fast
    (outbox / "go").touch()
    assert next(completed) is slow


# Cancelling. ----------------------------------------------------------------------------------------------


def assert_cancelled(future: concurrent.futures.Future) -> None:
    assert future.cancelled()
    assert future.done()
    assert not future.running()
    assert concurrent.futures.wait([future], timeout=0).done == {future}
    assert list(concurrent.futures.as_completed([future], timeout=60)) == [future]
    with pytest.raises(CancelledError):
        future.result()


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


# Shutting down. -------------------------------------------------------------------------------------------


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


def test_a_fork_of_the_caller_can_neither_use_it_nor_end_it(executor, outbox):
    future = executor.submit(functions.meet, "name")
    until((outbox / "name").exists)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException), executor:
            try:
                executor.submit(functions.double, 1)
            except RuntimeError as error:
                SandboxExecutor._abandon_all()
                os._exit(0 if "another process" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (outbox / "go").touch()
    assert future.result() == "name"


# What goes wrong. -----------------------------------------------------------------------------------------


def test_a_spawn_that_fails_is_the_error_of_its_call_alone(directory, outbox):
    """An upper serves one child at a time."""
    (directory / "lower").mkdir()
    (directory / "upper").mkdir()
    mounts = (
        pyspawner.Bind(outbox, "/out", writable=True),
        pyspawner.Overlay("/overlay", lower=directory / "lower", upper=directory / "upper"),
    )
    with SandboxExecutor(sandbox_config=pyspawner.SandboxConfig(mounts=mounts), max_workers=2) as executor:
        first = executor.submit(functions.meet, "first")
        until((outbox / "first").exists)
        second = executor.submit(functions.double, 1)
        with pytest.raises(pyspawner.SandboxError):
            second.result()
        assert second.completed is None
        assert first.running()
        (outbox / "go").touch()
        assert first.result() == "first"
        assert executor.submit(functions.double, 1).result() == 2


def test_a_zygote_that_dies_leaves_running_calls_alone(sandbox, outbox):
    with SandboxExecutor(sandbox_config=sandbox, max_workers=2) as executor:
        running = executor.submit(functions.meet, "name")
        until((outbox / "name").exists)
        os.kill(executor._client.zygote_pid, signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(pyspawner.ZygoteDiedError):
                executor.submit(functions.double, 1).result()
        (outbox / "go").touch()
        assert running.result() == "name"


def test_where_the_system_has_no_more_threads(executor, outbox, monkeypatch):
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        executor.submit(functions.touch, "never")
    monkeypatch.undo()
    first = executor.submit(functions.meet, "first")
    until((outbox / "first").exists)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    second = executor.submit(functions.double, 1)
    assert not second.running()
    (outbox / "go").touch()
    assert (first.result(), second.result()) == ("first", 2)
    assert not (outbox / "never").exists()


BAD_SETTINGS = [
    ({"max_workers": 0}, ValueError, "max_workers must be at least 1"),
    ({"max_workers": "2"}, TypeError, "integer"),
    ({"max_result_bytes": -1}, ValueError, "max_result_bytes must be at least 0"),
    ({"max_output": -1}, ValueError, "max_output must be at least 0"),
    ({"timeout": "1"}, TypeError, "str"),
    ({"sandbox_config": None}, TypeError, "must be a SandboxConfig"),
    ({"environment": {"A": 1}}, TypeError, "environment"),
    ({"preload_imports": ["no_such_module"]}, pyspawner.ZygoteStartError, "no_such_module"),
    ({"executable": "/bin/false"}, pyspawner.ZygoteStartError, "exit"),
]


@pytest.mark.parametrize(("settings", "error", "said"), BAD_SETTINGS)
def test_settings_that_make_no_sense_are_refused_and_leave_nothing(settings, error, said):
    with nothing_left(), pytest.raises(error, match=said):
        SandboxExecutor(**settings)


def test_settings_go_to_the_client_and_the_sandbox(outbox):
    with SandboxExecutor(environment={"NAME": "value"}, preload_imports=["decimal"]) as executor:
        assert executor.submit(functions.evaluate, "dict(os.environ)").result() == {"NAME": "value"}
        assert executor.submit(functions.evaluate, "'decimal' in sys.modules").result() is True
        assert executor.submit(functions.evaluate, "os.path.exists('/out')").result() is False
        assert executor._max_workers == len(os.sched_getaffinity(0))


def test_without_namespaces(tmp_path):
    sandbox = pyspawner.SandboxConfig.without_namespaces()
    with SandboxExecutor(sandbox_config=sandbox, preload_imports=["executor_functions"]) as executor:
        assert executor.submit(functions.talk).result() == "returned"
        with pytest.raises(ChildTimeoutError):
            executor.submit(functions.evaluate, "threading.Event().wait()", timeout=0.1).result()


def test_in_a_root_of_ones_own(directory):
    """The functions are preloaded: there is no Python there."""
    sandbox = pyspawner.SandboxConfig(chroot_dir=directory)
    with SandboxExecutor(sandbox_config=sandbox, preload_imports=["executor_functions"]) as executor:
        assert executor.submit(functions.evaluate, "os.listdir('/')").result() == []
        with pytest.raises(RemoteError, match="no such luck"):
            executor.submit(functions.fail).result()


# asyncio. -------------------------------------------------------------------------------------------------


def test_under_asyncio(executor, outbox):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, functions.double, 21) == 42
        with pytest.raises(RemoteError):
            await loop.run_in_executor(executor, functions.fail)
        assert await asyncio.wrap_future(executor.submit(functions.double, 1, timeout=60)) == 2
        futures = [loop.run_in_executor(executor, functions.double, n) for n in range(8)]
        assert await asyncio.gather(*futures) == [2 * n for n in range(8)]

    asyncio.run(main())


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
