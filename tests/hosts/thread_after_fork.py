"""A module with a thread that comes back after a fork, as some profilers and loggers have one."""

import os
import threading
from pathlib import Path


def _start() -> None:
    named = threading.Event()

    def work() -> None:
        Path("/proc/thread-self/comm").write_text("comes-back")
        named.set()
        threading.Event().wait()

    threading.Thread(target=work, daemon=True).start()
    named.wait()


_start()
os.register_at_fork(after_in_child=_start)
