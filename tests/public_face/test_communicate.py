"""``communicate()``: the caller gets the child's outcome, whatever the child does; and nothing is left."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import selectors
import signal
import threading
import time
from typing import Any

import pytest

import pyspawner
from pyspawner import Cause, ChildFailed
from support import LISTEN, READY, children_of_this_process, open_descriptors, run_caller, spawn

ECHO = "import sys; data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data)"
HANG = READY + "import threading; threading.Event().wait()"


def held():
    # A pidfd belongs to its ChildProcess, which the test still has.
    pipes = sorted(target for target in open_descriptors().values() if target != "anon_inode:[pidfd]")
    return pipes, children_of_this_process(), threading.active_count()


@contextlib.contextmanager
def nothing_left():
    before = held()
    yield
    assert held() == before


# What comes back. -----------------------------------------------------------------------------------------


@pytest.mark.cold
def test_outputs_exit_code_and_cause(client):
    with nothing_left():
        child = spawn(client, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
        completed = child.communicate()
    assert (completed.stdout, completed.stderr) == (b"out\n", b"err\n")
    assert (completed.returncode, completed.cause) == (3, Cause.EXITED)
    assert (completed.stdout_dropped, completed.stderr_dropped) == (0, 0)
    assert child.returncode == 3


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 10_000_000])
def test_input_comes_back_whole(client, size):
    data = os.urandom(size)
    completed = spawn(client, ECHO).communicate(data, max_output=size)
    assert completed.stdout == data
    assert completed.check() is completed


def test_input_may_be_any_bytes(client):
    for data in (bytearray(b"text"), memoryview(b"text")):
        assert spawn(client, ECHO).communicate(data).stdout == b"text"


def test_no_input_is_the_end_of_the_file(client):
    assert spawn(client, ECHO).communicate(timeout=60).cause is Cause.EXITED


def test_output_that_is_no_text_and_half_a_character(client):
    written = b"\0\xff\xfe" + "ä".encode()[:1]
    assert spawn(client, f"import os; os.write(1, {written!r})").communicate().stdout == written


@pytest.mark.parametrize("kept", [0, 1, 1000, 65_536])
def test_a_flood_is_cut_and_counted(client, kept):
    written = 20_000_000
    source = "import os\nfor stream in (1, 2): os.write(stream, b'begin'); print(end='x' * amount, file=open(stream, 'w', closefd=False))"
    completed = spawn(client, source, amount=written - 5).communicate(max_output=kept)
    for output, dropped in (
        (completed.stdout, completed.stdout_dropped),
        (completed.stderr, completed.stderr_dropped),
    ):
        assert output == (b"begin" + b"x" * kept)[:kept]
        assert len(output) + dropped == written
    assert completed.returncode == 0


def test_without_a_word_a_mebibyte_of_each_is_kept(client):
    completed = spawn(client, "print(end='x' * 3_000_000)").communicate()
    assert (len(completed.stdout), completed.stdout_dropped) == (1024**2, 3_000_000 - 1024**2)


def test_both_pipes_are_read_at_once(client):
    source = (
        "import sys\nfor _ in range(50):\n    sys.stderr.write('e' * 10_000); sys.stdout.write('o' * 100_000)"
    )
    completed = spawn(client, source).communicate(max_output=10_000_000)
    assert (len(completed.stdout), len(completed.stderr)) == (5_000_000, 500_000)


def test_a_child_that_never_reads_and_one_that_closes_its_input(client):
    for source in ("print('done')", "import os; os.close(0); print('done')"):
        completed = spawn(client, source).communicate(bytes(5_000_000), timeout=60)
        assert (completed.stdout, completed.cause) == (b"done\n", Cause.EXITED)


def test_a_child_that_closes_its_outputs_is_waited_for(client):
    source = "import os, sys; os.close(1); os.close(2); sys.stdin.read(); os._exit(7)"
    assert spawn(client, source).communicate(b"x").returncode == 7


def test_what_was_read_and_written_before_is_part_of_it(client):
    child = spawn(client, "import sys; print('first\\nsecond', flush=True); print(sys.stdin.read())")
    child.stdin.write(b"before, ")
    assert child.stdout.readline() == b"first\n"
    assert child.communicate(b"after").stdout == b"second\nbefore, after\n"


def test_a_pipe_that_is_full_of_earlier_input_does_not_block(client):
    child = spawn(client, "import sys; print('x' * 500_000); print(len(sys.stdin.read()))")
    os.set_blocking(child.stdin.fileno(), False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += os.write(child.stdin.fileno(), bytes(4096))
    child.stdin.write(b"buffered")
    assert child.communicate(timeout=60).stdout.endswith(f"\n{sent + 8}\n".encode())


def test_closed_pipes_are_left_out(client):
    child = spawn(client, "import sys; sys.stdin.read(); print('heard', file=sys.stderr)")
    child.stdin.close()
    child.stdout.close()
    completed = child.communicate()
    assert (completed.stdout, completed.stdout_dropped) == (b"", 0)
    assert b"heard" in completed.stderr


def test_usage(client):
    source = """
