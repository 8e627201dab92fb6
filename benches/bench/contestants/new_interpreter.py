"""A new interpreter that imports pandas, without a sandbox: what subprocess gives, and what programs are wrapped around."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from . import Contestant, Running

if TYPE_CHECKING:
    from collections.abc import Sequence


def source(workload: str) -> str:
    """Return the program of a child that has no zygote."""
    return f"import pandas; from bench import workloads; workloads.run_preloaded({workload!r})"


class NewInterpreter(Contestant):
    """``python -c``, started anew for every child."""

    def __init__(self, wrapper: Sequence[str] = ()) -> None:
        self._command = (*wrapper, sys.executable, "-c")

    def spawn(self, workload: str) -> Running:
        process = subprocess.Popen(
            [*self._command, source(workload)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": os.environ["PYTHONPATH"]},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        stdout, stderr = process.stdout, process.stderr

        def close() -> bytes:
            with stdout, stderr:
                return stderr.read()

        return Running(stdout.fileno(), process.pid, process.wait, close)


start = NewInterpreter
