"""What tests of the executor share."""

from __future__ import annotations

import concurrent.futures
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

import pyspawner
from support import children_of_this_process, open_descriptors


def printed(future: pyspawner.SandboxFuture) -> bytes:
    assert future.completed is not None
    assert future.completed.stdout == b""
    return future.completed.stderr


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pyspawner-executor"]


@contextlib.contextmanager
def nothing_left():
    def held():
        return sorted(open_descriptors().values()), children_of_this_process(), threading.enumerate()

    until(lambda: not workers())
    before = held()
    yield
    assert held() == before


def run_script(source: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run ``source`` as a program. One that hangs fails."""
    script = directory / "script.py"
    script.write_text(f"import sys; sys.path += {sys.path!r}\nimport pyspawner\n{source}")
    command = [sys.executable, "-W", "error", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def assert_cancelled(future: concurrent.futures.Future) -> None:
    assert future.cancelled()
    assert future.done()
    assert not future.running()
    assert concurrent.futures.wait([future], timeout=0).done == {future}
    assert list(concurrent.futures.as_completed([future], timeout=60)) == [future]
    with pytest.raises(CancelledError):
        future.result()
