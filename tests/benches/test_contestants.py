"""Every contestant of the benchmark does what the others do, and what is measured of it is there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import cpu, memory, start_time
from bench.contestants import BASELINE, ENTRIES, YARDSTICK, YARDSTICK_WORKLOAD, Entry
from bench.environments import UnavailableError
from bench.team import Team, Worker, expected_output
from bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterator

IMPOSSIBLE = [(entry, workload) for entry in ENTRIES for workload in entry.cannot]


def by_name(entry: Entry) -> str:
    return entry.name


def of(name: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.name == name)


@pytest.fixture(scope="module", params=ENTRIES, ids=by_name)
def team(request: pytest.FixtureRequest) -> Iterator[tuple[Team, Entry]]:
    """One contestant, started."""
    with Team([request.param], print) as team:
        assert team.errors == {}
        yield team, request.param


def test_its_children_print_what_all_print(team: tuple[Team, Entry]) -> None:
    members, entry = team
    for workload in WORKLOADS.keys() - entry.cannot:
        answer = members.ask(entry, "spawn", workload=workload)
        assert answer["output"] == expected_output(workload)
        assert 0 < answer["spawn_call"] <= answer["first_byte"] <= answer["reaped"]


def test_a_child_that_fails_is_no_figure(team: tuple[Team, Entry]) -> None:
    members, entry = team
    with pytest.raises(UnavailableError, match=r"exit code 1"):
        members.ask(entry, "spawn", workload="no such workload")


def test_a_child_with_other_output_is_no_figure(team: tuple[Team, Entry]) -> None:
    members, entry = team
    with pytest.raises(UnavailableError, match="wrong output"):
        members.ask(entry, "repeat", workload="hello", times=1, output="something else")


def test_its_children_can_be_spawned_by_as_many_threads_as_it_says(team: tuple[Team, Entry]) -> None:
    members, entry = team
    arguments = {"workload": "hello", "seconds": 0.05, "output": expected_output("hello")}
    answer = members.ask(entry, "sustain", threads=max(entry.threads), **arguments)
    assert answer["per_second"] > 0


def test_its_children_live_until_they_are_released(team: tuple[Team, Entry]) -> None:
    members, entry = team
    pids = members.ask(entry, "hold", workload="pandas groupby", count=2)["pids"]
    assert len(set(pids)) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    members.ask(entry, "release")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_its_memory_is_measured(team: tuple[Team, Entry]) -> None:
    members, entry = team
    results = memory.measure(members, [entry], count=2, settle=0)
    assert members.errors == {}
    states = [memory.PARKED] * entry.parks + [memory.IDLE, memory.WORKING]
    figures = [results[state][entry.name] for state in states]
    assert all(found.private > 0 and found.page_tables > 0 for found in figures)
    # Without a zygote, a child has all of pandas for itself.
    assert (results[memory.IDLE][entry.name].private > 20_000) == (not entry.zygote)
    assert memory.markdown(results)


@pytest.mark.parametrize(
    ("entry", "workload"), IMPOSSIBLE, ids=[f"{entry.name}, {workload}" for entry, workload in IMPOSSIBLE]
)
def test_what_a_contestant_is_said_not_to_stand_it_does_not(entry: Entry, workload: str) -> None:
    with contextlib.closing(Worker(entry)) as worker, pytest.raises(UnavailableError, match="exit code -"):
        worker.ask("spawn", workload=workload)


def test_the_yardstick_answers() -> None:
    with Team([YARDSTICK], print) as team:
        answers = [team.ask(YARDSTICK, "spawn", workload=YARDSTICK_WORKLOAD) for _ in range(3)]
    assert {answer["output"] for answer in answers} == {expected_output(YARDSTICK_WORKLOAD)}


def test_starts_are_measured_of_those_that_keep_a_process() -> None:
    entries = [of(BASELINE), next(entry for entry in ENTRIES if not entry.zygote)]
    with Team(entries, print) as team:
        assert list(start_time.measure(team, entries, runs=1)) == [BASELINE]
        assert team.errors == {}


def test_who_cannot_start_is_named_and_the_others_go_on() -> None:
    broken = Entry("broken", "no_such_module")
    with Team([broken, YARDSTICK], print) as team:
        assert (team.has(broken), team.has(YARDSTICK)) == (False, True)
        assert "no_such_module" in team.errors["broken"]


def test_cpu_time_is_that_of_the_whole_machine() -> None:
    before = cpu.Clock.read()
    burner = os.fork()
    if burner == 0:
        while sum(os.times()[:2]) < 0.5:
            pass
        os._exit(0)
    os.waitpid(burner, 0)
    # The clock ticks a hundred times a second.
    assert cpu.Clock.read().busy_since(before) > 0.4
