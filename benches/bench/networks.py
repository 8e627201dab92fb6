"""What a child's network costs, beside 1.0's."""

from __future__ import annotations

import json
import statistics
import subprocess
from typing import TYPE_CHECKING

from . import environments
from .contestants import BASELINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

AT_ONCE = (1, 32)

WAYS: dict[str, tuple[Callable[[], Path], str]] = {
    f"{BASELINE}, `NetworkConfig`": (environments.pyspawner_1_python, "by hand"),
    "`NetworkConfig`": (environments.own_python, "by hand"),
    "`NetworkConfig.managed`": (environments.own_python, "managed"),
}


def measure(*, quick: bool) -> dict[str, dict[str, float]]:
    """Return medians, in milliseconds for a child, by way and number of children."""
    runs = 3 if quick else 20
    workers = {way: _start(find_python(), kind) for way, (find_python, kind) in WAYS.items()}
    try:
        samples: dict[str, dict[int, list[float]]] = {
            way: {count: [] for count in AT_ONCE} for way in workers
        }
        for _ in range(runs):
            for count in AT_ONCE:
                for way, worker in workers.items():
                    samples[way][count].append(_ask(worker, count))
    finally:
        for worker in workers.values():
            worker.communicate(timeout=30)
    return {
        way: {str(count): statistics.median(found) for count, found in by_count.items()}
        for way, by_count in samples.items()
    }


def _start(python: Path, kind: str) -> subprocess.Popen[str]:
    source = f"from bench import network_worker; network_worker.main({kind!r})"
    return subprocess.Popen(
        ["unshare", "--net", python, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=environments.BENCHES,
        text=True,
    )


def _ask(worker: subprocess.Popen[str], count: int) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(json.dumps({"children": count}), file=worker.stdin, flush=True)
    answer = json.loads(worker.stdout.readline() or '{"error": "its worker has ended"}')
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["milliseconds"]


def flat(figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return them by title, as the report keeps figures."""
    return {
        f"network: {way}": {f"{count} at a time": ms for count, ms in found.items()}
        for way, found in figures.items()
    }


def markdown(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the table."""
    baseline = next(iter(figures.values()))
    lines = [
        "## Networks",
        "",
        "Medians in milliseconds for a child, from its spawn to its end, nothing preloaded, so many children alive at the same time. 1.0's",
        "children, and those of `NetworkConfig`, have IPv4 and no firewall.",
        "",
        "| network | " + " | ".join(f"{count} at a time | by 1.0's" for count in AT_ONCE) + " |",
        "|---|" + "--:|--:|" * len(AT_ONCE),
    ]
    for way, by_count in figures.items():
        cells = [
            f"{by_count[str(count)]:.2f} | {by_count[str(count)] / baseline[str(count)]:.2f}"
            for count in AT_ONCE
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines
