"""Every child a warm one, for tests that know nothing of that: ``pytest --warm``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pyspawner
from support import children_of_this_process


class WarmClient(pyspawner.Client):
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
        self.prewarm(pyspawner.SandboxConfig(), 0)

    def spawn_child(
        self,
        args: Sequence[Any] = [],
        *,
        process_name: str | None = None,
        sandbox_config: pyspawner.SandboxConfig,
    ) -> pyspawner.ChildProcess:
        # What is wrong with a sandbox is for the spawn to say.
        with contextlib.suppress(Exception):
            self.prewarm(sandbox_config, 1)
        there = children_of_this_process()
        try:
            child = super().spawn_child(args, process_name=process_name, sandbox_config=sandbox_config)
        finally:
            with contextlib.suppress(Exception):
                self.prewarm(sandbox_config, 0)
        WarmClient.spawns += 1
        WarmClient.warm_spawns += child.pid in there
        return child
