"""Callers without root, on the host of a world of ``internet.py``: who starts them, and what they are asked to do."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import netns
import ordinary_user
import pyspawner
import support
from netns import Caller, Namespace
from ordinary_user import OrdinaryUser

TUN = "mount -t tmpfs none /mnt && mknod -m {mode} /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun"
_PR_SET_NO_NEW_PRIVS = 38
_HIDE = "mount -t tmpfs none {directory}"


@contextlib.contextmanager
def caller(
    namespace: Namespace,
    user: OrdinaryUser,
    *,
    path: str = "/usr/bin:/bin",
    tun_mode: int = 0o666,
    hidden: Sequence[str] = (),
    prelude: Callable[[], object] | None = None,
) -> Iterator[Caller]:
    """Run a caller as the user, who sees the host's files, but for what is said.

    :param path: where it looks for programs.
    :param tun_mode: who may open ``/dev/net/tun``. Everybody may on most hosts.
    :param hidden: directories that are empty.
    """
    script = " && ".join(
        [
            TUN.format(mode=f"{tun_mode:o}"),
            *(_HIDE.format(directory=directory) for directory in hidden),
            'exec "$@"',
        ]
    )
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh", *ordinary_user.become(), f"PATH={path}"]
    with Caller(
        namespace,
        prefix=prefix,
        prelude=prelude,
        interpreter=ordinary_user.python(),
        modules=user.modules,
    ) as started:
        yield started


def pastas() -> list[int]:
    """Every ``pasta`` of this machine, dead ones that nobody has reaped among them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_text().startswith(("pasta", "passt")):
                found.append(int(entry.name))
    return found


def refuse_keyctl() -> None:
    """As ``netns.refuse_keyctl``, of one's own accord: whoever does that gives up ever gaining privileges."""
    assert ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    netns.refuse_keyctl()


# What callers are asked to do.


def left_open(client: pyspawner.Client) -> tuple[set[int], set[int]]:
    """The caller's processes and descriptors."""
    del client
    return support.children_of_this_process(), set(support.open_descriptors())


def probe(
    client: pyspawner.Client, sandboxes: Sequence[pyspawner.SandboxConfig], targets: Sequence[str]
) -> list[dict[str, str]]:
    """Let a child in each sandbox, all at once, try to reach targets; see ``probes.py``."""
    source = """
        import json, sys
        sys.stdin.read()
        import probes
        print(json.dumps(probes.attempt_all(targets, 2)))
    """
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(sandboxes)) as pool:

        def spawn(sandbox: pyspawner.SandboxConfig) -> pyspawner.ChildProcess:
            return support.spawn(client, source, sandbox=sandbox, targets=targets)

        children = [stack.enter_context(child) for child in pool.map(spawn, sandboxes)]
        return [json.loads(outcome.text) for outcome in pool.map(support.communicate, children)]


def run_in_derived(client: pyspawner.Client, source: str, sandbox: pyspawner.SandboxConfig) -> str:
    """What a child of another zygote says, which is a clone of the client's."""
    with client.derive() as derived:
        return support.run(derived, source, sandbox=sandbox).text


def layer(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig) -> str:
    """What a child says of its network."""
    with netns.running(client, sandbox) as child:
        return child.layers["network"]


def end_child(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig, how: str) -> tuple[int, int]:
    """End a child; return how many ``pasta`` there were while it lived, and how many children the caller had more than before."""
    before = support.children_of_this_process()
    child = support.spawn(client, "import sys; sys.stdin.read()", sandbox=sandbox)
    alive = len(pastas())
    if how == "zygote":
        os.kill(client.zygote_pid, signal.SIGKILL)
    if how != "exit":
        child.kill()
    support.communicate(child)
    return alive, len(support.children_of_this_process() - before)


def leave_running(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig, *, close: bool) -> int:
    """Leave a child that lives, with its client open or closed. Its pid."""
    child = support.spawn(client, "import sys; sys.stdin.read()", sandbox=sandbox)
    _left.append(child)
    if close:
        client.close()
    return child.pid


def end_what_is_left(client: pyspawner.Client) -> None:
    del client
    while _left:
        assert support.communicate(_left.pop()).status == 0


_left: list[pyspawner.ChildProcess] = []


def listen(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig, port: int) -> bool:
    """Whether a child that listens everywhere is reached by the caller itself, at any address of the host, or the child's own."""
    source = "import socket, sys\nserver = socket.create_server(('', port)); print('up', flush=True); sys.stdin.read()"
    child = support.spawn(client, source, sandbox=sandbox, port=port)
    try:
        assert child.stdout.readline() == b"up\n"
        for address in ("127.0.0.1", "198.19.0.2", "192.168.1.10"):
            with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
                return True
        return False
    finally:
        support.communicate(child)