import os, time
block = bytearray(os.urandom(1)) * 100_000_000
if not os.fork():
    while time.process_time() < 0.3: pass
    os._exit(0)
os.wait()
"""
    begun = time.monotonic()
    usage = spawn(client, source).communicate().check().usage
    assert 0.3 <= usage.user_seconds + usage.system_seconds <= 2 * usage.wall_seconds
    assert 0.3 <= usage.wall_seconds <= time.monotonic() - begun
    assert 100_000_000 <= usage.peak_memory_bytes <= 300_000_000


def test_check_raises_with_the_end_of_standard_error(client):
    completed = spawn(client, "print('x' * 10_000, file=__import__('sys').stderr); 1 / 0").communicate()
    with pytest.raises(ChildFailed, match=r"exit code 1 \(exception\)") as raised:
        completed.check()
    assert raised.value.completed is completed
    assert str(raised.value).endswith("ZeroDivisionError: division by zero")
    assert len(str(raised.value)) < 2500
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_check_names_the_signal(client):
    completed = spawn(client, "import ctypes; ctypes.string_at(0)").communicate()
    assert (completed.returncode, completed.cause) == (-signal.SIGSEGV, Cause.SIGNALED)
    with pytest.raises(ChildFailed, match=r"signal 11 .Segmentation fault.*wrote nothing"):
        completed.check()


# Timeouts and other ends. ---------------------------------------------------------------------------------

STUBBORN = {
    "sleeps": HANG,
    "computes": READY + "\nwhile True: pass",
    "ignores SIGTERM": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + HANG,
    "is stopped by a descendant": READY
    + "import os, signal, time\nif not os.fork(): os.kill(1, signal.SIGSTOP)\ntime.sleep(1000)",
    "floods": READY + "\nwhile True: sys.stdout.write('x' * 65_536)",
    "floods from a daemon": READY
    + "import os\nif not os.fork():\n  os.setsid()\n  if not os.fork():\n    while True: os.write(1, bytes(65_536))\nwhile True: pass",
    "closes its outputs": READY + "import os; os.close(1); os.close(2)\nwhile True: pass",
}


@pytest.mark.parametrize("how", STUBBORN)
def test_at_the_timeout_the_child_is_killed(client, how):
    with nothing_left():
        child = spawn(client, STUBBORN[how])
        assert child.stdout.readline() == b"ready\n"
        begun = time.monotonic()
        completed = child.communicate(timeout=0.2)
        assert 0.2 <= time.monotonic() - begun < 30
    assert (completed.returncode, completed.cause) == (-signal.SIGKILL, Cause.TIMED_OUT)


@pytest.mark.parametrize("timeout", [0, -1, 1e-9])
def test_what_was_written_before_the_timeout_is_returned(client, timeout):
    child = spawn(client, HANG)
    assert select.select([child.stdout], [], [], 60)[0]
    completed = child.communicate(timeout=timeout)
    assert (completed.stdout, completed.cause) == (b"ready\n", Cause.TIMED_OUT)


@pytest.mark.parametrize("timeout", [1e10, 1e300, float("inf"), float("nan")])
def test_a_time_that_no_clock_holds_never_comes(client, timeout):
    assert spawn(client, "print('done')").communicate(timeout=timeout).stdout == b"done\n"


def test_a_child_that_has_ended_before_the_timeout_has_not_timed_out(client):
    child = spawn(client, "print('done')")
    # It is left unreaped.
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    completed = child.communicate(timeout=0)
    assert (completed.stdout, completed.cause) == (b"done\n", Cause.EXITED)


def test_a_child_that_the_caller_killed(client):
    child = spawn(client, HANG)
    child.kill()
    completed = child.communicate()
    assert (completed.returncode, completed.cause) == (-signal.SIGKILL, Cause.KILLED)


def test_a_signal_that_the_child_handles_and_one_that_it_does_not(client):
    handles = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); " + LISTEN
    child = spawn(client, handles)
    child.stdout.readline()
    child.terminate()
    assert (completed := child.communicate()).returncode == 5
    assert completed.cause is Cause.EXITED

    child = spawn(client, HANG)
    child.stdout.readline()
    child.terminate()
    assert child.communicate(timeout=0.1).cause is Cause.TIMED_OUT, "pid 1 without a handler"


FORGED = {
    "exit code 137": "import os; os._exit(137)",
    "SIGKILL at itself": "import os; os.kill(os.getpid(), 9); os._exit(0)",
    "SIGSYS at itself": "import os, signal; signal.signal(31, signal.SIG_DFL); os.kill(os.getpid(), 31)",
    "SIGXCPU at itself": "import os; os.kill(os.getpid(), 24)",
    "a crash": "import ctypes; ctypes.string_at(0)",
    "our words": "import os; os.write(2, b'pyspawner: timed_out'); os._exit(1)",
    "a descendant kills it": "import os, time\nif not os.fork(): os.kill(1, 9)\ntime.sleep(0.2)",
}


@pytest.mark.parametrize("how", FORGED)
def test_a_child_cannot_say_that_it_timed_out_or_was_killed_by_the_caller(client, how):
    completed = spawn(client, FORGED[how]).communicate(timeout=60)
    assert completed.cause is (Cause.SIGNALED if completed.returncode < 0 else Cause.EXITED)


# More than once, from several threads, and interrupted. ---------------------------------------------------


def test_a_second_call_returns_the_same(client):
    child = spawn(client, "print('once')")
    completed = child.communicate()
    assert child.communicate() is completed
    with pytest.raises(ValueError, match="too late"):
        child.communicate(b"more")


def test_two_threads_get_the_same(client):
    child = spawn(client, ECHO)
    found = []
    threads = [threading.Thread(target=lambda: found.append(child.communicate())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(completed) for completed in found}) == 1


@pytest.mark.parametrize("reap", ["wait", "poll"])
def test_after_the_child_was_reaped_by_this_object(client, reap):
    child = spawn(client, "print('left in the pipe'); raise SystemExit(2)")
    if reap == "wait":
        child.wait()
    else:
        while child.poll() is None:
            time.sleep(0.001)
    completed = child.communicate()
    assert (completed.stdout, completed.returncode) == (b"left in the pipe\n", 2)


def test_after_the_child_was_reaped_by_other_means(client):
    with nothing_left():
        child = spawn(client, "print('x')")
        os.waitpid(child.pid, 0)
        with pytest.raises(ChildProcessError):
            child.communicate()


def test_a_thread_that_kills_ends_another_ones_communicate(client):
    child = spawn(client, HANG)
    threading.Timer(0.1, child.kill).start()
    assert child.communicate().cause is Cause.KILLED


def test_the_timeout_of_a_second_thread_ends_the_child_too(client):
    child = spawn(client, HANG)
    assert child.stdout.readline() == b"ready\n"
    found = []
    first = threading.Thread(target=lambda: found.append(child.communicate()))
    first.start()
    while not child.stdout.closed:
        time.sleep(0.001)
    assert child.communicate(timeout=0.1).cause is Cause.KILLED
    first.join()
    assert found == [child.communicate()]


def test_after_several_signals_of_the_caller_it_is_the_caller_who_ended_it(client):
    child = spawn(client, HANG)
    child.kill()
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    assert child.communicate().cause is Cause.KILLED


def test_a_signal_after_the_childs_own_end_does_not_count(client):
    child = spawn(client, "import ctypes; ctypes.string_at(0)")
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    child.send_signal(signal.SIGSEGV)
    assert child.communicate().cause is Cause.SIGNALED


def test_an_amount_that_no_memory_holds(client):
    with nothing_left():
        assert spawn(client, "print('x')").communicate(max_output=2**70).stdout == b"x\n"


def test_wait_does_not_leave_a_zombie_behind_wnowait(client):
    with spawn(client, "") as child, pytest.raises(OSError, match="Invalid argument"):
        child.wait(os.WNOWAIT)


def test_the_message_tells_that_there_was_more(client):
    completed = spawn(client, "import os; os.write(2, b'x' * 100); os._exit(1)").communicate(max_output=10)
    with pytest.raises(ChildFailed, match=r"90 bytes after it were dropped"):
        completed.check()


def test_wrong_arguments_change_nothing(client):
    with spawn(client, ECHO) as child:
        wrong: Any
        for wrong in ("text", 7.5, 3, ["list"]):
            with pytest.raises(TypeError):
                child.communicate(wrong)
        for wrong in ("1", [1]):
            with pytest.raises(TypeError):
                child.communicate(timeout=wrong)
        for wrong in ("1", 1.5, None):
            with pytest.raises(TypeError):
                child.communicate(max_output=wrong)
        with pytest.raises(ValueError, match="must not be negative: -1"):
            child.communicate(max_output=-1)
        assert child.communicate(b"still here").stdout == b"still here"
    child = spawn(client, ECHO)
    child.stdin.close()
    with pytest.raises(ValueError, match="stdin is closed"):
        child.communicate(b"x")
    assert child.communicate().returncode == 0


@pytest.mark.parametrize("what", ["import threading; threading.Event().wait()", "while True: print(1)"])
def test_a_signal_handler_that_raises_ends_the_child(what):
    source = (
        f"what = {what!r}"
        + """
