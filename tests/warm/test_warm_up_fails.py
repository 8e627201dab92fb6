"""A ``warm_up`` that does not do its work is a clear error, and no reason for a spawn to fail."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from pathlib import Path

import pytest

import pyspawner
from pyspawner.events import ParkingFailed
from support import SANDBOX, children_of_this_process, run
from warm_support import eventually, parked, waiting

IN_SANDBOX = {
    "raise_in_sandbox": "LookupError: the model is missing \N{SNOWMAN}",
    "leave_in_sandbox": "SystemExit: enough",
    "exit_in_sandbox": "ended",
    "abort_in_sandbox": "ended",
}


@pytest.mark.parametrize(("warm_up", "message"), IN_SANDBOX.items())
def test_one_that_fails_in_the_sandbox_is_an_error_of_prewarm(warm_up, message):
    with pyspawner.Client(child_main="support.run_source", warm_up=f"warm_ups.{warm_up}") as client:
        with pytest.raises(pyspawner.WarmUpError, match=message):
            client.prewarm(SANDBOX, 1)
        assert parked(client) == 0
        assert run(client, "print('cold')").text == "cold\n"


def test_it_is_told_with_a_later_spawn_and_logged_where_nobody_has_asked_for_it(caplog):
    told: list[object] = []
    with pyspawner.Client(
        child_main="support.run_source",
        warm_children=1,
        warm_up="warm_ups.raise_in_sandbox",
        on_event=told.append,
    ) as client:

        def is_told() -> bool:
            assert run(client, "print('cold')").text == "cold\n"
            return any(isinstance(event, ParkingFailed) for event in told)

        with caplog.at_level(logging.WARNING, "pyspawner"):
            eventually(is_told, "ParkingFailed")
    failed = next(event for event in told if isinstance(event, ParkingFailed))
    assert isinstance(failed.error, pyspawner.WarmUpError)
    assert "the model is missing" in str(failed.error)
    assert "the model is missing" in caplog.text


AT_THE_START = {
    "raise_everywhere": r"(?s)LookupError: the model is missing.*Traceback.*raise_everywhere",
    "leave": "SystemExit: enough",
    "exit_with_0": "exit code 0",
    "exit_with_3": "exit code 3",
    "abort": "signal 6",
    "missing": "no attribute 'missing'",
    "RUNS": "list, which cannot be called",
}


@pytest.mark.parametrize(("warm_up", "message"), AT_THE_START.items())
def test_one_that_never_works_is_an_error_of_the_start(warm_up, message):
    before = children_of_this_process()
    with pytest.raises(pyspawner.ZygoteStartError, match=message) as caught:
        pyspawner.Client(child_main="support.run_source", warm_up=f"warm_ups.{warm_up}")
    assert f"warm_up 'warm_ups.{warm_up}' is not usable" in str(caught.value)
    assert children_of_this_process() == before


@pytest.mark.parametrize("name", ["f", ".f", "f.", ""])
def test_a_name_without_a_module_is_refused_at_once(name):
    with pytest.raises(ValueError, match="warm_up must be"):
        pyspawner.Client(child_main="support.run_source", warm_up=name)


def test_a_process_that_it_leaves_behind_does_not_hold_up_the_start():
    with pyspawner.Client(
        child_main="support.run_source", warm_up="warm_ups.leave_a_process_in_the_scout"
    ) as client:
        assert run(client, "print('started')").text == "started\n"


def test_one_that_hangs_holds_up_neither_spawns_nor_close():
    client = pyspawner.Client(
        child_main="support.run_source", warm_children=1, warm_up="warm_ups.hang_in_sandbox"
    )
    for _ in range(3):
        assert run(client, "print('cold')").text == "cold\n"
    eventually(waiting, "a child on its way")
    client.close()
    assert waiting() == set()


class Interrupted(Exception):
    """By a signal handler."""


def test_a_scout_that_hangs_ends_with_an_interrupted_start():
    def interrupt(*_: object) -> None:
        raise Interrupted

    def interrupt_when_it_hangs() -> None:
        eventually(named_scout_hangs, "the scout")
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupt)
    watcher = threading.Thread(target=interrupt_when_it_hangs)
    watcher.start()
    with pytest.raises(Interrupted):
        pyspawner.Client(child_main="support.run_source", warm_up="warm_ups.hang_by_name")
    signal.signal(signal.SIGUSR1, before)
    watcher.join()
    eventually(lambda: not named_scout_hangs(), "the end of the scout")


def named_scout_hangs() -> bool:
    """Whether there is a process that hangs in ``warm_ups.hang_by_name``."""
    for file in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if file.read_text() == "scout hangs\n":
                return True
    return False
