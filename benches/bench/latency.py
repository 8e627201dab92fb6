"""How long a spawn takes: all contestants take turns, so that whatever disturbs the machine disturbs all alike."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .environments import UnavailableError
from .team import expected_output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .contestants import Entry
    from .team import Team

WARM_UP_ROUNDS = 3
# The kernel takes a namespace apart after its last process has been reaped. That must not run into the next
# one's time.
PAUSE_BETWEEN_SPAWNS = 0.005


@dataclass
class Samples:
    """One contestant at one workload. Times in seconds."""

    spawn_call: list[float] = field(default_factory=list[float])
    first_byte: list[float] = field(default_factory=list[float])
    """Nothing of a workload that prints nothing."""
    reaped: list[float] = field(default_factory=list[float])
    error: str | None = None
    """Why it could not do it. The samples do not count then."""


Results = dict[str, dict[str, Samples]]
"""By workload, then by the contestant's name."""


def measure(team: Team, turns: Iterable[tuple[Entry, str]], runs: int) -> Results:
    """Measure each entry at each workload that it is paired with."""
    turns = list(turns)
    results: Results = {}
    for entry, workload in turns:
        samples = results.setdefault(workload, {})[entry.name] = Samples(error=entry.cannot.get(workload))
        if not team.has(entry):
            samples.error = team.errors[entry.name]
    order = random.Random(0)
    for round_number in range(-WARM_UP_ROUNDS, runs):
        if round_number % max(1, runs // 10) == 0:
            team.progress(f"round {round_number} of {runs}")
        # Shuffled, so that nobody always runs after the same other one.
        order.shuffle(turns)
        for entry, workload in turns:
            samples = results[workload][entry.name]
            if not samples.error and round_number % entry.every == 0:
                _take(team, entry, workload, samples if round_number >= 0 else Samples())
    return results


def _take(team: Team, entry: Entry, workload: str, samples: Samples) -> None:
    """Spawn one child; in a warm-up round the samples are thrown away."""
    expected = expected_output(workload)
    time.sleep(PAUSE_BETWEEN_SPAWNS)
    with team.noting(entry, workload):
        try:
            answer = team.ask(entry, "spawn", workload=workload)
            if answer["output"] != expected:
                raise UnavailableError(f"wrong output: {answer['output']!r}")
        except UnavailableError as error:
            samples.error = str(error)
            raise
        samples.spawn_call.append(answer["spawn_call"])
        samples.reaped.append(answer["reaped"])
        if expected:
            samples.first_byte.append(answer["first_byte"])