import signal, sys, time
child = spawn(client, what)
signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    child.communicate()
except ZeroDivisionError:
    print(child.returncode, child.stdout.closed, child.pid in children_of_this_process())
try:
    child.communicate()
except ValueError as error:
    print(error)
"""
    )
    lost = "an earlier communicate() ended with an exception: the output is lost"
    assert run_caller(source) == f"-9 True False\n{lost}\n"


def test_a_signal_handler_that_does_not_raise_changes_nothing():
    source = """
import signal
child = spawn(client, "import sys, time; time.sleep(0.5); print('done')")
count = 0
def handle(*_):
    global count
    count += 1
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
print(child.communicate().stdout, count > 2)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    assert run_caller(source) == "b'done\\n' True\n"


@pytest.mark.parametrize("call", ["child.communicate(bytes(5_000_000))", "child.__exit__(None, None, None)"])
def test_a_child_that_does_not_read_cannot_end_a_caller_that_lets_sigpipe_end_it(call):
    source = f"""
import signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
child = spawn(client, "import os; os.close(0); os.write(1, b'x'); os._exit(3)")
child.stdout.read(1)
child.stdin.write(b"buffered")
{call}
print(child.returncode, signal.sigpending())
"""
    assert run_caller(source) in ("3 set()\n", "-9 set()\n")


