"""Measure what a spawn costs, beside others that start Python processes: ``python benches/run.py --help``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import (
    cpu,
    environments,
    headline,
    latency,
    layers,
    memory,
    networks,
    outcomes,
    report,
    start_time,
    throughput,
)
from bench.contestants import ENTRIES, YARDSTICK, YARDSTICK_WORKLOAD
from bench.team import Team
from bench.workloads import WORKLOADS


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    runs: int
    """Of each contestant at each workload."""
    rounds: int
    """Of throughput and CPU time."""
    seconds: float
    """That a throughput is measured for."""
    spawns: int
    """Whose CPU time is measured together."""
    window: float
    """Seconds in which the machine is idle again."""
    children: int
    """Whose memory is measured together."""
    settle: float
    """Seconds until memory is what it will be."""
    starts: int
    """Of each zygote."""


FULL = Scale(runs=100, rounds=3, seconds=0.5, spawns=70, window=0.1, children=50, settle=0.5, starts=3)
QUICK = Scale(runs=5, rounds=1, seconds=0.1, spawns=10, window=0.05, children=3, settle=0.1, starts=1)
SLOW_AND_QUICK = ("hello", "pandas groupby")
"""What the slow ones do in a quick run."""


def main() -> int:
    """Measure and report; 1 if a contestant could not run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few runs: to see that it works")
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=environments.ROOT / "docs" / "benchmarks",
        metavar="DIRECTORY",
        help="write benchmarks.md, benchmarks.json and plots, to docs/benchmarks unless told otherwise",
    )
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    started = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - started:4.0f} s  {text}", file=sys.stderr, flush=True)

    facts = report.machine()
    facts["load average before"] = round(os.getloadavg()[0], 1)
    turns = [
        (entry, workload)
        for entry in ENTRIES
        for workload in WORKLOADS
        if not options.quick or entry.every == 1 or workload in SLOW_AND_QUICK
    ]
    with Team([*ENTRIES, YARDSTICK], progress) as team:
        latencies = latency.measure(team, [*turns, (YARDSTICK, YARDSTICK_WORKLOAD)], scale.runs)
        sustained = throughput.measure(team, ENTRIES, rounds=scale.rounds, seconds=scale.seconds)
        cpu_times = cpu.measure(team, ENTRIES, rounds=scale.rounds, spawns=scale.spawns, window=scale.window)
        memories = memory.measure(team, ENTRIES, count=scale.children, settle=scale.settle)
        starts = start_time.measure(team, ENTRIES, runs=scale.starts)
    facts["load average after"] = round(os.getloadavg()[0], 1)
    progress("the rest")
    parts = layers.measure(scale.runs)
    others = outcomes.measure(quick=options.quick)
    networked = networks.measure(quick=options.quick)
    comparisons = headline.comparisons(latencies, sustained, cpu_times, memories)
    text = report.markdown(
        latencies,
        comparisons,
        [
            throughput.markdown(sustained),
            cpu.markdown(cpu_times),
            memory.markdown(memories),
            start_time.markdown(starts),
            layers.markdown(parts),
            outcomes.markdown(others),
            networks.markdown(networked),
        ],
        team.errors,
        facts,
    )
    print(text, end="")
    if options.write:
        figures = {
            **throughput.flat(sustained),
            "milliseconds of CPU time of a spawn": cpu_times,
            **memory.flat(memories),
            "milliseconds until a zygote's first child": starts,
            "microseconds of the parts of a spawn": parts,
            "outcomes": others,
            **networks.flat(networked),
        }
        report.write(
            options.write,
            text=text,
            latencies=latencies,
            comparisons=comparisons,
            others=figures,
            facts=facts,
        )
    for name, reason in team.errors.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    progress("done")
    return 1 if team.errors else 0


if __name__ == "__main__":
    sys.exit(main())
