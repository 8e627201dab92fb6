"""The memory that one more child takes: what it shares with nobody, and what the kernel needs for it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .team import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .contestants import Entry
    from .team import Team

PARKED = "parked"
IDLE = "has said hello"
WORKING = "has grouped with pandas"
_WORKLOADS = {IDLE: "hello", WORKING: "pandas groupby"}


@dataclass(frozen=True)
class Figures:
    """Kilobytes for a child."""

    private: float
    """Pages that are its processes' alone (``Private_*`` in ``smaps_rollup``)."""
    kernel: float
    """What the whole machine's kernel has more: page tables, stacks, namespaces, descriptors."""
    page_tables: float
    """The page tables of its processes (``VmPTE``), a part of the kernel's."""
    anonymous: float
    """What all processes of the machine have more: also pages that a zygote has copied because of it."""

    @property
    def unique(self) -> float:
        """What one more child takes."""
        return self.private + self.kernel


# Free memory says less: what has been freed may wait, uncounted, in lists of each processor.
_KERNEL = ("KernelStack", "PageTables", "Percpu", "SUnreclaim")

Results = dict[str, dict[str, Figures]]
"""By the state of the children, then by the contestant's name."""


def measure(team: Team, entries: Iterable[Entry], *, count: int, settle: float) -> Results:
    """Return the figures of so many children at once; of a tenth of them without a zygote.

    What ends, or has just begun, frees and takes memory for a while: so many seconds are waited before each look.
    """
    results: Results = {PARKED: {}, IDLE: {}, WORKING: {}}
    for entry in entries:
        if not team.has(entry):
            continue
        team.progress(f"memory, {entry.name}")
        if entry.parks:
            with team.noting(entry, "memory of parked children"):
                results[PARKED][entry.name] = _parked(entry, count, settle)
        of_this = count if entry.zygote else max(2, count // 10)
        for state, workload in _WORKLOADS.items():
            with team.noting(entry, f"memory of a child that {state}"):
                results[state][entry.name] = _held(team, entry, workload, of_this, settle)
    return results


def _parked(entry: Entry, count: int, settle: float) -> Figures:
    """In a worker of its own, which parks as many as are wanted here."""
    with contextlib.closing(Worker(replace(entry, options={**entry.options, "parked": count}))) as worker:
        others = _with_descendants({worker.pid})
        before = _Machine.read(settle)
        worker.ask("prepare")
        return before.figures(_with_descendants({worker.pid}) - others, count, settle)


def _held(team: Team, entry: Entry, workload: str, count: int, settle: float) -> Figures:
    # What is there before and after must be the same number of parked children.
    team.ask(entry, "prepare")
    before = _Machine.read(settle)
    try:
        pids = team.ask(entry, "hold", workload=workload, count=count)["pids"]
        team.ask(entry, "prepare")
        return before.figures(_with_descendants(set(pids)), count, settle)
    finally:
        team.ask(entry, "release")


@dataclass(frozen=True)
class _Machine:
    """What is in use, in kilobytes."""

    kernel: int
    anonymous: int

    @classmethod
    def read(cls, settle: float) -> _Machine:
        time.sleep(settle)
        return cls(_kilobytes("/proc/meminfo", *_KERNEL), _kilobytes("/proc/meminfo", "AnonPages"))

    def figures(self, processes: set[int], count: int, settle: float) -> Figures:
        """Return what is there more now, for each of so many children, with these processes."""
        now = _Machine.read(settle)
        private = page_tables = 0
        for pid in processes:
            private += _kilobytes(f"/proc/{pid}/smaps_rollup", "Private_Clean", "Private_Dirty")
            page_tables += _kilobytes(f"/proc/{pid}/status", "VmPTE")
        kernel, anonymous = now.kernel - self.kernel, now.anonymous - self.anonymous
        return Figures(private / count, kernel / count, page_tables / count, anonymous / count)


def _kilobytes(path: str, *names: str) -> int:
    found = dict(line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
    return sum(int(found[name].split()[0]) for name in names)


def _with_descendants(ancestors: set[int]) -> set[int]:
    """Return processes and those below them, all generations."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name before it, in parentheses, may hold anything.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = ancestors
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found = found | more
    return found


def markdown(results: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """Return the tables."""
    lines = [
        "## Memory of a child",
        "",
        "Kilobytes for each of many that are alive at once. *Private*: pages that nobody else has, from `smaps_rollup`. *Kernel*: by how",
        "much page tables, stacks and other objects of the machine's kernel grow; *page tables*: `VmPTE`, a part of it. *Anonymous*: by",
        "how much the memory of all processes grows, the zygote's too; whatever else runs is in it.",
    ]
    for state, by_contestant in results.items():
        if not by_contestant:
            continue
        lines += ["", f"### A child that {'is ' if state == PARKED else ''}{state}", ""]
        lines += ["| contestant | private + kernel | private | kernel | page tables | anonymous |"]
        lines += ["|---|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {name} | {found.unique:.0f} | {found.private:.0f} | {found.kernel:.0f} | {found.page_tables:.0f} | {found.anonymous:.0f} |"
            for name, found in by_contestant.items()
        ]
    return lines


def flat(results: Mapping[str, Mapping[str, Figures]]) -> dict[str, dict[str, float]]:
    """Return them as the report keeps figures."""
    return {
        f"kilobytes of a child: {state}: {name}": asdict(figures)
        for state, by_contestant in results.items()
        for name, figures in by_contestant.items()
    }
