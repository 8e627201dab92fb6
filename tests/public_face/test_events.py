"""``on_event``, the logger, and ``restart``: operators see what happens, and a dead zygote is no end."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

import pyspawner
from pyspawner import Cause, ZygoteDiedError, ZygoteStartError, events
from support import SANDBOX, children_of_this_process, spawn


@pytest.fixture
def observed():
    """A client that restarts, and its events."""
    seen: list[events.Event] = []
    with pyspawner.Client(child_main="support.run_source", restart=True, on_event=seen.append) as client:
        yield client, seen
    # The exceptions in it hold on to what they came through.
    seen.clear()


def kill_zygote(client):
    """Kill it, and wait until it is dead."""
    pidfd = os.pidfd_open(client.zygote_pid)
    os.kill(client.zygote_pid, signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    os.close(pidfd)


def kinds(seen):
    return [type(event).__name__ for event in seen]


# Events. --------------------------------------------------------------------------------------------------


def test_a_childs_life_is_told(observed):
    client, seen = observed
    child = client.spawn_child(["raise SystemExit(7)", {}], process_name="seven", sandbox_config=SANDBOX)
    child.communicate(timeout=60)
    started, spawned, ended = seen
    assert (started.pid, started.restarts, started.seconds > 0) == (client.zygote_pid, 0, True)
    assert (spawned.pid, spawned.process_name, spawned.seconds > 0) == (child.pid, "seven", True)
    assert (ended.pid, ended.process_name, ended.returncode, ended.cause) == (
        child.pid,
        "seven",
        7,
        Cause.EXITED,
    )
    assert ended.usage.wall_seconds > 0


@pytest.mark.parametrize("how", ["communicate", "wait", "poll", "end of a block"])
def test_an_end_is_told_once_by_whoever_finds_it(observed, how):
    client, seen = observed
    with spawn(client, "import sys; sys.stdin.read()") as child:
        assert kinds(seen) == ["ZygoteStarted", "ChildSpawned"]
        if how != "end of a block":
            child.kill()
        if how == "communicate":
            child.communicate()
        if how == "wait":
            child.wait()
        while how == "poll" and child.poll() is None:
            pass
    child.poll()
    child.communicate()
    assert kinds(seen) == ["ZygoteStarted", "ChildSpawned", "ChildEnded"]
    assert (seen[-1].returncode, seen[-1].cause) == (-signal.SIGKILL, Cause.KILLED)


def test_a_timeout_is_told_as_one(observed):
    client, seen = observed
    spawn(client, "import threading; threading.Event().wait()").communicate(timeout=0.1)
    assert seen[-1].cause is Cause.TIMED_OUT


def test_a_spawn_that_fails_is_told(observed, tmp_path):
    client, seen = observed
    sandbox = pyspawner.SandboxConfig(chroot_dir=tmp_path / "missing")
    with pytest.raises(pyspawner.SandboxError) as caught:
        client.spawn_child(process_name="lost", sandbox_config=sandbox)
    assert kinds(seen) == ["ZygoteStarted", "SpawnFailed"]
    assert (seen[-1].error, seen[-1].process_name) == (caught.value, "lost")


def test_what_on_event_raises_is_logged_and_harms_nobody(caplog):
    def fail(event):
        raise RuntimeError("of no use")

    with pyspawner.Client(child_main="support.run_source", on_event=fail) as client:
        assert spawn(client, "print('works')").communicate(timeout=60).stdout == b"works\n"
    assert [record.levelno for record in caplog.records if record.name == "pyspawner"] == [logging.ERROR] * 3
    assert "of no use" in caplog.text
    # The exceptions in it hold on to what they came through.
    caplog.clear()


def test_on_event_may_use_the_child():
    results = []

    def use(event):
        if isinstance(event, events.ChildEnded):
            results.append((child.returncode, child.communicate().stdout))

    with pyspawner.Client(child_main="support.run_source", on_event=use) as own:
        child = spawn(own, "print('out')")
        child.communicate(timeout=60)
    assert results == [(0, b"out\n")]


def test_the_logger_gets_them_too(caplog):
    with (
        caplog.at_level(logging.DEBUG, logger="pyspawner"),
        pyspawner.Client(child_main="support.run_source", restart=True) as client,
    ):
        spawn(client, "").communicate(timeout=60)
        kill_zygote(client)
        spawn(client, "").communicate(timeout=60)
    logged = [(record.levelname, record.getMessage().partition("(")[0]) for record in caplog.records]
    life = [("DEBUG", "ChildSpawned"), ("DEBUG", "ChildEnded")]
    death = [("WARNING", "ZygoteDied"), ("WARNING", "ZygoteStarted")]
    assert logged == [("DEBUG", "ZygoteStarted"), *life, *death, *life]


# Restart. -------------------------------------------------------------------------------------------------


def test_the_next_spawn_starts_a_new_zygote(observed):
    client, seen = observed
    dead = client.zygote_pid
    kill_zygote(client)
    assert spawn(client, "print('works')").communicate(timeout=60).stdout == b"works\n"
    assert client.zygote_pid != dead
    assert kinds(seen) == ["ZygoteStarted", "ZygoteDied", "ZygoteStarted", "ChildSpawned", "ChildEnded"]
    assert (seen[1].pid, "killed by signal 9" in seen[1].message, seen[2].restarts) == (dead, True, 1)


def test_without_it_the_death_is_final():
    seen: list[events.Event] = []
    with pyspawner.Client(child_main="support.run_source", on_event=seen.append) as client:
        kill_zygote(client)
        for _ in range(2):
            with pytest.raises(ZygoteDiedError, match="make a new Client"):
                spawn(client, "")
    assert kinds(seen) == ["ZygoteStarted", "ZygoteDied", "SpawnFailed", "SpawnFailed"]


def test_children_of_the_dead_zygote_go_on(observed):
    client, _ = observed
    child = spawn(client, "print(input())")
    kill_zygote(client)
    spawn(client, "").communicate(timeout=60)
    assert child.communicate(b"still here\n", timeout=60).stdout == b"still here\n"


def test_many_threads_get_one_new_zygote(observed):
    client, seen = observed
    kill_zygote(client)
    outputs: list[bytes] = []
    work = lambda: outputs.append(spawn(client, "print('works')").communicate(timeout=60).stdout)  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == [b"works\n"] * 8
    assert kinds(seen).count("ZygoteStarted") == 2
    assert kinds(seen).count("ZygoteDied") == 1


def spawn_as_soon_as_allowed(client):
    """Spawn; where a new zygote may not start yet, ask again."""
    refusals = 0
    while True:
        try:
            return client.spawn_child(sandbox_config=SANDBOX), refusals
        except ZygoteDiedError as error:
            assert "; a new one may start in " in str(error)  # noqa: PT017
            refusals += 1


def test_a_new_zygote_that_does_not_start_is_an_error_and_the_next_one_has_to_wait(tmp_path, monkeypatch):
    module = tmp_path / "changing_module.py"
    module.write_text("def main(): print('works')\n")
    monkeypatch.syspath_prepend(tmp_path)
    # No bytecode, which could look as new as its source.
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    with pyspawner.Client(child_main="changing_module.main", environment=environment, restart=True) as client:
        kill_zygote(client)
        module.write_text("raise RuntimeError('broken')\n")
        # The pause doubles, and grows beyond what a start takes.
        for _ in range(4):
            with pytest.raises(ZygoteStartError, match="broken"):
                spawn_as_soon_as_allowed(client)
        module.write_text("def main(): print('works')\n")
        child, refusals = spawn_as_soon_as_allowed(client)
        assert child.communicate(timeout=60).stdout == b"works\n"
        assert refusals > 0


def test_nothing_is_left_of_all_of_them():
    before = children_of_this_process()
    with pyspawner.Client(child_main="support.run_source", restart=True) as client:
        for _ in range(3):
            spawn(client, "").communicate(timeout=60)
            kill_zygote(client)
        spawn(client, "").communicate(timeout=60)
    assert children_of_this_process() == before
    with pytest.raises(RuntimeError, match="closed"):
        spawn(client, "")
