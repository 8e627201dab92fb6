"""``SandboxExecutor``: an executor like others, whose every call has a child of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import math
import os
import pickle
import signal
import threading

import pytest

import executor_functions as functions
import pyspawner
from executor_support import nothing_left, printed, run_script, until, workers
from pyspawner import Cause, ChildFailed, ChildTimeoutError, RemoteError, SandboxExecutor

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


def test_calls_have_warm_children_that_have_run_warm_up():
    with SandboxExecutor(
        preload_imports=["executor_functions"], warm_children=1, warm_up="executor_functions.count_calls"
    ) as executor:
        assert executor.submit(functions.count_calls).result() == [1], "the first is cold"
        until(lambda: executor._client.parked == 1)
        assert executor.submit(functions.count_calls).result() == [1, 1], "warm_up was the first call"


def test_a_child_is_called_like_its_function(executor):
    name = executor.submit(functions.evaluate, "Path('/proc/self/cmdline').read_bytes()").result()
    assert name.rstrip(b"\0") == b"executor_functions.evaluate"


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


@pytest.mark.parametrize("name", ["no_such_module.f", "no_such_package.module.f", "math.no_such_function"])
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
        ("os.setuid(0)", -signal.SIGSYS, Cause.BLOCKED_SYSCALL),
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


def test_where_somebody_else_reaps_the_child(executor):
    """The kernel does, where SIGCHLD is ignored. The error holds no descriptor of the child."""
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with nothing_left():
            error = executor.submit(functions.double, 1).exception()
            until(lambda: not workers())
    finally:
        signal.signal(signal.SIGCHLD, previous)
    assert isinstance(error, ChildProcessError)


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
