"""bubblewrap around a new interpreter that imports pandas: what there is without a zygote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from ..environments import UnavailableError
from . import Running

SANDBOX = (
    *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all"),
    *("--cap-drop", "ALL", "--new-session", "--die-with-parent"),
)


class Bubblewrap:
    """The program bwrap, started anew for every child."""

    def __init__(self) -> None:
        program = shutil.which("bwrap")
        if program is None:
            raise UnavailableError("there is no program bwrap; the Debian package is bubblewrap")
        self._command = (program, *SANDBOX, sys.executable, "-c")

    def spawn(self, workload: str) -> Running:
        source = f"import pandas; from bench import workloads; workloads.run_preloaded({workload!r})"
        process = subprocess.Popen(
            [*self._command, source],
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

        return Running(stdout.fileno(), process.wait, close)

    def close(self) -> None:
        """Nothing is kept between spawns."""


start = Bubblewrap
