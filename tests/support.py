"""What tests share: source code as a child, and its outcome."""

from __future__ import annotations

import os
import textwrap
import threading
from dataclasses import dataclass
from typing import Any

import pyspawner

SANDBOX = pyspawner.SandboxConfig()


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
    """Feed a child, read both its pipes to the end, and reap it. A child that hangs is killed, and shows a signal."""
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
