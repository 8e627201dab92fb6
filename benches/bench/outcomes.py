"""What it costs to get a child's output, to limit it, and to hold many at once."""

from __future__ import annotations

import asyncio
import os
import selectors
import statistics
import time
from typing import TYPE_CHECKING

import pyspawner
from pyspawner import aio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MEGABYTES = 100
CHILDREN = 1000
_CHUNK = 65536
_NO_LIMITS = pyspawner.Limits(
    memory_bytes=None, cpu_seconds=None, processes=None, open_files=None, file_bytes=None, cgroup="never"
)
_SANDBOX = pyspawner.SandboxConfig()
_UNLIMITED = pyspawner.SandboxConfig(limits=_NO_LIMITS)


def write_megabytes(count: int) -> None:
    """Be a child that writes much."""
    megabyte = bytes(1_000_000)
    for _ in range(count):
        view = memoryview(megabyte)
        while view:
            view = view[os.write(1, view) :]


def wait_for_input() -> None:
    """Be a child that waits until it is told to end."""
    os.read(0, 1)


def measure(*, quick: bool) -> dict[str, float]:
    """Return medians in milliseconds, and the figures of many children at once."""
    megabytes, runs, many = (10, 5, 50) if quick else (MEGABYTES, 20, CHILDREN)
    return {
        "megabytes": megabytes,
        **_output(megabytes, runs),
        **_limits(10 * runs),
        **asyncio.run(_many(many)),
    }


def _output(megabytes: int, runs: int) -> dict[str, float]:
    ways: dict[str, Callable[[pyspawner.ChildProcess], int]] = {
        "communicate": lambda child: len(child.communicate(max_output=10**9).stdout),
        "selectors": _read_with_selectors,
    }
    with pyspawner.Client(child_main="bench.outcomes.write_megabytes") as client:

        def run(read: Callable[[pyspawner.ChildProcess], int]) -> None:
            length = read(client.spawn_child([megabytes], sandbox_config=_SANDBOX))
            if length != megabytes * 1_000_000:
                raise RuntimeError(f"{length} bytes came of {megabytes} MB")

        return _medians({name: lambda read=read: run(read) for name, read in ways.items()}, runs)


def _read_with_selectors(child: pyspawner.ChildProcess) -> int:
    """Read both pipes at once, as one had to with 1.0."""
    chunks: dict[int, list[bytes]] = {}
    with selectors.DefaultSelector() as selector, child.stdin, child.stdout, child.stderr:
        for pipe in (child.stdout, child.stderr):
            selector.register(pipe.fileno(), selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                chunk = os.read(key.fd, _CHUNK)
                chunks.setdefault(key.fd, []).append(chunk)
                if not chunk:
                    selector.unregister(key.fd)
        stdout = b"".join(chunks[child.stdout.fileno()])
    child.wait()
    return len(stdout)


def _limits(runs: int) -> dict[str, float]:
    with pyspawner.Client(child_main="builtins.print") as client:
        sandboxes = {"default limits": _SANDBOX, "no limits": _UNLIMITED}
        return _medians(
            {
                name: lambda sandbox=sandbox: client.spawn_child(sandbox_config=sandbox).communicate()
                for name, sandbox in sandboxes.items()
            },
            runs,
        )


async def _many(count: int) -> dict[str, float]:
    async with aio.Client(child_main="bench.outcomes.wait_for_input") as client:
        started = time.perf_counter()
        children = [await client.spawn_child(sandbox_config=_SANDBOX) for _ in range(count)]
        spawned = time.perf_counter()
        completed = await asyncio.gather(*(child.communicate(b"x") for child in children))
        ended = time.perf_counter()
    if any(one.returncode for one in completed):
        raise RuntimeError("a child has failed")
    return {"children": count, "spawned": 1000 * (spawned - started), "ended": 1000 * (ended - spawned)}


def _medians(ways: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Let all take turns; medians in milliseconds."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            samples[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in samples.items()}


def markdown(figures: Mapping[str, float]) -> list[str]:
    """Return the tables."""
    output, limits = figures["communicate"], figures["default limits"]
    return [
        f"## {figures['megabytes']:.0f} MB of output",
        "",
        "Medians in milliseconds, from the spawn to the end. The loop is in Python, with `selectors` and `os.read`.",
        "",
        "| way | milliseconds | communicate by it |",
        "|---|--:|--:|",
        f"| `communicate()` | {output:.0f} | 1.00 |",
        f"| a loop with selectors | {figures['selectors']:.0f} | {output / figures['selectors']:.2f} |",
        "",
        "## Limits",
        "",
        "Medians in milliseconds of spawn and end, nothing preloaded; limits of each process, without a cgroup.",
        "",
        "| limits | milliseconds | default by it |",
        "|---|--:|--:|",
        f"| the default | {limits:.2f} | 1.00 |",
        f"| none | {figures['no limits']:.2f} | {limits / figures['no limits']:.2f} |",
        "",
        "## Many children in one event loop",
        "",
        f"{figures['children']:.0f} children of one asyncio loop, alive at the same time: {figures['spawned']:.0f} ms to spawn them one"
        f" after the other, {figures['ended']:.0f} ms to feed, read and reap all of them.",
    ]
