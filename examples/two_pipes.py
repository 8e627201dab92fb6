"""The safe way to read a child's two pipes.

A child that you do not trust may write without end, write nothing and never end, fill one pipe while you
read the other, or close both and live on. ``communicate`` takes all of these. Copy it and change it as you
need.
"""

from __future__ import annotations

import os
import selectors
import sys
import time
from dataclasses import dataclass

import pyspawner


@dataclass(frozen=True)
class Result:
    """What a child left behind."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    """As ``subprocess`` has it: minus the signal's number if a signal ended it."""
    timed_out: bool
    truncated: bool
    """It wrote more than the limit to one of its pipes; the rest was read and thrown away."""


def communicate(child: pyspawner.ChildProcess, *, timeout: float, limit: int) -> Result:
    """Read a child's pipes to their end and reap it.

    :param timeout: seconds until it is killed.
    :param limit: bytes to keep of each pipe.
    """
    try:
        outputs, timed_out, truncated = _read(child, timeout, limit)
    except BaseException:  # Ctrl-C, for example: leave no child behind.
        child.kill()
        child.wait()
        raise
    # 3. Reap it, or it stays a zombie. It has ended: this does not block.
    _, status = child.wait()
    return Result(*outputs, os.waitstatus_to_exitcode(status), timed_out, truncated)


def _read(
    child: pyspawner.ChildProcess, timeout: float, limit: int
) -> tuple[tuple[bytes, bytes], bool, bool]:
    deadline = time.monotonic() + timeout
    kept = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    timed_out = truncated = False
    with selectors.DefaultSelector() as selector, child.stdin, child.stdout, child.stderr:
        child.stdin.close()
        # 1. Watch both pipes, and the child itself: the end of its output is not the end of the child.
        ending = os.pidfd_open(child.pid)  # Nobody has reaped it, so the pid is still its own.
        try:
            for descriptor in (*kept, ending):
                selector.register(descriptor, selectors.EVENT_READ)
            # 2. Read whatever has data. After a kill, too: the pipes may be full, and their end is near.
            while selector.get_map():
                for key, _ in selector.select(None if timed_out else max(0, deadline - time.monotonic())):
                    data = b"" if key.fd == ending else os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fd)
                        continue
                    room = limit - len(kept[key.fd])
                    kept[key.fd] += data[:room]
                    truncated = truncated or len(data) > room
                if not timed_out and selector.get_map() and time.monotonic() >= deadline:
                    timed_out = True
                    child.kill()  # And everything it has started: its pid namespace ends with it.
        finally:
            os.close(ending)
    stdout, stderr = map(bytes, kept.values())
    return (stdout, stderr), timed_out, truncated


def behave(kind: str) -> None:
    """Be the child."""
    if kind == "is well-behaved":
        print("forty-two")
        print("a warning", file=sys.stderr)
    elif kind == "floods":
        while True:
            print("spam " * 1000)
    elif kind == "hangs":
        time.sleep(3600)
    elif kind == "closes its pipes and lives on":
        os.closerange(0, 3)
        time.sleep(3600)


def main() -> None:
    """Meet one child of each kind."""
    with pyspawner.Client(child_main="two_pipes.behave") as client:
        for kind in ("is well-behaved", "floods", "hangs", "closes its pipes and lives on"):
            child = client.spawn_child([kind], sandbox_config=pyspawner.SandboxConfig())
            result = communicate(child, timeout=1, limit=10_000)
            end = "killed after one second" if result.timed_out else f"exit code {result.exit_code}"
            cut = ", and more that was thrown away" if result.truncated else ""
            print(f"One that {kind}: {end}.")
            print(f"  stdout: {len(result.stdout)} bytes, {result.stdout[:20]!r}{cut}")
            print(f"  stderr: {len(result.stderr)} bytes, {result.stderr[:20]!r}")


if __name__ == "__main__":
    main()
