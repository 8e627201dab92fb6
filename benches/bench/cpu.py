"""The processors' time that a spawn takes from the whole machine, the kernel's own threads that clear up after it included."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .team import expected_output

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .contestants import Entry
    from .team import Team

WORKLOAD = "hello"
TICKS_PER_SECOND = 100
"""The unit of /proc/stat, whatever the kernel's own is."""
SETTLED = 0.1
"""So many processors more than the idle machine's may be busy when the kernel has cleared up."""
SETTLE_AT_MOST = 3.0
MOST_NOISE = 0.2
"""If more than this share of the processors is busy by itself, nothing can be said."""
# Fields of the first line of /proc/stat.
_IDLE, _IOWAIT, _STEAL = 3, 4, 7


@dataclass(frozen=True)
class Clock:
    """A moment, and the processor seconds of all processors together that were not used until then."""

    now: float
    unused: float
    processors: int

    @classmethod
    def read(cls) -> Clock:
        """Read /proc/stat. Where idle processors have no ticks, their time is exact; that of tasks may be sampled."""
        first, *others = Path("/proc/stat").read_text().splitlines()
        fields = [int(field) for field in first.split()[1:]]
        unused = (fields[_IDLE] + fields[_IOWAIT] + fields[_STEAL]) / TICKS_PER_SECOND
        return cls(time.monotonic(), unused, sum(line.startswith("cpu") for line in others))

    def busy_since(self, earlier: Clock) -> float:
        """Processor seconds that were used between two moments."""
        return (self.now - earlier.now) * self.processors - (self.unused - earlier.unused)


def measure(
    team: Team, entries: Iterable[Entry], *, rounds: int, spawns: int, window: float
) -> dict[str, float]:
    """Return milliseconds a spawn by contestant: medians of the rounds, in which all take turns.

    The machine counts as idle again when it was so for a window of seconds. If something else keeps it busy, there is no figure.
    """
    output = expected_output(WORKLOAD)
    samples: dict[str, list[float]] = {}
    entries = [entry for entry in entries if team.has(entry)]
    for round_number in range(rounds):
        team.progress(f"CPU time, round {round_number} of {rounds}")
        for entry in entries:
            times = max(2, spawns // entry.every)
            with team.noting(entry, "CPU time"):
                idle = _busy_rate(5 * window)
                before = Clock.read()
                team.ask(entry, "repeat", workload=WORKLOAD, times=times, output=output)
                _settle(idle, window)
                after = Clock.read()
                idle = (idle + _busy_rate(5 * window)) / 2
                if idle > MOST_NOISE * after.processors:
                    team.progress(f"CPU time of {entry.name}: {idle:.1f} processors are busy without it")
                    continue
                busy = after.busy_since(before) - idle * (after.now - before.now)
                samples.setdefault(entry.name, []).append(1000 * busy / times)
    return {name: statistics.median(found) for name, found in samples.items()}


def _busy_rate(seconds: float) -> float:
    """How many processors are busy, on average, while we only wait."""
    before = Clock.read()
    time.sleep(seconds)
    after = Clock.read()
    return max(0.0, after.busy_since(before) / (after.now - before.now))


def _settle(idle: float, window: float) -> None:
    """Wait until the kernel has cleared up, or something else keeps the machine busy."""
    deadline = time.monotonic() + SETTLE_AT_MOST
    while _busy_rate(window) > idle + SETTLED and time.monotonic() < deadline:
        pass


def markdown(figures: Mapping[str, float]) -> list[str]:
    """Return the table."""
    lines = [
        "## CPU time of a spawn",
        "",
        f"Milliseconds of all processors together for a child that says {WORKLOAD}, until the machine is idle again, less what the idle",
        "machine used: the spawner's, the zygote's, the child's, and that of the kernel, which takes memory and namespaces apart when the",
        "child has been reaped. A warm child's successor is part of it.",
        "",
        "| contestant | milliseconds |",
        "|---|--:|",
    ]
    if not figures:
        return [*lines[:2], "Something else kept the machine busy: there are no figures."]
    return [*lines, *(f"| {name} | {milliseconds:.2f} |" for name, milliseconds in figures.items())]