def test_other_threads_run_meanwhile(client):
    child = spawn(client, HANG)
    ticks = []

    def count():
        for number in range(1000):
            ticks.append(number)
        child.kill()

    threading.Thread(target=count).start()
    child.communicate()
    assert len(ticks) == 1000


# The rest of the object. ----------------------------------------------------------------------------------


def test_poll_and_returncode(client):
    child = spawn(client, "import sys; sys.stdin.read(); raise SystemExit(4)")
    assert (child.poll(), child.returncode) == (None, None)
    child.stdin.close()
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    assert child.returncode is None, "nobody has looked yet"
    assert (child.poll(), child.poll(), child.returncode) == (4, 4, 4)
    child.communicate()


def test_poll_of_a_child_that_was_reaped_by_other_means(client):
    with spawn(client, "") as child:
        os.waitpid(child.pid, 0)
        with pytest.raises(ChildProcessError):
            child.poll()


def test_of_many_threads_that_wait_one_reaps_and_all_know(client):
    child = spawn(client, "raise SystemExit(6)")
    outcomes = []

    def wait():
        try:
            outcomes.append(child.wait())
        except ChildProcessError:
            outcomes.append(child.poll())

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [(child.pid, 6 << 8), *[6] * 7]
    child.communicate()


def test_a_with_block_leaves_nothing(client):
    with nothing_left():
        with spawn(client, HANG) as child:
            child.stdin.write(b"never read")
        assert child.returncode == -signal.SIGKILL
        assert child.stdin.closed
        with spawn(client, "") as child:
            child.communicate()
        with spawn(client, "") as child:
            child.wait()
        with spawn(client, "") as child:
            os.waitpid(child.pid, 0)
        with pytest.raises(ZeroDivisionError), spawn(client, HANG) as child:
            raise ZeroDivisionError


