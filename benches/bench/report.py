"""Percentiles, tables and files."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import environments, headline, plots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .headline import Comparison
    from .latency import Results, Samples

FIGURES = {
    "spawn_call": "spawn call",
    "first_byte": "first byte",
    "reaped": "reaped",
}
PERCENTILES = (50, 90, 99)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile, between two samples if it lies there."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


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


def markdown(
    latencies: Results,
    comparisons: list[Comparison],
    parts: Iterable[Sequence[str]],
    errors: Mapping[str, str],
    facts: Mapping[str, Any],
) -> str:
    """Return the whole report; ``parts`` are the tables of all that is not a latency."""
    lines = [
        "# Benchmarks",
        "",
        *headline.markdown(comparisons, latencies),
        "All figures are of one run in which all contestants took turns. pyspawner, 1.0, bubblewrap and sandlock have a sandbox. All but",
        "the new interpreters have imported pandas before they spawn. `pyspawner` alone is cold: each spawn is a new clone. *Warm*",
        "children were parked before the clock started; with *warm_up* they have used pandas before. Written by `benches/run.py --write`.",
        "",
        "## Latency",
        "",
        f"Milliseconds from the spawn: {' / '.join(f'p{percent}' for percent in PERCENTILES)}. An `empty` child prints nothing.",
    ]
    for workload, by_contestant in latencies.items():
        lines += ["", f"### {workload}", "", *_table(by_contestant)]
    for part in parts:
        lines += ["", *part]
    if errors:
        lines += ["", "## Errors"]
        for name, reason in errors.items():
            lines += ["", f"{name}:", "", *(f"    {line}" for line in reason.splitlines())]
    lines += ["", "## Machine", ""]
    for name, value in facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {name}: {text}")
    return "\n".join(lines) + "\n"


def _table(by_contestant: Mapping[str, Samples]) -> list[str]:
    lines = [
        f"| contestant | runs | {' | '.join(FIGURES.values())} |",
        "|---|--:|" + "--:|" * len(FIGURES),
    ]
    for name, samples in by_contestant.items():
        if samples.error:
            reason = samples.error.strip().splitlines()[-1].replace("|", "\\|")
            lines.append(f"| {name} | | {reason} |" + " |" * (len(FIGURES) - 1))
            continue
        cells = [_percentiles(getattr(samples, figure)) for figure in FIGURES]
        lines.append(f"| {name} | {len(samples.reaped)} | {' | '.join(cells)} |")
    return lines


def _percentiles(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    return " / ".join(headline.short(1000 * percentile(seconds, percent)) for percent in PERCENTILES)


def write(
    directory: Path,
    *,
    text: str,
    latencies: Results,
    comparisons: Iterable[Comparison],
    others: Mapping[str, Mapping[str, float]],
    facts: Mapping[str, Any],
) -> None:
    """Write ``benchmarks.md``, ``benchmarks.json`` with every sample, and the plots."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.svg"):
        old.unlink()
    for comparison in comparisons:
        (directory / f"{comparison.name}.svg").write_text(plots.bar_chart(comparison))
    (directory / "benchmarks.md").write_text(text)
    document = {
        "machine": facts,
        "times better": {
            comparison.title: {"ours": comparison.figure, **_rounded(comparison.ratios)}
            for comparison in comparisons
        },
        "unit of latencies": "microseconds",
        "latencies": {
            workload: {
                name: {
                    "error": samples.error,
                    **{figure: [round(1e6 * s) for s in getattr(samples, figure)] for figure in FIGURES},
                }
                for name, samples in by_contestant.items()
            }
            for workload, by_contestant in latencies.items()
        },
        **{title: _rounded(figures) for title, figures in others.items()},
    }
    (directory / "benchmarks.json").write_text(_json(document) + "\n")


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}


def _json(value: object, indent: str = "") -> str:
    """Format JSON with every list of samples on one line."""
    if not isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    deeper = indent + "  "
    members = [f"{deeper}{json.dumps(key)}: {_json(member, deeper)}" for key, member in value.items()]
    return "{\n" + ",\n".join(members) + f"\n{indent}}}"
