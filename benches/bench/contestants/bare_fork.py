"""os.fork() by the worker, which has imported pandas: no sandbox, and the least that any zygote must cost.

Unless it is spared some of the cost of fork: nothing here does that.
"""

from __future__ import annotations

import os
import threading
import traceback

import pandas as pd

from .. import workloads
from . import Contestant, Running


class BareFork(Contestant):
    """This very process."""

    def __init__(self) -> None:
        assert pd
        # A child of another thread that has a pipe's writing end would keep the reader from its end of file.
        self._one_writer = threading.Lock()

    def spawn(self, workload: str) -> Running:
        with self._one_writer:
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                _run_child(writer, workload)
            os.close(writer)

        def reap() -> int:
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status)

        def close() -> bytes:
            os.close(reader)
            return b"(its standard error is the worker's)"

        return Running(reader, pid, reap, close)


def _run_child(writer: int, workload: str) -> None:
    code = 1
    try:
        os.dup2(writer, 1)
        os.close(writer)
        workloads.run_preloaded(workload)
        os.close(1)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


start = BareFork
