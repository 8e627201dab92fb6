"""Who takes part.

To add a contestant, write a file here with a function ``start() -> Contestant`` and give it an entry in
``ENTRIES``. The file is imported in the contestant's own worker process only, so it may import what the other
environments do not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .. import environments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Running(NamedTuple):
    """A child that has been spawned."""

    stdout: int
    """Descriptor to read its standard output from. Its end of file comes when the child closes it."""
    reap: Callable[[], int]
    """Wait for its end and reap it; its exit code, or minus a signal's number."""
    close: Callable[[], bytes]
    """Called when the clock has stopped: close what is open, return the child's standard error if known."""


class Contestant(Protocol):
    """A way to run a workload in a new process, ready: what it keeps between spawns is running."""

    def spawn(self, workload: str) -> Running:
        """Start a child that calls ``workloads.run_preloaded(workload)``, or does the same by itself."""
        ...

    def close(self) -> None:
        """End what ``start`` has started."""
        ...


@dataclass(frozen=True)
class Entry:
    """A contestant in the list of starters."""

    name: str
    """As the report shows it."""
    module: str
    """Its file in this folder, without the suffix."""
    find_python: Callable[[], Path] = environments.own_python
    """Find or make the interpreter of its worker; raises ``UnavailableError``."""
    every: int = 1
    """It takes part in one round of so many. For those that take half a second a run."""


OWN = "pyspawner"
BASELINE = "pyspawner 1.0.0"

ENTRIES = (
    Entry(OWN, "pyspawner_client"),
    Entry(BASELINE, "pyspawner_client", find_python=environments.pyspawner_1_python),
    Entry("multiprocessing.forkserver", "forkserver"),
    Entry("os.fork", "bare_fork"),
    Entry("bubblewrap, import pandas", "bubblewrap", every=10),
    Entry("sandlock, import pandas", "sandlock_popen", every=10),
)
