"""Where a spawn's time goes: what each layer of the sandbox costs the child, and what the rest costs."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import pyspawner

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMESPACES = "clone into namespaces, id map, messages"
"""What is left of a spawn when its layers are taken away."""


def measure(runs: int) -> dict[str, float]:
    """Return the median microseconds of every layer, with pandas preloaded, and of the whole spawn."""
    samples: dict[str, list[float]] = {}
    with pyspawner.Client(child_main="builtins.print", preload_imports=["pandas"]) as client:
        for _ in range(runs):
            started = time.perf_counter()
            child = client.spawn_child(sandbox_config=pyspawner.SandboxConfig())
            spawn = 1e6 * (time.perf_counter() - started)
            with child.stdin, child.stdout, child.stderr:
                child.stdout.read()
            child.wait()
            layers = {name: nanoseconds / 1000 for name, nanoseconds in child._handle.layer_nanoseconds}
            layers.pop("namespaces")
            for name, microseconds in layers.items():
                samples.setdefault(name, []).append(microseconds)
            samples.setdefault(NAMESPACES, []).append(spawn - sum(layers.values()))
            samples.setdefault("spawn", []).append(spawn)
    return {name: statistics.median(values) for name, values in samples.items()}


def markdown(medians: Mapping[str, float]) -> list[str]:
    """Return the table."""
    whole = medians["spawn"]
    lines = [
        "## Where a spawn's time goes",
        "",
        "Medians of the call `spawn_child()` in the default sandbox, with pandas preloaded.",
        "",
        "| part | microseconds | share |",
        "|---|--:|--:|",
    ]
    parts = {name: value for name, value in medians.items() if name != "spawn"}
    for name in sorted(parts, key=lambda name: -parts[name]):
        lines.append(f"| {name} | {parts[name]:.0f} | {parts[name] / whole:.0%} |")
    return [*lines, f"| the whole call | {whole:.0f} | |"]
