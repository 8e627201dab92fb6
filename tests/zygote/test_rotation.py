"""``Client(max_spawns_per_zygote=N)``: a new interpreter in place of one that has made many children."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from zygote_support import exists, kill, pids, watchdog

import pyspawner
from pyspawner import Cause, events
from support import children_of_this_process, communicate, is_alive, open_descriptors, run, spawn, wait_until

LAYOUT = "print(sorted({line.split('-')[0] for line in open('/proc/self/maps') if 'libc' in line})[0])"


class Observed:
    """Events, and a wait for one of a kind."""

    def __init__(self) -> None:
        self.seen: list[events.Event] = []

    def __call__(self, event: events.Event) -> None:
        self.seen.append(event)

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in self.seen)

    def wait_for(self, kind: type, times: int = 1) -> None:
        wait_until(lambda: self.count(kind) >= times, f"{times} events {kind.__name__}")


@pytest.fixture
def observed():
    observed = Observed()
    yield observed
    # The exceptions in it hold on to what they came through.
    observed.seen.clear()


def make_patient_module(make_module: Callable[[str, str], str], started: Path, go_on: Path) -> str:
    """A module whose import takes from the one file on until there is the other one."""
    return make_module(
        "patient_start",
        f"""
        import pathlib, time
        while pathlib.Path({str(started)!r}).exists() and not pathlib.Path({str(go_on)!r}).exists():
            time.sleep(0.005)
        """,
    )


def rotating(observed: Observed, after: int = 3, **options) -> pyspawner.Client:
    return pyspawner.Client(
        child_main="support.run_source", max_spawns_per_zygote=after, on_event=observed, **options
    )


def test_after_so_many_spawns_another_interpreter_serves(observed):
    with rotating(observed) as client:
        old = client.zygote_pid
        layouts = {run(client, LAYOUT).text for _ in range(3)}
        assert len(layouts) == 1
        observed.wait_for(events.ZygoteRetired)
        assert client.zygote_pid != old
        assert not exists(old)
        assert run(client, LAYOUT).text not in layouts
    retired = next(event for event in observed.seen if isinstance(event, events.ZygoteRetired))
    assert (retired.pid, retired.spawns) == (old, 3)
    started = [event for event in observed.seen if isinstance(event, events.ZygoteStarted)]
    assert [(event.cause, event.restarts) for event in started] == [("start", 0), ("rotation", 0)]


def test_without_a_limit_it_serves_for_ever(observed):
    with pyspawner.Client(child_main="support.run_source", on_event=observed) as client:
        before = client.zygote_pid
        for _ in range(30):
            run(client, "")
        assert client.zygote_pid == before
    assert observed.count(events.ZygoteStarted) == 1


def test_the_old_one_serves_until_the_new_one_is_ready(observed, make_module, tmp_path):
    started, go_on = tmp_path / "started", tmp_path / "go_on"
    patient = make_patient_module(make_module, started, go_on)
    with rotating(observed, after=1, preload_imports=[patient]) as client:
        old = client.zygote_pid
        started.touch()
        for _ in range(20):
            assert run(client, "print('works')").text == "works\n"
        assert client.zygote_pid == old
        go_on.touch()
        observed.wait_for(events.ZygoteRetired)
        assert client.zygote_pid != old
        assert run(client, "print('works')").text == "works\n"


def test_requests_of_many_threads_notice_nothing(observed):
    with rotating(observed, after=5) as client, ThreadPoolExecutor(8) as pool:
        # However long a start takes on a busy machine.
        while observed.count(events.ZygoteRetired) < 3:
            outputs = pool.map(lambda number: run(client, "print(number)", number=number).text, range(100))
            assert list(outputs) == [f"{number}\n" for number in range(100)]


def test_a_derivation_from_the_old_one_in_the_middle_of_a_switch_is_completed(observed):
    with rotating(observed, after=1) as client, ThreadPoolExecutor(4) as pool:

        def derive(_: int) -> str:
            with client.derive() as derived:
                return run(derived, "print('works')").text

        assert list(pool.map(derive, range(12))) == ["works\n"] * 12


def test_children_of_the_old_one_go_on_with_their_watchdog_until_they_end(observed):
    before = children_of_this_process()
    with rotating(observed) as client:
        old_watchdog = watchdog(client)
        child = spawn(client, "print(input())")
        for _ in range(2):
            run(client, "")
        observed.wait_for(events.ZygoteRetired)
        assert is_alive(old_watchdog)
        assert communicate(child, b"still here\n").text == "still here\n"
        wait_until(lambda: not is_alive(old_watchdog), "the end of the old watchdog")
        run(client, "")
        assert not exists(old_watchdog), "a zombie"
        assert len(children_of_this_process() - before) == 2, "the new zygote and its watchdog"


def test_a_cpu_budget_is_enforced_after_the_zygote_has_retired(observed):
    limited = pyspawner.SandboxConfig(limits=pyspawner.Limits(cpu_seconds=0.3))
    with rotating(observed, after=1) as client:
        child = spawn(client, "input()\nwhile True: pass", sandbox=limited)
        observed.wait_for(events.ZygoteRetired)
        completed = child.communicate(b"\n", timeout=60)
    assert completed.cause is Cause.CPU_TIME


def test_children_of_retired_zygotes_die_with_their_caller():
    program = f"""
import sys; sys.path[:] = {sys.path!r}
import threading
from pyspawner import events
from support import *
retired = threading.Event()
def see(event):
    if isinstance(event, events.ZygoteRetired):
        retired.set()
client = pyspawner.Client(child_main="support.run_source", max_spawns_per_zygote=1, on_event=see)
child = spawn(client, "import threading; threading.Event().wait()")
retired.wait()
print(child.pid, flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as caller:
        assert caller.stdout is not None
        child = int(caller.stdout.readline())
        assert is_alive(child)
        caller.communicate()
    wait_until(lambda: not is_alive(child), "the child's end")


def test_of_many_rotations_nothing_is_left(observed):
    with rotating(observed, after=2) as client:
        run(client, "")
        processes, descriptors = len(children_of_this_process()), len(open_descriptors())
        for rotation in range(1, 6):
            while observed.count(events.ZygoteRetired) < rotation:
                run(client, "")

        def nothing_more() -> bool:
            run(client, "")
            return (len(children_of_this_process()), len(open_descriptors())) <= (processes, descriptors)

        wait_until(nothing_more, "as few as before")


def test_close_ends_what_is_left_of_retired_zygotes_and_not_their_children(observed):
    before = children_of_this_process()
    client = rotating(observed, after=1)
    child = spawn(client, "print(input())")
    observed.wait_for(events.ZygoteRetired)
    client.close()
    assert children_of_this_process() - before == {child.pid}
    assert communicate(child, b"still here\n").text == "still here\n"


@pytest.mark.parametrize("by", ["close", "forgetting it"])
def test_close_in_the_middle_of_a_start_in_the_background_leaves_nothing(observed, make_module, tmp_path, by):
    started = tmp_path / "started"
    make_module(
        "hangs_the_second_time",
        f"""
        import pathlib, threading
        if pathlib.Path({str(started)!r}).exists():
            pathlib.Path({str(tmp_path / "is_here")!r}).touch()
            threading.Event().wait()
        """,
    )
    before = children_of_this_process()
    client = rotating(observed, after=1, preload_imports=["hangs_the_second_time"])
    started.touch()
    run(client, "")
    wait_until((tmp_path / "is_here").exists, "the start in the background")
    if by == "close":
        client.close()
    else:
        with pytest.warns(ResourceWarning, match="unclosed"):
            del client
    assert children_of_this_process() == before
    assert observed.count(events.ZygoteStartFailed) == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "pyspawner-rotation"]


