"""How long it takes until a contestant has imported pandas and its first child has said something."""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING

from .team import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .contestants import Entry
    from .team import Team

WORKLOAD = "hello"


def measure(team: Team, entries: Iterable[Entry], *, runs: int) -> dict[str, float]:
    """Return medians in milliseconds of those that keep a process ready; each run has a new worker."""
    samples: dict[str, list[float]] = {}
    entries = [entry for entry in entries if entry.zygote and team.has(entry)]
    for run in range(runs):
        team.progress(f"start time, run {run} of {runs}")
        for entry in entries:
            with team.noting(entry, "start time"), contextlib.closing(Worker(entry)) as worker:
                first = worker.ask("first", workload=WORKLOAD)
                seconds = worker.start_seconds + first["first_byte"]
                samples.setdefault(entry.name, []).append(1000 * seconds)
    return {name: statistics.median(found) for name, found in samples.items()}


def markdown(figures: Mapping[str, float]) -> list[str]:
    """Return the table."""
    lines = [
        "## Start of a zygote",
        "",
        "Medians in milliseconds from nothing to the first byte of the first child, the import of pandas included.",
        "",
        "| contestant | milliseconds |",
        "|---|--:|",
    ]
    return [*lines, *(f"| {name} | {milliseconds:.0f} |" for name, milliseconds in figures.items())]
