"""What happens to whom when the zygote, the caller or a thread of the caller ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import textwrap
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest

import pyspawner
from support import communicate, is_alive, run, spawn, wait_until

TESTS = Path(__file__).parent.parent
HANG = "import threading; threading.Event().wait()"


def namespace_members(pid: int) -> set[int]:
    """Every process in the pid namespace of ``pid``."""
    namespace = os.readlink(f"/proc/{pid}/ns/pid")
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns" / "pid") == namespace:
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


class Caller(subprocess.Popen[str]):
    """A process with pipes, to the type checker too."""

    stdin: IO[str]  # pyright: ignore[reportIncompatibleVariableOverride]
    stdout: IO[str]  # pyright: ignore[reportIncompatibleVariableOverride]


def start_caller(script: str, **options: Any) -> Caller:
    """A caller of its own, which prints what the test wants to know as one line of JSON."""
    prologue = """
import json, os, signal, sys, threading, pyspawner
sys.path.insert(0, {tests!r})
from support import spawn
HANG = {hang!r}
def say(*values):
    print(json.dumps(values), flush=True)
"""
    source = prologue.format(tests=str(TESTS), hang=HANG) + textwrap.dedent(script)
    return Caller(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_zygote_is_a_clear_error_and_running_children_are_untouched(killer):
    with pyspawner.Client(child_main="support.run_source") as client:
        child = spawn(client, "import sys; print(sys.stdin.read())")
        os.kill(client.zygote_pid, killer)
        for _ in range(2):
            with pytest.raises(pyspawner.ZygoteDiedError, match="make a new Client") as caught:
                spawn(client, "pass")
            assert isinstance(caught.value, OSError)
            assert f"signal {killer.value}" in str(caught.value)
        assert communicate(child, b"alive").text == "alive\n"
    # And close() worked.


def test_a_zygote_that_dies_in_the_middle_of_a_request_is_noticed():
    with pyspawner.Client(child_main="support.run_source") as client:
        os.kill(client.zygote_pid, signal.SIGSTOP)
        killer = threading.Timer(0.1, os.kill, (client.zygote_pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(pyspawner.ZygoteDiedError):
            spawn(client, "pass")
        killer.join()


def test_the_zygotes_death_is_noticed_even_if_somebody_else_reaps_it():
    """As a SIGCHLD handler of the caller's does that waits for every child."""
    with pyspawner.Client(child_main="support.run_source") as client:
        os.kill(client.zygote_pid, signal.SIGKILL)
        os.waitpid(client.zygote_pid, 0)
        with pytest.raises(pyspawner.ZygoteDiedError):
            spawn(client, "pass")


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "sys.exit(0)"])
def test_children_die_with_a_caller_that_does_not_close_however_deep_their_tree(end):
    caller = start_caller(f"""
        client = pyspawner.Client(child_main="support.run_source")
        tree = '''
            import os, threading
            for depth in range(5):
                if os.fork() == 0:
                    os.setsid()
                    if depth == 4:
                        os.write(1, b"deep")
                else:
                    break
            threading.Event().wait()
            '''
        children = [spawn(client, tree) for _ in range(3)]
        for child in children:
            assert child.stdout.read(4) == b"deep"
        say(client.zygote_pid, client._zygotes.current.watchdog_pid, [child.pid for child in children])
        sys.stdin.readline()
        {end}
        """)
    zygote, watchdog, children = json.loads(caller.stdout.readline())
    members = set().union(*map(namespace_members, children))
    assert len(members) == 3 * 6
    caller.stdin.write("\n")
    caller.stdin.flush()
    caller.wait()
    wait_until(lambda: not any(map(is_alive, {zygote, watchdog, *members})), "the end of all")
    caller.stdin.close()
    caller.stdout.close()


def test_children_die_with_their_caller_even_after_their_zygote_has():
    caller = start_caller("""
        client = pyspawner.Client(child_main="support.run_source")
        child = spawn(client, HANG)
        os.kill(client.zygote_pid, signal.SIGKILL)
        os.waitpid(client.zygote_pid, 0)
        say(child.pid)
        sys.stdin.readline()
        """)
    (child,) = json.loads(caller.stdout.readline())
    assert is_alive(child)
    caller.kill()
    caller.wait()
    wait_until(lambda: not is_alive(child), "the child's end")
    caller.stdin.close()
    caller.stdout.close()


