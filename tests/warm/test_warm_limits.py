"""Limits of a warm child are those of a cold one, counted from the moment when it is woken."""

from __future__ import annotations

import pytest

import pyspawner
from pyspawner import Cause, Limits, SandboxConfig
from warm_support import cool, spawn_warm

MIB = 1024 * 1024

BURN = """
import os, time
began = time.process_time()
while time.process_time() - began < seconds:
    pass
print("burnt")
"""


@pytest.fixture(scope="module")
def hot():
    """A client whose children use a second and a half of CPU time before they park."""
    with pyspawner.Client(child_main="support.run_source", warm_up="warm_ups.burn") as client:
        client.prewarm(SandboxConfig(), 1)
        cool(client)
        yield client


@pytest.fixture
def one_second(hot):
    sandbox = SandboxConfig(limits=Limits(cpu_seconds=1))
    yield sandbox
    cool(hot, sandbox)


def test_what_warm_up_has_used_does_not_count(hot, one_second):
    completed = spawn_warm(hot, BURN, sandbox=one_second, seconds=0.7).communicate(timeout=60)
    assert (completed.stdout, completed.cause) == (b"burnt\n", Cause.EXITED)


def test_what_the_child_uses_does(hot, one_second):
    completed = spawn_warm(hot, BURN, sandbox=one_second, seconds=60).communicate(timeout=60)
    assert (completed.stdout, completed.cause) == (b"", Cause.CPU_TIME)
    assert completed.usage.wall_seconds < 60
    assert completed.usage.user_seconds + completed.usage.system_seconds >= 1


def test_a_child_that_is_parked_for_long_loses_none_of_its_time(by_request):
    """A parked one waits in the kernel and uses none."""
    sandbox = SandboxConfig(limits=Limits(cpu_seconds=0.5))
    by_request.prewarm(sandbox, 1)
    for _ in range(20):
        # Each of them takes some milliseconds of the time that passes.
        by_request.spawn_child(["", {}], sandbox_config=SandboxConfig()).communicate()
    completed = spawn_warm(by_request, BURN, sandbox=sandbox, seconds=0.2).communicate(timeout=60)
    assert (completed.stdout, completed.cause) == (b"burnt\n", Cause.EXITED)


@pytest.mark.parametrize("cgroup", ["never", "if_delegated"])
def test_memory_is_limited(by_request, cgroup):
    sandbox = SandboxConfig(limits=Limits(cgroup=cgroup, memory_bytes=128 * MIB))
    fits = spawn_warm(by_request, "print(len(bytearray(40 << 20)))", sandbox=sandbox).communicate()
    assert (fits.returncode, fits.cause) == (0, Cause.EXITED), fits
    greedy = spawn_warm(by_request, "print(len(bytearray(400 << 20)))", sandbox=sandbox).communicate()
    assert b"MemoryError" in greedy.stderr
    assert greedy.cause is Cause.EXCEPTION


def test_a_signal_and_a_timeout_are_causes_as_ever(by_request):
    hang = "import threading; threading.Event().wait()"
    assert spawn_warm(by_request, hang).communicate(timeout=0.2).cause is Cause.TIMED_OUT
    child = spawn_warm(by_request, hang)
    child.kill()
    assert child.communicate().cause is Cause.KILLED
    assert spawn_warm(by_request, "1 / 0").communicate().cause is Cause.EXCEPTION
    blocked = spawn_warm(by_request, "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)").communicate()
    assert (blocked.cause, blocked.blocked_syscall) == (Cause.BLOCKED_SYSCALL, "ptrace")


def test_the_time_of_a_child_begins_when_it_is_woken(hot):
    completed = spawn_warm(hot, "").communicate()
    # It was warmed up for a second and a half.
    assert completed.usage.wall_seconds < 1
    cool(hot)
