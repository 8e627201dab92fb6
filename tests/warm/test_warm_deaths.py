"""Parked children, their zygote, their caller and its forks end, stop, or are taken away by others, at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pyspawner
from pyspawner import SandboxConfig
from support import SANDBOX, children_of_this_process, communicate, run, run_caller, spawn
from warm_support import await_parked, eventually, parked, state, title, waiting

TESTS = Path(__file__).parent.parent


@pytest.fixture
def prewarmed(by_request):
    by_request.prewarm(SANDBOX, 2)
    return by_request


def test_a_parked_child_that_dies_is_replaced_without_a_request(prewarmed):
    before = waiting()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(waiting() - before) == 2, "two others")
    assert not before & children_of_this_process()
    await_parked(prewarmed, 2)
    assert run(prewarmed, "print('ran')").text == "ran\n"


def test_one_that_was_stopped_holds_up_nobody_and_is_ended(prewarmed):
    before = waiting()
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda pid=pid: state(pid) == "T", "the stop")
    child = spawn(prewarmed, "print('ran')")
    assert child.pid not in before
    assert communicate(child).text == "ran\n"
    eventually(lambda: not before & children_of_this_process(), "the end of the stopped ones")


TRACER = """
import ctypes, os, sys
PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
pids = list(map(int, sys.argv[1:]))
for pid in pids:
    if ptrace(PTRACE_SEIZE, pid, 0, 0) or ptrace(PTRACE_INTERRUPT, pid, 0, 0):
        sys.exit(os.strerror(ctypes.get_errno()))
    os.waitpid(pid, WALL)
print("stopped", flush=True)
# Whichever ends first: nobody else can reap it before.
for _ in pids:
    os.waitpid(-1, WALL)
"""


def test_the_order_of_one_that_a_debugger_holds_is_taken_back_and_carried_out_once(prewarmed):
    """waitid(2) does not show such a stop, so that the order is sent."""
    before = waiting()
    command = [sys.executable, "-c", TRACER, *map(str, before)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"stopped\n"
        source = "import sys; print('ran', sys.stdin.read())"
        outcomes = [communicate(spawn(prewarmed, source), b"once") for _ in range(2)]
        assert [outcome.text for outcome in outcomes] == ["ran once\n"] * 2
        prewarmed.prewarm(SANDBOX, 0)
        assert not before & children_of_this_process()


def test_a_caller_that_reaps_all_its_children_disturbs_nobody(prewarmed):
    stop = threading.Event()

    def reap() -> None:
        while not stop.is_set():
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                stop.wait(0.001)

    reaper = threading.Thread(target=reap)
    reaper.start()
    for _ in range(10):
        await_parked(prewarmed, 2)
        for pid in waiting():
            os.kill(pid, signal.SIGKILL)
        child = spawn(prewarmed, "print('ran')")
        with child.stdin, child.stdout, child.stderr:
            assert child.stdout.read() == b"ran\n"
        eventually(lambda pid=child.pid: pid not in children_of_this_process(), "its end")
    prewarmed.prewarm(SANDBOX, 0)
    stop.set()
    reaper.join()
    assert waiting() == set()


def test_a_caller_that_ignores_sigchld_has_warm_children_too():
    said = run_caller(
        """
        import signal
        from warm_support import *
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(5):
            client.prewarm(SANDBOX, 2)
            there = waiting()
            child = spawn(client, "print('ran')")
            assert child.pid in there
            with child.stdin, child.stdout, child.stderr:
                print(child.stdout.read())
            client.prewarm(SANDBOX, 2)
            killed = waiting().pop()
            os.kill(killed, signal.SIGKILL)
            eventually(lambda: killed not in children_of_this_process(), "its end")
        client.prewarm(SANDBOX, 0)
        assert waiting() == set()
        """
    )
    assert said == "b'ran\\n'\n" * 5


def test_a_dead_zygote_takes_the_parked_ones_with_it(prewarmed):
    os.kill(prewarmed.zygote_pid, signal.SIGKILL)
    eventually(lambda: not waiting(), "the end of the parked ones")
    with pytest.raises(pyspawner.ZygoteDiedError):
        spawn(prewarmed, "")
    with pytest.raises(pyspawner.ZygoteDiedError):
        prewarmed.prewarm(SANDBOX, 1)


def test_a_zygote_that_dies_while_one_is_on_its_way_is_an_error_of_prewarm(by_request):
    os.kill(by_request.zygote_pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (by_request.zygote_pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(pyspawner.ZygoteDiedError):
        by_request.prewarm(SANDBOX, 1)
    killer.join()


class TestRestart:
    @pytest.fixture
    def restarts(self):
        with pyspawner.Client(child_main="support.run_source", restart=True) as client:
            yield client

    def kill_zygote(self, client: pyspawner.Client) -> None:
        os.kill(client.zygote_pid, signal.SIGKILL)
        eventually(lambda: not waiting(), "the end of the parked ones")

    def test_a_new_zygote_has_as_many_parked(self, restarts):
        tmp = SandboxConfig(working_dir=Path("/tmp"))
        restarts.prewarm(SANDBOX, 2)
        restarts.prewarm(tmp, 1)
        restarts.prewarm(SandboxConfig(working_dir=Path("/")), 1)
        restarts.prewarm(SandboxConfig(working_dir=Path("/")), 0)
        self.kill_zygote(restarts)
        assert run(restarts, "print('ran')").text == "ran\n"
        await_parked(restarts, 3)
        there = waiting()
        child = spawn(restarts, "print('warm')", sandbox=tmp)
        assert child.pid in there
        assert communicate(child).text == "warm\n"

    def test_prewarm_itself_starts_a_new_one(self, restarts):
        self.kill_zygote(restarts)
        restarts.prewarm(SANDBOX, 2)
        assert parked(restarts) == 2

    def test_what_prewarm_refuses_is_not_asked_of_the_next_zygote(self, restarts, directory):
        upper = pyspawner.Overlay("/mnt", lower=directory, upper=directory)
        with pytest.raises(ValueError, match="for one at a time"):
            restarts.prewarm(SandboxConfig(mounts=(upper,)), 1)
        self.kill_zygote(restarts)
        assert run(restarts, "print('ran')").text == "ran\n"

    def test_what_cannot_be_parked_is_no_reason_not_to_restart(self, restarts, directory):
        missing = SandboxConfig(mounts=(pyspawner.Bind(directory / "missing", "/mnt"),))
        with pytest.raises(pyspawner.SandboxError):
            restarts.prewarm(missing, 1)
        self.kill_zygote(restarts)
        assert run(restarts, "print('ran')").text == "ran\n"
        (directory / "missing").mkdir()
        await_parked(restarts, 1)


CALLER = """
import json, os, signal, sys
sys.path.insert(0, {tests!r})
import pyspawner
from support import *
from warm_support import *
client = pyspawner.Client(child_main="support.run_source")
client.prewarm(SANDBOX, 3)
print(json.dumps(sorted(waiting())), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "sys.exit(0)", "1/0"])
def test_parked_children_end_with_their_caller(end):
    source = CALLER.format(tests=str(TESTS)) + end
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        there = json.loads(caller.stdout.readline())
        assert len(there) == 3
        caller.stdin.write("\n")
    eventually(lambda: not any(title(pid) for pid in there), "the end of the parked ones")