def test_a_signal_to_a_child_that_is_gone_and_one_that_does_not_exist(client):
    with spawn(client, HANG) as child:
        for number in (0, -1, 1000):
            with pytest.raises(ValueError, match="not the number of a standard signal"):
                child.send_signal(number)
    with pytest.raises(ProcessLookupError):
        child.terminate()


def test_selectors_tell_its_end(client):
    with spawn(client, "import sys; sys.stdin.read()") as child, selectors.DefaultSelector() as selector:
        selector.register(child, selectors.EVENT_READ)
        assert selector.select(0) == []
        child.stdin.close()
        ((key, _),) = selector.select(60)
        assert key.fileobj is child


def test_lines_come_as_they_are_written(client):
    with spawn(client, "import sys\nfor line in sys.stdin: print(line, end='', flush=True)") as child:
        for line in (b"one\n", b"two\n"):
            child.stdin.write(line)
            child.stdin.flush()
            assert next(iter(child.stdout)) == line


def test_nothing_is_left_of_many_mixed_children(client):
    with nothing_left():
        for number in range(500):
            child = spawn(client, [ECHO, HANG, "1 / 0", "import os; os._exit(1)"][number % 4])
            child.communicate(
                b"x" * number if number % 2 else None,
                timeout=0.001 if number % 3 else 60 if number % 4 != 1 else 0,
            )


@pytest.mark.parametrize("attempt", range(3))
def test_without_namespaces_a_daemon_that_holds_the_pipe_is_not_waited_for(client, attempt):
    source = "import os, time\nif not os.fork():\n  os.setsid(); time.sleep(20); os._exit(0)\nprint('done')"
    sandbox = pyspawner.SandboxConfig.without_namespaces()
    begun = time.monotonic()
    completed = spawn(client, source, sandbox=sandbox).communicate()
    assert (completed.stdout, completed.returncode) == (b"done\n", 0)
    assert time.monotonic() - begun < 15
