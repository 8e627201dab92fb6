"""``close()`` ends all that is parked and on its way, at whatever moment it comes; the fixtures look for what is left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import pyspawner
from pyspawner import SandboxConfig
from support import SANDBOX, communicate, run, spawn
from warm_support import await_parked, eventually, parked, waiting


def keepers() -> list[str]:
    found = []
    for comm in Path("/proc/self/task").glob("*/comm"):
        try:
            found.append(comm.read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [name for name in found if name == "pyspawner-warm\n"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = len(keepers())
    yield
    assert len(keepers()) <= before
    assert waiting() == set()


def make(**options) -> pyspawner.Client:
    return pyspawner.Client(child_main="support.run_source", **options)


def test_while_it_is_idle():
    client = make(warm_children=3)
    run(client, "")
    await_parked(client, 3)
    client.close()


def test_before_anything_was_asked_for():
    make(warm_children=3).close()


def test_twice():
    client = make()
    client.prewarm(SANDBOX, 1)
    client.close()
    client.close()


@pytest.mark.parametrize("moment", range(10))
def test_while_it_refills(moment):
    client = make(warm_children=10)
    run(client, "")
    eventually(lambda: parked(client) >= moment, "some that are parked")
    client.close()


def test_while_its_zygote_does_not_answer():
    client = make(warm_children=1)
    run(client, "")
    await_parked(client, 1)
    os.kill(client.zygote_pid, 19)
    child = spawn(client, "print('ran')")
    assert communicate(child).text == "ran\n"
    # The keeper waits for a zygote that is stopped.
    client.close()


def test_while_another_thread_waits_for_prewarm():
    client = make(warm_up="warm_ups.hang_in_sandbox")
    errors = []

    def prewarm() -> None:
        try:
            client.prewarm(SANDBOX, 1)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=prewarm)
    thread.start()
    eventually(waiting, "one on its way")
    client.close()
    thread.join()
    assert errors == ["the Client is closed"]


def test_while_threads_spawn():
    """Whoever comes too late is told so; whoever has a child keeps it."""
    client = make(warm_children=2)
    run(client, "")
    outcomes: list[str] = []
    spawned = threading.Barrier(5)

    def spawn_until_closed() -> None:
        spawned.wait()
        while True:
            try:
                child = spawn(client, "print('ran')")
            except RuntimeError as error:
                outcomes.append(str(error))
                return
            assert communicate(child).text == "ran\n"

    threads = [threading.Thread(target=spawn_until_closed) for _ in range(4)]
    for thread in threads:
        thread.start()
    spawned.wait()
    eventually(lambda: parked(client) > 0, "work for all")
    client.close()
    for thread in threads:
        thread.join()
    assert outcomes == ["the Client is closed"] * 4


def test_a_client_that_is_dropped_closes_itself():
    client = make()
    client.prewarm(SANDBOX, 2)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del client


def test_a_core_that_is_dropped_ends_its_children():
    """As where the start of ``Client`` is interrupted after its zygote has started."""
    client = make()
    client.prewarm(SANDBOX, 2)
    zygotes, client._zygotes = client._zygotes, None
    assert zygotes is not None
    zygote = zygotes.current.zygote_pid
    watchdog = zygotes.current.watchdog_pid
    del zygotes
    eventually(lambda: not waiting(), "the end of the parked ones")
    for pid in (zygote, watchdog):
        os.waitpid(pid, 0)


def test_children_that_run_live_on():
    client = make()
    client.prewarm(SandboxConfig(), 1)
    child = spawn(client, "import sys; print(sys.stdin.read())")
    client.close()
    assert communicate(child, b"alive").text == "alive\n"
