"""``ChildProcess``: pid, ``kill()`` and ``wait()`` by pidfd, repr."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import threading

import pytest

import pyspawner
from support import communicate, run, spawn

HANG = "import threading; threading.Event().wait()"


def close_pipes(child: pyspawner.ChildProcess) -> None:
    for pipe in (child.stdin, child.stdout, child.stderr):
        pipe.close()


def test_a_child_is_a_direct_child_of_the_caller_and_sees_itself_as_pid_1(client):
    child = spawn(client, "import os, sys; print(os.getpid(), os.getppid()); sys.stdin.read()")
    assert child.stdout.readline() == b"1 0\n"
    with open(f"/proc/{child.pid}/status") as status:
        assert f"PPid:\t{os.getpid()}\n" in status
    communicate(child)


def test_wait_answers_as_waitpid_does(client):
    for source, code in (("pass", 0), ("raise SystemExit(7)", 7 << 8)):
        child = spawn(client, source)
        assert child.wait() == (child.pid, code)
        close_pipes(child)


def test_wait_with_wnohang_answers_zeroes_while_the_child_runs(client):
    child = spawn(client, "import sys; sys.stdin.read()")
    assert child.wait(os.WNOHANG) == (0, 0)
    child.stdin.close()
    assert child.wait(0) == (child.pid, 0)
    close_pipes(child)


def test_wait_with_wuntraced_sees_a_stop(client):
    child = spawn(client, HANG)
    os.kill(child.pid, signal.SIGSTOP)
    pid, status = child.wait(os.WUNTRACED)
    assert pid == child.pid
    assert os.WIFSTOPPED(status)
    assert os.WSTOPSIG(status) == signal.SIGSTOP
    child.kill()
    assert os.WIFSIGNALED(child.wait()[1])
    close_pipes(child)


def test_kill_is_sigkill(client):
    child = spawn(client, HANG)
    child.kill()
    child.kill()  # Not reaped yet: once more does no harm.
    assert child.wait() == (child.pid, signal.SIGKILL)
    close_pipes(child)


def test_kill_of_a_reaped_child_is_a_process_lookup_error(client):
    child = spawn(client, "pass")
    child.wait()
    with pytest.raises(ProcessLookupError):
        child.kill()
    close_pipes(child)


def test_a_second_wait_is_a_child_process_error(client):
    child = spawn(client, "pass")
    child.wait()
    with pytest.raises(ChildProcessError):
        child.wait()
    close_pipes(child)


def test_os_waitpid_by_the_caller_works_too(client):
    child = spawn(client, "raise SystemExit(3)")
    assert os.waitpid(child.pid, 0) == (child.pid, 3 << 8)
    with pytest.raises(ChildProcessError):
        child.wait()
    with pytest.raises(ProcessLookupError):
        child.kill()
    close_pipes(child)


def test_a_reused_pid_is_never_hit(client):
    """The next process with the child's old number lives on."""
    child = spawn(client, "pass")
    child.wait()
    with open("/proc/sys/kernel/ns_last_pid", "w") as last_pid:
        last_pid.write(str(child.pid - 1))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        assert pid == child.pid, "the number was not reused: the test shows nothing"
        with pytest.raises(ProcessLookupError):
            child.kill()
        with pytest.raises(ChildProcessError):
            child.wait()
    finally:
        os.close(writer)
        assert os.waitpid(pid, 0) == (pid, 0)
        close_pipes(child)


def test_wait_lets_other_threads_of_the_caller_run(client):
    child = spawn(client, "import sys; sys.stdin.read()")
    closer = threading.Thread(target=child.stdin.close)
    waiter = threading.Thread(target=child.wait)
    waiter.start()
    closer.start()  # Could not, if wait() held the GIL.
    waiter.join()
    closer.join()
    close_pipes(child)


def test_a_signal_handler_that_raises_interrupts_wait(client):
    class Alarm(Exception):
        pass

    def raise_alarm(*_: object) -> None:
        raise Alarm

    child = spawn(client, HANG)
    previous = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            child.wait()
    finally:
        signal.signal(signal.SIGALRM, previous)
    child.kill()
    child.wait()
    close_pipes(child)


@pytest.mark.filterwarnings("ignore:unclosed file")
def test_dropping_the_object_leaves_the_child_running(client):
    child = spawn(client, HANG)
    pid = child.pid
    del child
    gc.collect()
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_it_is_frozen_and_its_repr_helps(client):
    child = spawn(client, "pass")
    with pytest.raises(dataclasses.FrozenInstanceError):
        child.pid = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert repr(child).startswith(f"ChildProcess(pid={child.pid}, stdin=")
    communicate(child)


def test_it_says_which_layers_are_on(client):
    child = spawn(client, "pass")
    assert list(child.layers) == [
        "namespaces",
        "cgroup",
        "id_map",
        "network",
        "mounts",
        "session",
        "drop_capabilities",
        "setuid",
        "no_new_privs",
        "landlock",
        "rlimits",
        "seccomp",
    ]
    assert child.layers["setuid"] == "uid and gid 1000"
    with pytest.raises(TypeError):
        child.layers["seccomp"] = "off"  # pyright: ignore[reportIndexIssue]
    communicate(child)


def test_children_run_concurrently(client):
    children = [spawn(client, "import sys; print(sys.stdin.read())") for _ in range(8)]
    for number, child in enumerate(reversed(children)):
        assert communicate(child, str(number).encode()).text == f"{number}\n"


def test_children_go_on_after_close():
    client = pyspawner.Client(child_main="support.run_source")
    child = spawn(client, "import sys; print(sys.stdin.read())")
    client.close()
    assert communicate(child, b"still here").text == "still here\n"


def test_a_child_can_be_waited_for_after_close():
    with pyspawner.Client(child_main="support.run_source") as client:
        child = spawn(client, HANG)
    child.kill()
    assert communicate(child).exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "comm", "command_line"),
    [
        (None, "pyspawner-child", "pyspawner-child"),
        ("job-17", "job-17", "job-17"),
        ("a name of more than fifteen bytes", "a name of more ", "a name of more than fifteen bytes"),
        ("ä" * 20, "ä" * 7 + "�", "ä" * 20),
        ("x" * 1000, "x" * 15, "x" * 1000),
    ],
)
def test_the_process_name_is_what_ps_and_top_show(client, name, comm, command_line):
    child = spawn(client, "import sys; sys.stdin.read()", process_name=name)
    with open(f"/proc/{child.pid}/comm", errors="replace") as file:
        assert file.read().rstrip("\n") == comm
    with open(f"/proc/{child.pid}/cmdline") as file:
        assert file.read().rstrip("\0") == command_line
    communicate(child)


def test_the_zygote_has_a_name_too(client):
    with open(f"/proc/{client.zygote_pid}/cmdline") as file:
        assert file.read().rstrip("\0") == "pyspawner: zygote"


@pytest.mark.parametrize("name", ["", "nul\0byte"])
def test_a_process_name_that_cannot_be_is_bad_input(client, name):
    with pytest.raises(ValueError, match="process_name"):
        spawn(client, "pass", process_name=name)
    assert run(client, "print(1)").text == "1\n"


def test_a_name_longer_than_a_message_is_cut_and_not_refused(client):
    child = spawn(client, "import sys; sys.stdin.read()", process_name="y" * 100_000)
    with open(f"/proc/{child.pid}/cmdline") as file:
        assert set(file.read().rstrip("\0")) == {"y"}
    communicate(child)
