"""What tests share: source code as a child, and its outcome."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks
import pyspawner

SANDBOX = pyspawner.SandboxConfig()

READY = "import os, sys; os.write(1, b'ready\\n');"
# For a child with a handler. Who waits for a lock may miss a signal that comes just before: then the handler is not called.
LISTEN = READY + "import time\nwhile True: time.sleep(0.01)"


def run_source(source: str, names: dict[str, Any]) -> None:
    """Be the child: run ``source`` with ``names`` as its globals."""
    exec(compile(textwrap.dedent(source), "<child>", "exec"), {"__name__": "__child__", **names})


@dataclass(frozen=True)
class Outcome:
    """What a child left behind."""

    stdout: bytes
    stderr: bytes
    status: int

    @property
    def exitcode(self) -> int:
        """As subprocess has it: a signal is negative."""
        return os.waitstatus_to_exitcode(self.status)

    @property
    def text(self) -> str:
        """Standard output of a child that must have ended well."""
        assert (self.exitcode, self.stderr) == (0, b""), self
        return self.stdout.decode()


def only(*layers: str) -> pyspawner.SandboxConfig:
    """A sandbox with no optional layers but these. Without names: none at all."""
    return pyspawner.SandboxConfig(skip_sandbox_except=frozenset(layers or {"none of the layers"}))


def spawn(
    client: pyspawner.Client,
    source: str,
    *,
    sandbox: pyspawner.SandboxConfig = SANDBOX,
    process_name: str | None = None,
    **names: Any,
) -> pyspawner.ChildProcess:
    """Start ``source`` in a child; the client's ``child_main`` must be ``support.run_source``."""
    return client.spawn_child([source, names], process_name=process_name, sandbox_config=sandbox)


def communicate(child: pyspawner.ChildProcess, stdin: bytes = b"", *, timeout: float = 120) -> Outcome:
    """Feed a child, read both pipes to the end, and reap it. One that hangs is killed, and shows a signal."""
    outputs: dict[str, bytes] = {}

    def read(name: str) -> None:
        with getattr(child, name) as pipe:
            outputs[name] = pipe.read()

    readers = [threading.Thread(target=read, args=(name,)) for name in ("stdout", "stderr")]
    for reader in readers:
        reader.start()
    guard = threading.Timer(timeout, child.kill)
    guard.start()
    try:
        try:
            with child.stdin:
                child.stdin.write(stdin)
        except BrokenPipeError:
            pass
        for reader in readers:
            reader.join()
        _, status = child.wait()
    finally:
        guard.cancel()
        guard.join()
    return Outcome(outputs["stdout"], outputs["stderr"], status)


def run(client: pyspawner.Client, source: str, *, stdin: bytes = b"", **options: Any) -> Outcome:
    """Run ``source`` in a child to its end."""
    return communicate(spawn(client, source, **options), stdin)


def children_of_this_process() -> set[int]:
    """Every living or unreaped child, of any thread."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        # A thread that ends meanwhile leaves its children to another one.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update(map(int, task.read_text().split()))
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended. A zombie has: who must reap it may be dead itself."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


def open_descriptors(process: int | str = "self") -> dict[int, str]:
    """The numbers of a process's open descriptors and what they lead to, less the one that lists them."""
    found = {}
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:
            continue
    return {number: target for number, target in found.items() if not target.endswith("/fd")}


def attack(
    client: pyspawner.Client,
    name: str,
    *arguments: object,
    place: str = attacks.PLACES[0],
    sandbox: pyspawner.SandboxConfig = SANDBOX,
) -> Outcome:
    """Have a child attack; see ``attacks.attempt``."""
    source = "import attacks; attacks.attempt(name, *arguments, place=place)"
    return run(client, source, sandbox=sandbox, name=name, arguments=arguments, place=place)


def attack_outside(name: str, *arguments: object) -> int:
    """Attack from a process without a sandbox, with all the rights of this one."""
    done = subprocess.run(attacks.command(name, *arguments), check=True, capture_output=True)
    return int(done.stdout)


@contextmanager
def visible_directory() -> Iterator[Path]:
    """Make a directory that children see: everybody may enter and read it, and it is where hosts keep nothing private."""
    with tempfile.TemporaryDirectory(prefix="pyspawner-test-", dir="/srv") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def run_caller(source: str, *, wrapper: Sequence[str] = (), **popen: Any) -> str:
    """Run ``source`` in a new process, with a ``client`` and this module's names. Its standard output.

    :param wrapper: a program and its arguments that run the process, for example unshare(1).
    """
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from support import *\n"
        "with pyspawner.Client(child_main='support.run_source') as client:\n"
        f"{textwrap.indent(textwrap.dedent(source), '    ')}"
    )
    command = [*wrapper, sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, **popen)
    assert done.returncode == 0, done
    return done.stdout
