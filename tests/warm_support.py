"""What tests of warm children share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyspawner
import support

PATIENCE = 60
"""Seconds. Nothing here takes a tenth of it, unless it never comes."""

PARKED_NAME = "pyspawner: warm"


def eventually(condition: Callable[[], Any], what: str) -> None:
    support.wait_until(condition, what, seconds=PATIENCE)


def parked(client: pyspawner.Client) -> int:
    """How many children are ready."""
    assert client._zygotes is not None
    return client._zygotes.current.parked


def await_parked(client: pyspawner.Client, count: int) -> None:
    eventually(lambda: parked(client) == count, f"{count} parked children")


def title(pid: int) -> str:
    """What ps shows."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().removesuffix("\n")


def state(pid: int) -> str:
    """Of a process: S asleep, T stopped, Z ended and not reaped; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def waiting() -> set[int]:
    """The children of this process that are parked, or on their way."""
    return {pid for pid in support.children_of_this_process() if title(pid) == PARKED_NAME}


def spawn_warm(
    client: pyspawner.Client,
    source: str,
    *,
    sandbox: pyspawner.SandboxConfig = support.SANDBOX,
    **options: Any,
) -> pyspawner.ChildProcess:
    """Have a child parked, and spawn. It must be one that was there before.

    On a busy machine a parked child may not answer in time, and a cold one takes its place: then once more.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        client.prewarm(sandbox, 1)
        there = waiting()
        child = support.spawn(client, source, sandbox=sandbox, **options)
        if child.pid in there:
            return child
        child.kill()
        child.communicate()
        assert time.monotonic() < deadline, "all are cold"


def cool(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig = support.SANDBOX) -> None:
    """Have none parked, nor on its way."""
    client.prewarm(sandbox, 0)
    eventually(lambda: not waiting(), "the end of the parked ones")


def run_warm(client: pyspawner.Client, source: str, *, stdin: bytes = b"", **options: Any) -> support.Outcome:
    return support.communicate(spawn_warm(client, source, **options), stdin)
