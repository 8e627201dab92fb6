"""Kinds of children, by how they are started and how they end: each function starts one, and sees what it must see.

``moment``, between 0 and 1, is for kinds that leave to chance when something happens.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import operator
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import aio_support
import executor_functions as functions
from aio_support import ECHO, HANG, turns
from executor_support import assert_cancelled
from pyspawner import (
    Bind,
    Cause,
    ChildFailed,
    ChildTimeoutError,
    Client,
    Completed,
    Limits,
    NetworkConfig,
    RemoteError,
    ResultError,
    SandboxConfig,
    SandboxError,
    SandboxExecutor,
    SandboxFuture,
    Tmpfs,
    aio,
)
from support import LISTEN, READY, spawn

PATIENCE = 120  # In seconds, for what an idle machine does at once.
SOON = 0.05  # What never ends is ended then.

NUMBERS = itertools.count(1)

# Children of a Client. ------------------------------------------------------------------------------------

DAEMON = """
import os, signal
ready, tell = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        os.write(tell, b"x")
        while True: signal.pause()
    os._exit(0)
os.wait()
os.read(ready, 1)
"""
ORPHANS = """
import os, signal
ready, tell = os.pipe()
for _ in range(3):
    if not os.fork():
        os.write(tell, b"x")
        while True: signal.pause()
    os.read(ready, 1)
"""
THREADS = """
import os, threading
for _ in range(8):
    threading.Thread(target=os.write, args=(1, b"x")).start()
"""
ENDLESS_THREADS = """
import threading
for _ in range(8):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""
OBEDIENT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5));" + LISTEN
FLOOD = "import os\nwhile True: os.write(1, bytes(65_536))"


def networked() -> SandboxConfig:
    """Children that live at the same time need networks of their own."""
    number = next(NUMBERS)
    subnet = f"10.{number >> 8}.{number & 0xFF}"
    return SandboxConfig(network=NetworkConfig(f"outside{number}", "inside", f"{subnet}.1", f"{subnet}.2"))


def leave_alone(child: object) -> None:
    """Let it come to its end."""


@dataclass(frozen=True)
class End:
    """A child, what its caller does once it is ready, and what the caller must be told."""

    source: str
    returncode: int = 0
    cause: Cause = Cause.EXITED
    stdout: bytes = b""
    dropped: int = 0
    complaint: bytes = b""
    action: Callable[[Any], object] = leave_alone
    sandbox: Callable[[], SandboxConfig] = SandboxConfig
    conversation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def says_that_it_is_ready(self) -> bool:
        return READY in self.source

    def check(self, completed: Completed) -> None:
        told = completed.returncode, completed.cause, completed.stdout, completed.stdout_dropped
        assert told == (self.returncode, self.cause, self.stdout, self.dropped), completed
        assert self.complaint in completed.stderr, completed
        assert self.complaint or not completed.stderr, completed


killed = functools.partial(End, returncode=-signal.SIGKILL)
kill, terminate = operator.methodcaller("kill"), operator.methodcaller("terminate")

ENDS = {
    "exits": End("print('done')", stdout=b"done\n"),
    "exits with code 3": End("raise SystemExit(3)", 3),
    "raises": End("1 / 0", 1, Cause.EXCEPTION, complaint=b"ZeroDivisionError: division by zero\n"),
    "crashes": End("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV, Cause.SIGNALED),
    "is killed": killed(HANG, cause=Cause.KILLED, action=kill),
    "is killed with all that it has started": killed(ORPHANS + HANG, cause=Cause.KILLED, action=kill),
    "ends when it is asked to": End(OBEDIENT, 5, action=terminate),
    "does not end when it is asked to": killed(
        HANG, cause=Cause.TIMED_OUT, action=terminate, conversation={"timeout": SOON}
    ),
    "times out": killed(HANG, cause=Cause.TIMED_OUT, conversation={"timeout": SOON}),
    "uses its CPU time": killed(
        "while True: pass",
        cause=Cause.CPU_TIME,
        sandbox=lambda: SandboxConfig(limits=Limits(cpu_seconds=0.1)),
    ),
    "wants too much memory": End(
        "bytearray(1 << 30)",
        1,
        Cause.EXCEPTION,
        complaint=b"MemoryError\n",
        sandbox=lambda: SandboxConfig(limits=Limits(memory_bytes=1 << 28)),
    ),
    "makes a blocked system call": End(
        "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
        -signal.SIGSYS,
        Cause.BLOCKED_SYSCALL,
        complaint=b"pyspawner: blocked system call ptrace\n",
    ),
    "writes too much": End(
        "import sys; sys.stdout.write('x' * 3_000_000)",
        stdout=b"x" * 1_000,
        dropped=2_999_000,
        conversation={"max_output": 1_000},
    ),
    "reads all": End(ECHO, stdout=bytes(200_000), conversation={"input": bytes(200_000)}),
    "reads nothing": End("", conversation={"input": bytes(1_000_000)}),
    "leaves a daemon": End(DAEMON),
    "leaves orphans": End(ORPHANS),
    "has threads": End(THREADS, stdout=b"x" * 8),
    "leaves threads": End(ENDLESS_THREADS),
    "has mounts": End(
        "", sandbox=lambda: SandboxConfig(mounts=(Tmpfs("/mnt"), Bind("/usr/share", "/media")))
    ),
    "has a network": End(
        "import socket; print(socket.if_nametoindex('inside') > 0)",
        stdout=b"True\n",
        sandbox=networked,
    ),
    "has no namespaces": End("print('done')", stdout=b"done\n", sandbox=SandboxConfig.without_namespaces),
}

ROOTLESS = SandboxConfig(chroot_dir=Path("/no/such/directory"))

REFUSED: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "has no root": (SandboxError, {"sandbox": ROOTLESS}),
    "has nothing to mount": (
        SandboxError,
        {"sandbox": SandboxConfig(mounts=(Tmpfs("/mnt"), Bind("/no/such/directory", "/media")))},
    ),
    "has an interface with a long name": (
        ValueError,
        {"sandbox": SandboxConfig(network=NetworkConfig("x" * 16))},
    ),
    "has args that cannot be pickled": (TypeError, {"lock": threading.Lock()}),
}


