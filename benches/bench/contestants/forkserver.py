"""multiprocessing's fork server: no sandbox."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING

from .. import workloads
from . import Contestant, Running

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def child_main(stdout: Connection, workload: str) -> None:
    """Be the child. multiprocessing has no pipes for standard output: this is one."""
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    workloads.run_preloaded(workload)


class ForkServer(Contestant):
    """A fork server with pandas preloaded, and this module: a child finds ``child_main`` in memory. It ends with the worker."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pandas", __name__])

    def spawn(self, workload: str) -> Running:
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=child_main, args=(writer, workload))
        process.start()
        assert process.pid is not None
        writer.close()

        def reap() -> int:
            process.join()
            assert process.exitcode is not None
            return process.exitcode

        def close() -> bytes:
            reader.close()
            process.close()
            return b"(its standard error is the worker's)"

        return Running(reader.fileno(), process.pid, reap, close)


start = ForkServer
