"""``pyspawner.aio``: at a timeout the child is killed, and nothing else looks like one."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from aio_support import HANG, in_every_loop, spawn
from pyspawner import Cause
from support import LISTEN, READY

STUBBORN = {
    "sleeps": HANG,
    "ignores SIGTERM": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + HANG,
    "floods": READY + "\nwhile True: sys.stdout.write('x' * 65_536)",
    "floods from a daemon": READY
    + "import os\nif not os.fork():\n  os.setsid()\n  if not os.fork():\n    while True: os.write(1, bytes(65_536))\nwhile True: pass",
    "closes its outputs": READY + "import os; os.close(1); os.close(2)\nwhile True: pass",
    "is stopped by a descendant": READY
    + "import os, signal, time\nif not os.fork(): os.kill(1, signal.SIGSTOP)\ntime.sleep(1000)",
}


@pytest.mark.parametrize("how", STUBBORN)
@in_every_loop
async def test_at_the_timeout_the_child_is_killed(client, how):
    child = await spawn(client, STUBBORN[how])
    assert await child.stdout.readline() == b"ready\n"
    completed = await child.communicate(bytes(1_000_000), timeout=0.2)
    assert (completed.returncode, completed.cause) == (-signal.SIGKILL, Cause.TIMED_OUT)


@pytest.mark.parametrize("timeout", [0, -1, 1e-9])
@in_every_loop
async def test_what_was_written_before_the_timeout_is_returned(client, timeout):
    child = await spawn(client, HANG)
    assert await child.stdout.readexactly(1) == b"r"
    completed = await child.communicate(timeout=timeout)
    assert (completed.stdout, completed.cause) == (b"eady\n", Cause.TIMED_OUT)


@pytest.mark.parametrize("timeout", [1e8, 1e10, 1e300, float("inf"), float("nan")])
@in_every_loop
async def test_a_time_that_no_clock_holds_never_comes(client, timeout):
    assert (await (await spawn(client, "print('done')")).communicate(timeout=timeout)).stdout == b"done\n"


@in_every_loop
async def test_a_child_that_has_ended_before_the_timeout_has_not_timed_out(client):
    child = await spawn(client, "print('done')")
    # In this thread, so that the loop does not see it.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    completed = await child.communicate(timeout=0)
    assert (completed.stdout, completed.returncode, completed.cause) == (b"done\n", 0, Cause.EXITED)


@in_every_loop
async def test_a_child_that_ends_at_the_very_timeout_has_not_timed_out(client):
    source = "import signal; signal.signal(signal.SIGUSR1, lambda *_: os._exit(5));" + LISTEN
    child = await spawn(client, source)
    assert await child.stdout.readline() == b"ready\n"

    def kill_too_late() -> None:
        child.send_signal(signal.SIGUSR1)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        del child.kill
        child.kill()

    child.kill = kill_too_late
    completed = await child.communicate(timeout=0)
    assert (completed.returncode, completed.cause) == (5, Cause.EXITED)


@in_every_loop
async def test_a_child_that_ends_by_itself_has_not_timed_out_however_it_looks(client):
    for source in ("import os; os.kill(os.getpid(), 9); os._exit(0)", "import os; os._exit(137)"):
        assert (await (await spawn(client, source)).communicate(timeout=60)).cause is Cause.EXITED
    source = "import os, time\nif not os.fork(): os.kill(1, 9)\ntime.sleep(0.1); os.setuid(0)"
    assert (await (await spawn(client, source)).communicate(timeout=60)).cause is Cause.BLOCKED_SYSCALL


@in_every_loop
async def test_the_timeout_of_a_second_task_ends_the_child_too(client):
    child = await spawn(client, HANG)
    patient = asyncio.ensure_future(child.communicate())
    assert (await child.communicate(timeout=0.1)).cause is Cause.TIMED_OUT
    assert await patient is await child.communicate()
