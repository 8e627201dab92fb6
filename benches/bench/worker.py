"""The process that one contestant lives in: it keeps it ready, spawns when told to, and holds the clock.

It reads JSON lines on standard input and answers each with one on standard output:

    (start)               -> {"ready": true}
    {"workload": "hello"} -> {"spawn_call": …, "first_byte": …, "reaped": …, "output": "hi\\n"}
    end of file           -> it ends

or, instead of any answer, {"error": "…"}. Times are in seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from .environments import UnavailableError

if TYPE_CHECKING:
    from .contestants import Contestant

_CHUNK = 65536


def main(module: str) -> None:
    """Serve until standard input ends."""
    # Only answers go to what the harness reads. What anybody else prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        contestant: Contestant = importlib.import_module(f"bench.contestants.{module}").start()
    except UnavailableError as error:
        answer({"error": str(error)})
        return
    except Exception:
        answer({"error": traceback.format_exc()})
        return
    answer({"ready": True})
    for line in sys.stdin:
        try:
            answer(measure(contestant, json.loads(line)["workload"]))
        except Exception:
            answer({"error": traceback.format_exc()})
    contestant.close()


def measure(contestant: Contestant, workload: str) -> dict[str, Any]:
    """Spawn one child, read its output to the end, reap it."""
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
