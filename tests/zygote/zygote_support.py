"""Zygotes as processes: who they are, and how they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyspawner


def pids(client: pyspawner.Client) -> list[int]:
    """The zygotes that serve."""
    assert client._zygotes is not None
    return [zygote.native.zygote_pid for zygote in client._zygotes._serving]


def watchdog(client: pyspawner.Client) -> int:
    assert client._zygotes is not None
    return client._zygotes.current.watchdog_pid


def kill(pid: int) -> None:
    """Kill a zygote, and wait until it is dead."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    os.close(pidfd)


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()
