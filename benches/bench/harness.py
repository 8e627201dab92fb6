"""Asks the workers in turn, so that whatever disturbs the machine disturbs all contestants alike."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .environments import BENCHES, UnavailableError, own_python

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .contestants import Entry

ANSWER_TIMEOUT = 120
WARM_UP_ROUNDS = 3
# The kernel takes a namespace apart after its last process has been reaped. That must not run into the next
# one's time.
PAUSE_BETWEEN_SPAWNS = 0.005


@dataclass
class Samples:
    """One contestant at one workload. Times in seconds."""

    first_byte: list[float] = field(default_factory=list)
    reaped: list[float] = field(default_factory=list)
    error: str | None = None
    """Why it could not do it. The samples do not count then."""


class Worker:
    """A contestant's process."""

    def __init__(self, entry: Entry) -> None:
        # With -c there is no main module that multiprocessing would import again in every child.
        source = f"import bench.worker; bench.worker.main({entry.module!r})"
        self._process = subprocess.Popen(
            [entry.find_python(), "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=BENCHES,
            env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(BENCHES)},
            text=True,
        )
        try:
            self._receive()
        except UnavailableError:
            self.close()
            raise

    def measure(self, workload: str) -> dict[str, Any]:
        """Have it spawn a child, once."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"workload": workload}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise UnavailableError("its worker has ended") from None
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT)
        line = self._process.stdout.readline() if readable else ""
        if not readable:
            self._process.kill()
            raise UnavailableError(f"no answer within {ANSWER_TIMEOUT} seconds")
        if not line:
            raise UnavailableError(f"its worker has ended, exit code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise UnavailableError(answer["error"].strip())
        return answer

    def close(self) -> None:
        """End the process. A worker that has hung is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def measure(
    entries: Sequence[Entry], workloads: Sequence[str], runs: int, progress: Callable[[str], None]
) -> dict[str, dict[str, Samples]]:
    """Measure all entries at all workloads; the result is by workload, then by the entry's name."""
    results = {workload: {entry.name: Samples() for entry in entries} for workload in workloads}
    expected = {workload: _expected_output(workload) for workload in workloads}
    with contextlib.ExitStack() as stack:
        workers: dict[Entry, Worker] = {}
        for entry in entries:
            progress(f"starting {entry.name}")
            try:
                workers[entry] = stack.enter_context(contextlib.closing(Worker(entry)))
            except UnavailableError as error:
                for samples in results.values():
                    samples[entry.name].error = str(error)
        turns = [(entry, workload) for entry in workers for workload in workloads]
        order = random.Random(0)
        for round_number in range(-WARM_UP_ROUNDS, runs):
            if round_number % max(1, runs // 10) == 0:
                progress(f"round {round_number} of {runs}")
            # Shuffled, so that nobody always runs after the same other one.
            order.shuffle(turns)
            for entry, workload in turns:
                samples = results[workload][entry.name]
                if samples.error or round_number % entry.every:
                    continue
                time.sleep(PAUSE_BETWEEN_SPAWNS)
                try:
                    answer = workers[entry].measure(workload)
                except UnavailableError as error:
                    samples.error = str(error)
                    continue
                if answer["output"] != expected[workload]:
                    samples.error = f"wrong output: {answer['output']!r}"
                elif round_number >= 0:
                    samples.first_byte.append(answer["first_byte"])
                    samples.reaped.append(answer["reaped"])
    return results


def _expected_output(workload: str) -> str:
    source = f"from bench import workloads; workloads.run({workload!r})"
    return subprocess.check_output([own_python(), "-c", source], cwd=BENCHES, text=True, stderr=sys.stderr)
