"""What a worker can be told to do with its contestant. The clocks are here."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from . import workloads

if TYPE_CHECKING:
    from collections.abc import Callable

    from .contestants import Contestant, Running

_CHUNK = 65536
_held: list[Running] = []


def spawn(contestant: Contestant, workload: str) -> dict[str, Any]:
    """Spawn one child, read its output to the end, reap it."""
    contestant.prepare()
    return _spawn(contestant, workload)


def first(contestant: Contestant, workload: str) -> dict[str, Any]:
    """Spawn one child of a contestant that has made nothing ready for it yet."""
    return _spawn(contestant, workload)


def repeat(contestant: Contestant, workload: str, times: int, output: str) -> dict[str, Any]:
    """Spawn so many, one after the other. What has been made ready for them is ready again at the end."""
    for _ in range(times):
        _check(spawn(contestant, workload), output)
    contestant.prepare()
    return {}


def sustain(
    contestant: Contestant, workload: str, threads: int, seconds: float, output: str
) -> dict[str, Any]:
    """Have so many threads spawn as fast as they can, and count."""
    contestant.prepare()
    started = time.perf_counter()

    def run(_: int) -> int:
        count = 0
        while time.perf_counter() < started + seconds:
            _check(_spawn(contestant, workload), output)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(run, range(threads)))
    return {"per_second": count / (time.perf_counter() - started)}


def prepare(contestant: Contestant) -> dict[str, Any]:
    """Have the contestant make ready what it makes ready."""
    contestant.prepare()
    return {}


def hold(contestant: Contestant, workload: str, count: int) -> dict[str, Any]:
    """Spawn children that are alive until ``release``, and wait until each has done its workload."""
    for _ in range(count):
        child = contestant.spawn(workload + workloads.HELD_SUFFIX)
        _held.append(child)
        said = b""
        while not said.endswith(workloads.HELD_LINE.encode()):
            chunk = os.read(child.stdout, _CHUNK)
            if not chunk:
                raise RuntimeError(f"a child has ended early: {child.close().decode(errors='replace')}")
            said += chunk
    return {"pids": [child.pid for child in _held]}


def release(contestant: Contestant) -> dict[str, Any]:
    """End those that are held."""
    del contestant
    while _held:
        child = _held.pop()
        os.kill(child.pid, signal.SIGKILL)
        child.reap()
        child.close()
    return {}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    action.__name__: action for action in (spawn, first, repeat, sustain, prepare, hold, release)
}


def _spawn(contestant: Contestant, workload: str) -> dict[str, Any]:
    started = time.perf_counter()
    child = contestant.spawn(workload)
    spawned = time.perf_counter()
    chunk = os.read(child.stdout, _CHUNK)
    first_byte = time.perf_counter()
    chunks = [chunk]
    while chunk:
        chunk = os.read(child.stdout, _CHUNK)
        chunks.append(chunk)
    exit_code = child.reap()
    reaped = time.perf_counter()

    stderr = child.close().decode(errors="replace")
    if exit_code != 0:
        raise RuntimeError(f"the child ended with exit code {exit_code}; its standard error: {stderr}")
    return {
        "spawn_call": spawned - started,
        "first_byte": first_byte - started,
        "reaped": reaped - started,
        "output": b"".join(chunks).decode(errors="replace"),
    }


def _check(answer: dict[str, Any], output: str) -> None:
    if answer["output"] != output:
        raise RuntimeError(f"wrong output: {answer['output']!r}")