def see_its_end(end: End, client: Client, moment: float) -> None:
    child = spawn(client, end.source, sandbox=end.sandbox())
    if end.says_that_it_is_ready:
        assert child.stdout.readline() == b"ready\n"
    end.action(child)
    end.check(child.communicate(**{"timeout": PATIENCE, **end.conversation}))


def see_it_refused(name: str, client: Client, moment: float) -> None:
    error, options = REFUSED[name]
    with pytest.raises(error):
        spawn(client, "", **options)


def drop(client: Client, moment: float) -> None:
    with spawn(client, HANG) as child:
        child.stdin.write(b"never read")
    assert child.returncode == -signal.SIGKILL


def drop_in_a_flood(client: Client, moment: float) -> None:
    with spawn(client, FLOOD) as child:
        assert child.stdout.read(1_000_000) == bytes(1_000_000)
    assert child.returncode == -signal.SIGKILL


def wait_by_hand(client: Client, moment: float) -> None:
    with spawn(client, "raise SystemExit(3)") as child:
        assert child.wait() == (child.pid, 3 << 8)


BY_CLIENT: dict[str, Callable[[Client, float], object]] = {
    **{name: functools.partial(see_its_end, end) for name, end in ENDS.items()},
    **{name: functools.partial(see_it_refused, name) for name in REFUSED},
    "is dropped": drop,
    "is dropped in a flood": drop_in_a_flood,
    "is waited for by hand": wait_by_hand,
}

# The same in a loop. --------------------------------------------------------------------------------------


async def see_its_end_in_a_loop(end: End, client: aio.Client, moment: float) -> None:
    child = await aio_support.spawn(client, end.source, sandbox=end.sandbox())
    if end.says_that_it_is_ready:
        assert await child.stdout.readline() == b"ready\n"
    end.action(child)
    end.check(await child.communicate(**{"timeout": PATIENCE, **end.conversation}))


async def see_it_refused_in_a_loop(name: str, client: aio.Client, moment: float) -> None:
    error, options = REFUSED[name]
    with pytest.raises(error):
        await aio_support.spawn(client, "", **options)


async def drop_in_a_loop(client: aio.Client, moment: float) -> None:
    async with await aio_support.spawn(client, HANG) as child:
        child.stdin.write(b"never read")
    assert child.returncode == -signal.SIGKILL


async def drop_in_a_flood_in_a_loop(client: aio.Client, moment: float) -> None:
    async with await aio_support.spawn(client, FLOOD) as child:
        assert await child.stdout.readexactly(1_000_000) == bytes(1_000_000)
    assert child.returncode == -signal.SIGKILL


async def leave_to_the_loop(client: aio.Client, moment: float) -> None:
    await aio_support.spawn(client, HANG)


async def cancel_spawn(client: aio.Client, moment: float) -> None:
    task = asyncio.ensure_future(aio_support.spawn(client, HANG))
    await turns(int(moment * 100))
    task.cancel()
    # It may have been done already.
    with contextlib.suppress(asyncio.CancelledError):
        async with await task:
            pass


async def cancel_communicate(client: aio.Client, moment: float) -> None:
    child = await aio_support.spawn(client, HANG)
    assert await child.stdout.readline() == b"ready\n"
    task = asyncio.ensure_future(child.communicate(bytes(1_000_000)))
    # One that has not begun has nothing to call off.
    await turns(1 + int(moment * 10))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert child.returncode == -signal.SIGKILL
    ENDS["is killed"].check(await child.communicate())


