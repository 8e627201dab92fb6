"""Every child a warm one, for tests that know nothing of that: ``pytest --warm``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pyspawner
from support import children_of_this_process
from warm_support import cool

FOR_THE_SPAWN = (OSError, RuntimeError, TypeError, ValueError)
"""What is wrong with a sandbox, or with the client, is for the spawn to say. What a signal handler raises is not."""


class Client(pyspawner.Client):
    """A client that has a child parked before each spawn, and no longer than that: after a test there is none to be found."""

    spawns = 0
    """Of all of them."""

    warm_spawns = 0
    """Of these, those that found one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # What the keeper of the parked has, it keeps: it is there before anybody counts.
        with contextlib.suppress(pyspawner.SandboxError):
            self.prewarm(pyspawner.SandboxConfig(), 1)
        cool(self)

    def spawn_child(
        self,
        args: Sequence[Any] = [],
        *,
        process_name: str | None = None,
        sandbox_config: pyspawner.SandboxConfig,
    ) -> pyspawner.ChildProcess:
        with contextlib.suppress(*FOR_THE_SPAWN):
            self.prewarm(sandbox_config, 1)
        there = children_of_this_process()
        try:
            child = super().spawn_child(args, process_name=process_name, sandbox_config=sandbox_config)
        finally:
            with contextlib.suppress(*FOR_THE_SPAWN):
                cool(self, sandbox_config)
        Client.spawns += 1
        Client.warm_spawns += child.pid in there
        return child
