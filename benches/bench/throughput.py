"""How many children a second one caller gets, with several threads that spawn, read and reap as fast as they can."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from .team import expected_output

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .contestants import Entry
    from .team import Team

WORKLOAD = "hello"
THREADS = (1, 2, 4, 8)

Figures = dict[str, dict[int, float]]
"""By the contestant's name, then by the number of threads: children a second."""


def measure(team: Team, entries: Iterable[Entry], *, rounds: int, seconds: float) -> Figures:
    """Return medians of the rounds, in which all take turns."""
    output = expected_output(WORKLOAD)
    samples: dict[str, dict[int, list[float]]] = {}
    entries = [entry for entry in entries if team.has(entry)]
    for round_number in range(rounds):
        team.progress(f"throughput, round {round_number} of {rounds}")
        for threads in THREADS:
            for entry in entries:
                if threads not in entry.threads:
                    continue
                with team.noting(entry, _threads(threads)):
                    answer = team.ask(
                        entry, "sustain", workload=WORKLOAD, threads=threads, seconds=seconds, output=output
                    )
                    found = samples.setdefault(entry.name, {}).setdefault(threads, [])
                    found.append(answer["per_second"])
    return {
        name: {threads: statistics.median(found) for threads, found in by_threads.items()}
        for name, by_threads in samples.items()
    }


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def markdown(figures: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Return the table."""
    lines = [
        "## Sustained spawns",
        "",
        f"Children a second that say {WORKLOAD}, spawned, read and reaped by so many threads of one caller. 1.0's `Client` has a lock of",
        "its own, as pyspawner's; `os.fork` has one around pipe and fork, or a pipe would leak into another thread's child;",
        "multiprocessing polls the children of other threads, so it has one thread. What waits warm at the start is soon used up: the",
        "rest are made while others run.",
        "",
        "| contestant | " + " | ".join(map(_threads, THREADS)) + " |",
        "|---|" + "--:|" * len(THREADS),
    ]
    for name, by_threads in figures.items():
        cells = [f"{by_threads[threads]:.0f}" if threads in by_threads else "" for threads in THREADS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def flat(figures: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    """Return them as the report keeps figures."""
    return {
        f"spawns per second: {name}": {_threads(threads): rate for threads, rate in by_threads.items()}
        for name, by_threads in figures.items()
    }
