"""What the children of these tests do before they park. A child in its sandbox has pid 1, the scout has not."""

from __future__ import annotations

import os
import queue
import random
import sys
import threading
import uuid
from pathlib import Path

RUNS: list[dict[str, object]] = []
"""Of this very process."""

DRAWN: list[object] = []


def is_in_sandbox() -> bool:
    return os.getpid() == 1


def remember() -> None:
    RUNS.append({"pid": os.getpid(), "uid": os.getuid(), "cwd": str(Path.cwd())})


def speak() -> None:
    print("said by warm_up")
    print("said by warm_up", file=sys.stderr)
    sys.stdout.write("the end of what warm_up said")


def import_something() -> None:
    import colorsys  # noqa: F401 (no test imports it)


def draw() -> None:
    DRAWN.extend([random.random(), uuid.uuid4().hex])


def raise_everywhere() -> None:
    raise LookupError("the model is missing \N{SNOWMAN}")


def raise_in_sandbox() -> None:
    if is_in_sandbox():
        raise LookupError("the model is missing \N{SNOWMAN}")


def leave() -> None:
    sys.exit("enough")


def leave_in_sandbox() -> None:
    if is_in_sandbox():
        sys.exit("enough")


def exit_with_0() -> None:
    os._exit(0)


def exit_with_3() -> None:
    os._exit(3)


def exit_in_sandbox() -> None:
    if is_in_sandbox():
        os._exit(0)


def abort() -> None:
    os.abort()


def abort_in_sandbox() -> None:
    if is_in_sandbox():
        os.abort()


def hang() -> None:
    threading.Event().wait()


def hang_by_name() -> None:
    Path("/proc/self/comm").write_text("scout hangs")
    threading.Event().wait()


def hang_in_sandbox() -> None:
    if is_in_sandbox():
        threading.Event().wait()


def leave_a_process_in_the_scout() -> None:
    """As a pool of processes that nobody shuts down. It ends with its caller."""
    if not is_in_sandbox() and os.fork() == 0:
        threading.Event().wait(20)
        os._exit(0)


def burn() -> None:
    """Use a second and a half of CPU time, in a sandbox."""
    while is_in_sandbox() and os.times().user < 1.5:
        sum(range(100_000))


QUESTIONS: queue.Queue[str] = queue.Queue()
ANSWERS: queue.Queue[str] = queue.Queue()


def start_a_thread() -> None:
    def answer() -> None:
        while True:
            ANSWERS.put(f"answer to {QUESTIONS.get()}")

    threading.Thread(target=answer, daemon=True).start()


def ask(question: str) -> str:
    QUESTIONS.put(question)
    return ANSWERS.get(timeout=60)