def test_children_of_a_closed_client_survive_their_caller():
    caller = start_caller("""
        with pyspawner.Client(child_main="support.run_source") as client:
            child = spawn(client, "import os, sys; os.read(0, 1); print('ended')")
            keep_open = os.dup(child.stdin.fileno())
        os.set_inheritable(keep_open, True)
        os.execv("/bin/cat", ["cat"])  # Keeps the pipe, and is no caller any more.
        """)
    assert caller.poll() is None
    children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
    wait_until(lambda: Path(f"/proc/{caller.pid}/comm").read_text() == "cat\n", "the exec")
    (child,) = children.read_text().split()
    caller.kill()
    caller.wait()
    # Its stdin has ended now, so that it ends by itself; killed it would not get that far.
    wait_until(lambda: not is_alive(int(child)), "the child's own end")
    caller.stdin.close()
    caller.stdout.close()


def test_the_end_of_the_thread_that_made_the_client_harms_nobody():
    made = {}

    def make() -> None:
        made["client"] = pyspawner.Client(child_main="support.run_source")
        made["child"] = spawn(made["client"], "import sys; print(sys.stdin.read())")

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert communicate(made["child"], b"alive").text == "alive\n"
    assert run(made["client"], "print('next')").text == "next\n"
    made["client"].close()


def test_ctrl_c_in_the_callers_terminal_reaches_neither_zygote_nor_children():
    controller, terminal = pty.openpty()
    caller = start_caller(
        """
        with pyspawner.Client(child_main="support.run_source") as client:
            child = spawn(client, "import sys; print(sys.stdin.read())")
            say("ready")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                pass
            child.stdin.close()
            next_child = spawn(client, "print('next')")
            say(child.stdout.read().decode(), child.wait()[1], next_child.stdout.read().decode(), next_child.wait()[1])
        """,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
        pass_fds=(terminal,),
    )
    assert json.loads(caller.stdout.readline()) == ["ready"]
    os.write(controller, b"\x03")
    assert json.loads(caller.stdout.readline()) == ["\n", 0, "next\n", 0]
    assert caller.wait() == 0
    for descriptor in (controller, terminal):
        os.close(descriptor)
    caller.stdin.close()
    caller.stdout.close()


def test_a_client_used_in_another_process_raises_at_once():
    with pyspawner.Client(child_main="support.run_source") as client:
        pid = os.fork()
        if pid == 0:
            try:
                spawn(client, "pass")
            except RuntimeError as error:
                client.close()  # Harmless: the zygote is not this process's.
                os._exit(0 if "cannot be used in process" in str(error) else 2)
            os._exit(1)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert run(client, "print('still works')").text == "still works\n"


def test_a_fork_of_the_caller_that_ends_harms_nobody():
    with pyspawner.Client(child_main="support.run_source") as client:
        child = spawn(client, "import sys; print(sys.stdin.read())")
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert communicate(child, b"alive").text == "alive\n"
        assert run(client, "print('next')").text == "next\n"


def test_a_stopped_zygote_is_ended_by_close():
    client = pyspawner.Client(child_main="support.run_source")
    os.kill(client.zygote_pid, signal.SIGSTOP)
    zygote = client.zygote_pid
    client.close()
    assert not is_alive(zygote)


def test_the_watchdog_sleeps_while_the_caller_keeps_a_child_that_has_ended(client: pyspawner.Client) -> None:
    child = spawn(client, "")
    assert communicate(child).exitcode == 0
    assert client._zygotes is not None
    syscall = Path(f"/proc/{client._zygotes.current.watchdog_pid}/syscall")
    # The kernel says "running" of a process that does not wait.
    times_asleep = 0
    deadline = time.monotonic() + 30
    while times_asleep < 100:
        assert time.monotonic() < deadline, "it does not come to rest"
        times_asleep = 0 if syscall.read_text().startswith("running") else times_asleep + 1
    del child