IN_A_LOOP = {
    **{name: functools.partial(see_its_end_in_a_loop, end) for name, end in ENDS.items()},
    **{name: functools.partial(see_it_refused_in_a_loop, name) for name in REFUSED},
    "is dropped": drop_in_a_loop,
    "is dropped in a flood": drop_in_a_flood_in_a_loop,
    "is left to the loop": leave_to_the_loop,
    "is cancelled in spawn_child()": cancel_spawn,
    "is cancelled in communicate()": cancel_communicate,
}

# Calls of an executor. ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Executors:
    usual: SandboxExecutor
    narrow: SandboxExecutor
    """For one call at a time."""
    rootless: SandboxExecutor
    """None of its children can be made."""
    outbox: Path
    """Where children leave files, as ``/out``."""


@dataclass(frozen=True)
class Call:
    """A call, and what the caller must be told: the result or an exception's class, and why the child has ended."""

    function: Callable[..., object]
    args: tuple[Any, ...]
    outcome: object
    cause: Cause | None = Cause.EXITED
    timeout: float = PATIENCE
    executor: str = "usual"


def see_its_result(call: Call, executors: Executors, moment: float) -> None:
    executor: SandboxExecutor = getattr(executors, call.executor)
    future = executor.submit(call.function, *call.args, timeout=call.timeout)
    error = future.exception(PATIENCE)
    told = type(error) if error else future.result(), future.completed and future.completed.cause
    assert told == (call.outcome, call.cause), error


CALLS = {
    "returns": Call(functions.double, (21,), 42),
    "returns much": Call(functions.evaluate, ("bytes(1_000_000)",), bytes(1_000_000)),
    "prints much": Call(functions.talk, (3_000_000,), "returned"),
    "raises": Call(functions.fail, (), RemoteError),
    "returns what cannot be sent": Call(functions.evaluate, ("{1, 2}",), RemoteError),
    "sends what is no result": Call(functions.send, (b"nonsense",), ResultError),
    "exits with code 3": Call(os._exit, (3,), ChildFailed),
    "makes a blocked system call": Call(
        functions.evaluate,
        ("__import__('ctypes').CDLL(None).ptrace(0, 0, 0, 0)",),
        ChildFailed,
        Cause.BLOCKED_SYSCALL,
    ),
    "times out": Call(
        functions.evaluate, ("threading.Event().wait()",), ChildTimeoutError, Cause.TIMED_OUT, SOON
    ),
    "forks": Call(functions.fork_and_return, (), "parent"),
    "has arguments that cannot be pickled": Call(functions.echo, (threading.Lock(),), TypeError, None),
    "has no root": Call(functions.double, (21,), SandboxError, None, executor="rootless"),
}


@contextlib.contextmanager
def endless_call(executor: SandboxExecutor, outbox: Path) -> Iterator[SandboxFuture]:
    """A call that has begun and never ends."""
    fifo = outbox / str(next(NUMBERS))
    os.mkfifo(fifo)
    fifo.chmod(0o622)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    begin_and_hang = f"Path('/out/{fifo.name}').write_text('begun') and threading.Event().wait()"
    future = executor.submit(functions.evaluate, begin_and_hang, timeout=PATIENCE)
    try:
        assert select.select([reader], [], [], PATIENCE)[0], future
        yield future
    finally:
        future.cancel()
        os.close(reader)
        fifo.unlink()


def cancel_while_it_runs(executors: Executors, moment: float) -> None:
    with endless_call(executors.usual, executors.outbox) as future:
        assert future.cancel()
        assert_cancelled(future)


def cancel_while_it_waits(executors: Executors, moment: float) -> None:
    with endless_call(executors.narrow, executors.outbox) as running:
        waiting = executors.narrow.submit(functions.double, 21)
        assert not waiting.running()
        assert waiting.cancel()
        assert_cancelled(waiting)
        assert running.cancel()


def cancel_at_any_moment(executors: Executors, moment: float) -> None:
    future = executors.usual.submit(functions.double, 21)
    with contextlib.suppress(concurrent.futures.TimeoutError):
        future.result(timeout=moment / 50)
    if future.cancel():
        assert_cancelled(future)
    else:
        assert future.result() == 42


def call_what_no_child_can_import(executors: Executors, moment: float) -> None:
    with pytest.raises(ValueError, match="no such function"):
        executors.usual.submit(lambda: None)


def call_several_at_once(executors: Executors, moment: float) -> None:
    assert list(executors.usual.map(functions.double, range(5), timeout=PATIENCE)) == [0, 2, 4, 6, 8]


BY_EXECUTOR: dict[str, Callable[[Executors, float], object]] = {
    **{name: functools.partial(see_its_result, call) for name, call in CALLS.items()},
    "is cancelled while it runs": cancel_while_it_runs,
    "is cancelled while it waits": cancel_while_it_waits,
    "is cancelled at any moment": cancel_at_any_moment,
    "is of a function that no child can import": call_what_no_child_can_import,
    "is one of several": call_several_at_once,
}
