"""Run programs that you do not trust, and say what became of them.

A child may write without end, write nothing and never end, fill one pipe while you read the other, crash, or
close both pipes and live on. ``communicate`` takes all of these, and leaves nothing behind.
"""

from __future__ import annotations

import pyspawner

SOLUTIONS = {
    "good": "print(sum(map(int, input().split())))",
    "wrong": "print(41)",
    "broken": "print(1 / 0)",
    "crashing": "import ctypes; ctypes.string_at(0)",
    "endless": "while True: pass",
    "verbose": "while True: print('spam')",
    "silent": "import os, time; os.closerange(0, 3); time.sleep(3600)",
}


def run(source: str) -> None:
    """Be the child."""
    exec(source, {"__name__": "__main__"})


def verdict(completed: pyspawner.Completed) -> str:
    """Say what to tell whoever sent the program."""
    if completed.cause is pyspawner.Cause.TIMED_OUT:
        return f"took too long, after {'some' if completed.stdout else 'no'} output"
    if completed.returncode:
        lines = completed.stderr.decode(errors="replace").splitlines()
        return f"failed: {lines[-1]}" if lines else f"failed with code {completed.returncode}"
    return "correct" if completed.stdout == b"42\n" else f"wrong: {completed.stdout[:20]!r}"


def main() -> None:
    """Judge them all."""
    with pyspawner.Client(child_main="judge.run") as client:
        for name, source in SOLUTIONS.items():
            child = client.spawn_child([source], sandbox_config=pyspawner.SandboxConfig())
            completed = child.communicate(b"20 22\n", timeout=1, max_output=10_000)
            print(f"{name}: {verdict(completed)}")


if __name__ == "__main__":
    main()