def test_a_start_that_fails_in_the_background_is_told_and_tried_again(
    observed, make_module, tmp_path, caplog
):
    broken = tmp_path / "broken"
    make_module(
        "breakable",
        f"import pathlib\nif pathlib.Path({str(broken)!r}).exists(): raise RuntimeError('the reason')",
    )
    with rotating(observed, after=1, preload_imports=["breakable"]) as client:
        old = client.zygote_pid
        broken.touch()
        run(client, "")
        observed.wait_for(events.ZygoteStartFailed, 2)
        assert run(client, "print('works')").text == "works\n"
        assert client.zygote_pid == old
        broken.unlink()
        observed.wait_for(events.ZygoteRetired)
        assert run(client, "print('works')").text == "works\n"
    failed = next(event for event in observed.seen if isinstance(event, events.ZygoteStartFailed))
    assert "the reason" in str(failed.error)
    assert any(
        record.levelname == "WARNING" and "the reason" in record.getMessage() for record in caplog.records
    )
    caplog.clear()


def test_an_old_one_that_dies_while_the_new_one_starts_is_an_ordinary_death(observed, make_module, tmp_path):
    started, go_on = tmp_path / "started", tmp_path / "go_on"
    patient = make_patient_module(make_module, started, go_on)
    with rotating(observed, after=1, preload_imports=[patient]) as client:
        started.touch()
        run(client, "")
        kill(client.zygote_pid)
        with pytest.raises(pyspawner.ZygoteDiedError):
            run(client, "")
        go_on.touch()
        observed.wait_for(events.ZygoteStarted, 2)
        wait_until(lambda: is_alive(client.zygote_pid), "the new one")
        assert run(client, "print('works')").text == "works\n"


def test_all_replicas_are_replaced_together(observed):
    with rotating(observed, after=2, zygotes=2) as client:
        old = pids(client)
        for _ in range(4):
            run(client, "")
        observed.wait_for(events.ZygoteRetired, 2)
        assert len(pids(client)) == 2
        assert not set(pids(client)) & set(old)


def test_a_derived_zygote_is_replaced_by_an_interpreter_that_imports_all(observed, parent):
    with parent.derive(preload_imports=["wave"], max_spawns_per_zygote=1, on_event=observed) as derived:
        run(derived, "")
        observed.wait_for(events.ZygoteRetired)
        assert (
            run(derived, "import sys; print('attacks' in sys.modules, 'wave' in sys.modules)").text
            == "True True\n"
        )


@pytest.mark.parametrize("event", [events.ZygoteStarted, events.ZygoteRetired, events.ZygoteStartFailed])
def test_a_handler_of_an_event_may_close_the_client(event, make_module, tmp_path):
    broken, closed = tmp_path / "broken", threading.Event()
    make_module(
        "breakable",
        f"import pathlib\nif pathlib.Path({str(broken)!r}).exists(): raise RuntimeError('the reason')",
    )

    def close(seen: events.Event) -> None:
        if isinstance(seen, event) and threading.current_thread() is not threading.main_thread():
            client.close()
            closed.set()

    client = pyspawner.Client(
        child_main="support.run_source",
        preload_imports=["breakable"],
        max_spawns_per_zygote=1,
        on_event=close,
    )
    if event is events.ZygoteStartFailed:
        broken.touch()
    run(client, "")
    assert closed.wait(60)
    with pytest.raises(RuntimeError, match="closed"):
        run(client, "")


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "client.close()"])
def test_an_interpreter_that_ends_in_the_middle_of_a_start_in_the_background_ends_well(
    make_module, tmp_path, end
):
    started, here = tmp_path / "started", tmp_path / "is_here"
    make_module(
        "hangs_the_second_time",
        f"""
        import os, pathlib, threading
        if pathlib.Path({str(started)!r}).exists():
            pathlib.Path({str(here)!r}).write_text(str(os.getpid()))
            threading.Event().wait()
        """,
    )
    program = f"""
import sys; sys.path[:] = {sys.path!r}
import pathlib, time
from support import *
client = pyspawner.Client(
    child_main="support.run_source", preload_imports=["hangs_the_second_time"], max_spawns_per_zygote=1
)
pathlib.Path({str(started)!r}).touch()
run(client, "")
here = pathlib.Path({str(here)!r})
while not (here.exists() and here.read_text()):
    time.sleep(0.005)
print("ends", flush=True)
{end}
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
    wait_until(lambda: not is_alive(int(here.read_text())), "the end of the new zygote")
