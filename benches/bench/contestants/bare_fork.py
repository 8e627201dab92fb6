"""os.fork() by the worker, which has imported pandas: no sandbox, and the least that any zygote must cost.

Unless it is spared some of the cost of fork: nothing here does that.
"""

from __future__ import annotations

import os
import traceback

import pandas as pd

from .. import workloads
from . import Running


class BareFork:
    """This very process."""

    def __init__(self) -> None:
        assert pd

    def spawn(self, workload: str) -> Running:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(writer, 1)
                os.closerange(3, max(reader, writer) + 1)
                workloads.run_preloaded(workload)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writer)

        def reap() -> int:
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status)

        def close() -> bytes:
            os.close(reader)
            return b"(its standard error is the worker's)"

        return Running(reader, reap, close)

    def close(self) -> None:
        """Nothing is kept between spawns."""


start = BareFork
