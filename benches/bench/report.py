"""Figures, tables and files."""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import environments
from .contestants import BASELINE, OWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .harness import Samples

    Results = dict[str, dict[str, Samples]]

FIGURES = {
    "first_byte": "spawn to first byte",
    "reaped": "spawn to reaped",
}
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Row:
    """A contestant's line in a table. Times in milliseconds."""

    name: str
    runs: int
    percentiles: dict[int, float]
    ratio: float | None
    """Our median by its median: below 1, we are faster. ``None`` if ours is not known."""
    error: str | None


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile, between two samples if it lies there."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def rows(by_contestant: dict[str, Samples], figure: str) -> list[Row]:
    """Return the table of one figure of one workload."""
    times = {
        name: [1000 * seconds for seconds in getattr(samples, figure)]
        for name, samples in by_contestant.items()
        if not samples.error
    }
    own_median = percentile(times[OWN], 50) if times.get(OWN) else None
    table: list[Row] = []
    for name, samples in by_contestant.items():
        measured = times.get(name) or []
        percentiles = {percent: percentile(measured, percent) for percent in PERCENTILES if measured}
        ratio = own_median / percentiles[50] if measured and own_median else None
        error = samples.error or (None if measured else "no run")
        table.append(Row(name, len(measured), percentiles, ratio, error))
    return table


def errors(results: Results) -> dict[str, str]:
    """Who could not run, and why: the first reason of each."""
    found: dict[str, str] = {}
    for workload, by_contestant in results.items():
        for row in rows(by_contestant, "reaped"):
            if row.error:
                found.setdefault(row.name, f"{workload}: {row.error}")
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": names[0] if names else platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "loaded by import pandas": environments.pandas_versions(environments.own_python()),
    }


def markdown(results: Results, parts: Sequence[str], facts: dict[str, Any]) -> str:
    """Return the whole report; ``parts`` are lines on what a spawn is made of."""
    lines = ["# Benchmarks", "", *_headline(results)]
    lines += [
        "Times in milliseconds, of one run in which all contestants took turns. Every spawn is cold: a new",
        "clone, fork or program. `ours by its` is pyspawner's median divided by the contestant's: below 1,",
        "pyspawner is faster. pyspawner, bubblewrap and sandlock have a sandbox. Written by `benches/run.py`.",
    ]
    for workload, by_contestant in results.items():
        for figure, title in FIGURES.items():
            lines += ["", f"## {workload}, {title}", "", *_table(rows(by_contestant, figure))]
    lines += ["", *parts]
    failed = errors(results)
    if failed:
        lines += ["", "## Errors"]
        for name, reason in failed.items():
            lines += ["", f"{name}:", "", *(f"    {line}" for line in reason.splitlines())]
    lines += ["", "## Machine", ""]
    for name, value in facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {name}: {text}")
    return "\n".join(lines) + "\n"


def _headline(results: Results) -> list[str]:
    lines: list[str] = []
    for workload, by_contestant in results.items():
        ratios = [
            f"{title} {row.ratio:.2f}"
            for figure, title in FIGURES.items()
            for row in rows(by_contestant, figure)
            if row.name == BASELINE and row.ratio is not None
        ]
        if ratios:
            lines.append(f"- **{workload}: time of {OWN} by that of {BASELINE}: {', '.join(ratios)}**")
    return [*lines, ""] if lines else []


def _table(table: Sequence[Row]) -> list[str]:
    lines = [
        "| contestant | runs | p50 | p90 | p99 | ours by its |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in table:
        if row.error:
            lines.append(f"| {row.name} | {row.runs} | error | error | error | |")
            continue
        cells = [f"{row.percentiles[percent]:.2f}" for percent in PERCENTILES]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.name} | {row.runs} | {' | '.join(cells)} | {ratio} |")
    return lines


def write(
    directory: Path,
    results: Results,
    others: dict[str, dict[str, float]],
    facts: dict[str, Any],
    text: str,
) -> None:
    """Write ``benchmarks.json``, with every sample, and ``benchmarks.md``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "benchmarks.md").write_text(text)
    document = {
        "machine": facts,
        "unit": "microseconds",
        "results": {
            workload: {
                name: {
                    "error": samples.error,
                    **{figure: [round(1e6 * s) for s in getattr(samples, figure)] for figure in FIGURES},
                }
                for name, samples in by_contestant.items()
            }
            for workload, by_contestant in results.items()
        },
        **{
            title: {name: round(value, 2) for name, value in figures.items()}
            for title, figures in others.items()
        },
    }
    (directory / "benchmarks.json").write_text(_json(document) + "\n")


def _json(value: object, indent: str = "") -> str:
    """Format JSON with every list of samples on one line."""
    if not isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    deeper = indent + "  "
    members = [f"{deeper}{json.dumps(key)}: {_json(member, deeper)}" for key, member in value.items()]
    return "{\n" + ",\n".join(members) + f"\n{indent}}}"
