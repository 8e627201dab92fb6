"""pyspawner, this one or 1.0: whichever the worker's interpreter has. The calls are the same.

Both may be called by several threads: each has a lock around its conversation with the zygote.
"""

from __future__ import annotations

import os
from typing import Any

import pyspawner

from . import Contestant, Running


class PyspawnerClient(Contestant):
    """A client with pandas preloaded, and a full sandbox without network for every child."""

    def __init__(self, **settings: Any) -> None:
        self._sandbox = pyspawner.SandboxConfig()
        self._client = pyspawner.Client(
            child_main="bench.workloads.run_preloaded",
            environment={"PYTHONPATH": os.environ["PYTHONPATH"]},
            preload_imports=["pandas"],
            **settings,
        )

    def spawn(self, workload: str) -> Running:
        child = self._client.spawn_child([workload], sandbox_config=self._sandbox)

        def reap() -> int:
            _, status = child.wait(0)
            return os.waitstatus_to_exitcode(status)

        def close() -> bytes:
            with child.stdin, child.stdout, child.stderr:
                return child.stderr.read()

        return Running(child.stdout.fileno(), child.pid, reap, close)

    def close(self) -> None:
        self._client.close()


start = PyspawnerClient
