"""A module that starts one thread with a name of its own, as many libraries do."""

import threading
from pathlib import Path

_named = threading.Event()


def _work() -> None:
    Path("/proc/thread-self/comm").write_text("worker-of-mine")
    _named.set()
    threading.Event().wait()


threading.Thread(target=_work, daemon=True).start()
_named.wait()


def main() -> None:
    pass
