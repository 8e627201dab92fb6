"""pyspawner, this one or 1.0: whichever the worker's interpreter has. The calls are the same."""

from __future__ import annotations

import os

import pyspawner

from . import Running


class PyspawnerClient:
    """A client with pandas preloaded, and a full sandbox without network for every child."""

    def __init__(self) -> None:
        self._client = pyspawner.Client(
            child_main="bench.workloads.run_preloaded",
            environment={"PYTHONPATH": os.environ["PYTHONPATH"]},
            preload_imports=["pandas"],
        )

    def spawn(self, workload: str) -> Running:
        child = self._client.spawn_child([workload], sandbox_config=pyspawner.SandboxConfig())

        def reap() -> int:
            _, status = child.wait(0)
            return os.waitstatus_to_exitcode(status)

        def close() -> bytes:
            with child.stdin, child.stdout, child.stderr:
                return child.stderr.read()

        return Running(child.stdout.fileno(), reap, close)

    def close(self) -> None:
        self._client.close()


start = PyspawnerClient
