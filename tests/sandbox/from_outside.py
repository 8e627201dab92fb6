"""What the host's root does to the mounts of a living child, so that a test meets the layer behind them.

All that a child sees is nosuid and nodev, and its ``/proc`` is read-only. That alone stops much of what other
layers stop too: to see these at work, a test puts something in the child's view that is as the host has it.
And what cannot be written there Landlock would not let a child write in any case: such a test does without it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attacks

if TYPE_CHECKING:
    import pyspawner

OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, FSCONFIG_CMD_CREATE = 1, 4, 6
NEWPID = 0x2000_0000


def show(child: pyspawner.ChildProcess, source: str | Path, target: str) -> None:
    """Mount a directory of the host over ``target`` in the child, with its setuid bits and its devices."""
    _do(child, "show", source, target)


def show_proc(child: pyspawner.ChildProcess, target: str) -> None:
    """Mount over ``target`` in the child a ``/proc`` of its own processes that can be written to."""
    _do(child, "show_proc", target)


def _do(child: pyspawner.ChildProcess, *arguments: object) -> None:
    # A process of its own: it does not come back from there.
    command = [sys.executable, "-S", __file__, str(child.pid), *map(str, arguments)]
    environment = {"PYTHONPATH": str(Path(attacks.__file__).parent)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done


def _call(name: str, *arguments: object) -> int:
    answer = attacks.call(name, *arguments)
    assert answer >= 0, f"{name}: {os.strerror(-answer)}"
    return answer


def _attach(pid: str, mount: int, target: str) -> None:
    _call("setns", os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), attacks.NEWNS)
    _call("move_mount", mount, b"", attacks.AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)


def _new_proc(pid: str) -> int:
    """Made before going there: what is made in the child's mount namespace is as read-only as the one that it has."""
    _call("setns", os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY), NEWPID)
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        # Only a process that is born there is in it.
        filesystem = _call("fsopen", b"proc", 0)
        _call("fsconfig", filesystem, FSCONFIG_CMD_CREATE, 0, 0, 0)
        socket.send_fds(theirs, [b"x"], [_call("fsmount", filesystem, 0, 0)])
        os._exit(0)
    theirs.close()
    _, (mount,), *_ = socket.recv_fds(ours, 1, 1)
    # Its namespace does not end as long as it is a zombie there.
    os.wait()
    return mount


def main(pid: str, what: str, *paths: str) -> None:
    """Go to the mount namespace of a process, and do one of the above there."""
    if what == "show":
        source, target = paths
        mount = _call("open_tree", attacks.AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE)
    else:
        (target,) = paths
        mount = _new_proc(pid)
    _attach(pid, mount, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
