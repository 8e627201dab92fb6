"""What one wants to know first: how many times faster, or smaller, than each of the others."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import memory
from .contestants import COLD, WARM, WARM_UP, YARDSTICK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .latency import Results, Samples
    from .throughput import Figures

OURS = (COLD, WARM, WARM_UP)
SUSTAINED_THREADS = 4
WARM_TARGET = 3
"""A warm spawn's first byte should take less than so many bare round trips."""


@dataclass(frozen=True)
class Comparison:
    """One figure of ours against that of each peer."""

    name: str
    """Of its plot's file."""
    title: str
    ours: str
    """Our contestant's name."""
    figure: str
    """Our figure, with its unit."""
    ratios: dict[str, float]
    """By the peer's name: how many times better ours is. Below 1, the peer is better."""


def comparisons(
    latencies: Results,
    sustained: Figures,
    cpu_times: Mapping[str, float],
    memories: memory.Results,
) -> list[Comparison]:
    """Return all that have been measured."""
    found = [
        _less(
            "warm-first-byte",
            "hello, warm: spawn to first byte",
            WARM,
            _medians(latencies, "hello", "first_byte"),
            "ms",
        ),
        _less(
            "cold-first-byte",
            "hello, cold: spawn to first byte",
            COLD,
            _medians(latencies, "hello", "first_byte"),
            "ms",
        ),
        _less(
            "cold-reaped",
            "empty child, cold: spawn to reaped",
            COLD,
            _medians(latencies, "empty", "reaped"),
            "ms",
        ),
        _less(
            "warm-groupby",
            "pandas groupby, warm with warm_up: spawn to first byte",
            WARM_UP,
            _medians(latencies, "pandas groupby", "first_byte"),
            "ms",
        ),
        _more(
            "sustained",
            f"spawns a second, {SUSTAINED_THREADS} threads (forkserver: 1)",
            WARM,
            _sustained(sustained),
            "/s",
        ),
        _less("cpu", "CPU time of a spawn, cold", COLD, cpu_times, "ms"),
        _less("memory", "memory of a parked child, theirs of one that waits", WARM, _memory(memories), "KB"),
    ]
    return [comparison for comparison in found if comparison is not None]


def _medians(latencies: Results, workload: str, figure: str) -> dict[str, float]:
    """Medians in milliseconds of those who could do it."""

    def times(samples: Samples) -> list[float]:
        return [] if samples.error else getattr(samples, figure)

    return {
        name: 1000 * statistics.median(times(samples))
        for name, samples in latencies.get(workload, {}).items()
        if times(samples) and name != YARDSTICK.name
    }


def _sustained(figures: Figures) -> dict[str, float]:
    """Children a second with so many threads, or with the most that a contestant stands."""
    return {name: by_threads[min(max(by_threads), SUSTAINED_THREADS)] for name, by_threads in figures.items()}


def _memory(results: memory.Results) -> dict[str, float]:
    """Kilobytes that nobody else has: of our parked children, and of others' that have no more to do than to say hello."""
    figures = {**results[memory.IDLE], **results[memory.PARKED]}
    return {name: found.unique for name, found in figures.items()}


def _less(name: str, title: str, ours: str, figures: Mapping[str, float], unit: str) -> Comparison | None:
    """Compare figures of which the smaller is the better. What a busy machine has drowned is not there, or below zero."""
    known = {contestant: value for contestant, value in figures.items() if value > 0}
    ratios = {
        peer: value / known[ours] for peer, value in known.items() if ours in known and peer not in OURS
    }
    return Comparison(name, title, ours, _with_unit(known[ours], unit), ratios) if ratios else None


def _more(name: str, title: str, ours: str, figures: Mapping[str, float], unit: str) -> Comparison | None:
    """Compare figures of which the greater is the better."""
    comparison = _less(name, title, ours, figures, unit)
    if comparison is None:
        return None
    return replace(comparison, ratios={peer: 1 / ratio for peer, ratio in comparison.ratios.items()})


def _with_unit(value: float, unit: str) -> str:
    return f"{short(value)}{'' if unit.startswith('/') else ' '}{unit}"


def short(value: float) -> str:
    """Return a number with about three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(found: list[Comparison], latencies: Results) -> list[str]:
    """Return the table, of a row a peer, and what the yardstick says."""
    peers = list(dict.fromkeys(peer for comparison in found for peer in comparison.ratios))
    lines = [
        "How many times better pyspawner is than each of the others: above 1, pyspawner is faster, or takes less.",
        "",
        "| | ours | " + " | ".join(peers) + " |",
        "|---|--:|" + "--:|" * len(peers),
    ]
    for comparison in found:
        cells = [f"{short(comparison.ratios[peer])}" if peer in comparison.ratios else "" for peer in peers]
        lines.append(f"| {comparison.title} | {comparison.figure} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"![{comparison.title}]({comparison.name}.svg)" for comparison in found]
    return [*lines, "", *_yardstick(latencies)]


def _yardstick(latencies: Results) -> list[str]:
    samples = latencies.get("hello", {}).get(YARDSTICK.name)
    warm = _medians(latencies, "hello", "first_byte").get(WARM)
    if samples is None or not samples.first_byte or warm is None:
        return []
    bare = 1000 * statistics.median(samples.first_byte)
    return [
        f"The bare round trip, a message with four descriptors to a process that waits for it and a byte back, takes {bare:.3f} ms: a warm",
        f"child's first byte takes {warm / bare:.1f} times that; the aim is less than {WARM_TARGET}.",
        "",
    ]
