"""The processes of all contestants, and what went wrong in them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from .environments import BENCHES, UnavailableError, own_python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .contestants import Entry

ANSWER_TIMEOUT = 120


class Worker:
    """A contestant's process."""

    def __init__(self, entry: Entry) -> None:
        # With -c there is no main module that multiprocessing would import again in every child.
        source = f"import bench.worker; bench.worker.main({entry.module!r}, {dict(entry.options)!r})"
        self._process = subprocess.Popen(
            [entry.find_python(), "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=BENCHES,
            env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(BENCHES)},
            text=True,
        )
        self.pid = self._process.pid
        try:
            self.start_seconds: float = self._receive()["seconds"]
        except UnavailableError:
            self.close()
            raise

    def ask(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Have it do one of ``actions``."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"action": action, **arguments}), file=self._process.stdin, flush=True)
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


class Team:
    """A worker for each entry that could start, to be asked in turn. As a context manager it ends them."""

    def __init__(self, entries: Iterable[Entry], progress: Callable[[str], None]) -> None:
        self.progress = progress
        self.errors: dict[str, str] = {}
        """By contestant: the first that went wrong, and at what."""
        self._workers: dict[str, Worker] = {}
        for entry in entries:
            progress(f"starting {entry.name}")
            with self.noting(entry, "start"):
                self._workers[entry.name] = Worker(entry)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def has(self, entry: Entry) -> bool:
        """Whether its worker has started."""
        return entry.name in self._workers

    def ask(self, entry: Entry, action: str, **arguments: Any) -> dict[str, Any]:
        """Have a contestant's worker do one of ``actions``."""
        return self._workers[entry.name].ask(action, **arguments)

    @contextlib.contextmanager
    def noting(self, entry: Entry, what: str):
        """Note that a contestant could not do something, and go on without that figure."""
        try:
            yield
        except UnavailableError as error:
            self.errors.setdefault(entry.name, f"{what}: {error}")


@cache
def expected_output(workload: str) -> str:
    """What a child must print."""
    source = f"from bench import workloads; workloads.run({workload!r})"
    return subprocess.check_output([own_python(), "-c", source], cwd=BENCHES, text=True, stderr=sys.stderr)
