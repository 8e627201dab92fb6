"""sandlock around a new interpreter that imports pandas. (It can clone a prepared process too, but all clones in one call.)"""

from __future__ import annotations

import os
import sys

from sandlock import Sandbox, StdioMode

from . import Contestant, Running
from .new_interpreter import source


class Sandlock(Contestant):
    """A program started in a sandbox that may read everything and write nothing, as bubblewrap's here."""

    def __init__(self) -> None:
        self._environment = {"PYTHONPATH": os.environ["PYTHONPATH"]}

    def spawn(self, workload: str) -> Running:
        # One of them holds one process.
        sandbox = Sandbox(fs_readable=["/"], clean_env=True, env=self._environment)
        process = sandbox.popen(
            [sys.executable, "-c", source(workload)],
            stdin=StdioMode.NULL,
            stdout=StdioMode.PIPED,
            stderr=StdioMode.PIPED,
        )
        stdout, stderr = process.stdout, process.stderr
        assert stdout is not None
        assert stderr is not None
        assert process.pid is not None

        def reap() -> int:
            return process.wait().exit_code

        def close() -> bytes:
            with stdout, stderr:
                return stderr.read()

        return Running(stdout.fileno(), process.pid, reap, close)


start = Sandlock
