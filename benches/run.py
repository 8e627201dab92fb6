"""Measure what a spawn costs, beside others that start Python processes: ``python benches/run.py --help``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench import contestants, environments, harness, layers, networks, outcomes, report, workloads

QUICK_RUNS = 10


def main() -> int:
    """Measure and report; 1 if a contestant could not run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="spawns of each contestant at each workload")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} runs: to see that it works")
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=environments.ROOT / "docs" / "benchmarks",
        metavar="DIRECTORY",
        help="write benchmarks.md and benchmarks.json, to docs/benchmarks unless told otherwise",
    )
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")

    facts = report.machine()
    facts["load average before"] = round(os.getloadavg()[0], 1)
    runs = QUICK_RUNS if options.quick else options.runs
    results = harness.measure(
        contestants.ENTRIES,
        tuple(workloads.WORKLOADS),
        runs,
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    facts["load average after"] = round(os.getloadavg()[0], 1)
    parts = layers.measure(runs)
    others = outcomes.measure(quick=options.quick)
    networked = networks.measure(quick=options.quick)
    tables = [*layers.markdown(parts), "", *outcomes.markdown(others), "", *networks.markdown(networked)]
    text = report.markdown(results, tables, facts)
    print(text, end="")
    if options.write:
        report.write(
            options.write,
            results,
            {"parts of a spawn": parts, "outcomes": others, **networks.flat(networked)},
            facts,
            text,
        )
    failed = report.errors(results)
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