FORKS = ["os._exit(0)", "client.close()", "del client; gc.collect()", "os.kill(os.getpid(), signal.SIGKILL)"]


@pytest.mark.parametrize("what_it_does", FORKS)
def test_a_fork_of_the_caller_harms_no_parked_child(what_it_does):
    # In a process of its own: a fork of the test's process runs its fixtures' ends.
    said = run_caller(
        f"""
        import gc
        from warm_support import *
        client.prewarm(SANDBOX, 2)
        there = waiting()
        pid = os.fork()
        if pid == 0:
            {what_it_does}
            os._exit(0)
        os.waitpid(pid, 0)
        assert waiting() == there
        child = spawn(client, "print('warm')")
        assert child.pid in there
        print(communicate(child).text)
        """.replace("del client", "del globals()['client']")
    )
    assert said == "warm\n\n"


def test_a_fork_that_lives_on_does_not_keep_the_keeper_busy(by_request):
    """It has the pidfds of parked children too, for as long as it lives."""
    by_request.prewarm(SANDBOX, 2)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    before = waiting()
    for parked_one in before:
        os.kill(parked_one, signal.SIGKILL)
    eventually(lambda: parked(by_request) == 2 and not waiting() & before, "two others")
    assert communicate(spawn(by_request, "print('ran')")).text == "ran\n"
    await_parked(by_request, 2)
    keepers = [
        task
        for task in Path("/proc/self/task").iterdir()
        if (task / "comm").read_text() == "pyspawner-warm\n"
    ]
    assert keepers != []
    asleep = 0

    def rests() -> bool:
        nonlocal asleep
        # The kernel says "running" of a thread that does not wait.
        is_busy = any((keeper / "syscall").read_text().startswith("running") for keeper in keepers)
        asleep = 0 if is_busy else asleep + 1
        return asleep >= 100

    eventually(rests, "a keeper at rest")
    os.close(writer)
    os.waitpid(pid, 0)
