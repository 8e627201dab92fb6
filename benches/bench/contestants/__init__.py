"""Who takes part.

To add a contestant, write a file here with a function ``start(**options) -> Contestant`` and give it an entry in
``ENTRIES``. The file is imported in the contestant's own worker process only, so it may import what the other
environments do not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .. import environments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


class Running(NamedTuple):
    """A child that has been spawned."""

    stdout: int
    """Descriptor to read its standard output from. Its end of file comes when the child closes it."""
    pid: int
    """Its process, or the program around it, whose end is its own."""
    reap: Callable[[], int]
    """Wait for its end and reap it; its exit code, or minus a signal's number."""
    close: Callable[[], bytes]
    """Called when the clock has stopped: close what is open, return the child's standard error if known."""


class Contestant(Protocol):
    """A way to run a workload in a new process, ready: what it keeps between spawns is running."""

    def prepare(self) -> None:
        """Do what must have been done before a spawn; called while no clock runs. Most have nothing to do."""

    def spawn(self, workload: str) -> Running:
        """Start a child that calls ``workloads.run_preloaded(workload)``, or does the same by itself."""
        ...

    def close(self) -> None:
        """End what ``start`` has started. Most keep nothing."""


@dataclass(frozen=True)
class Entry:
    """A contestant in the list of starters."""

    name: str
    """As the report shows it."""
    module: str
    """Its file in this folder, without the suffix."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of its ``start``."""
    find_python: Callable[[], Path] = environments.own_python
    """Find or make the interpreter of its worker; raises ``UnavailableError``."""
    every: int = 1
    """It takes part in one round of so many. For those that take half a second a run."""
    zygote: bool = True
    """Whether it has imported pandas before it spawns. How long it takes to get there is measured then."""
    parks: bool = False
    """Whether it keeps children that wait for a request. Their memory is measured then."""
    threads: tuple[int, ...] = (1, 2, 4, 8)
    """How many threads of one caller may spawn at the same time, in each run of the throughput."""
    cannot: Mapping[str, str] = field(default_factory=dict[str, str])
    """Workloads that its children do not survive, and why."""


COLD = "pyspawner"
WARM = "pyspawner, warm"
WARM_UP = "pyspawner, warm, warm_up"
BASELINE = "pyspawner 1.0.0"
FORK = "os.fork"
FORK_SERVER = "multiprocessing.forkserver"

WARM_CHILDREN = 8
_SLOW = {"every": 30, "zygote": False, "threads": (4,)}

ENTRIES = (
    Entry(COLD, "pyspawner_client"),
    Entry(WARM, "pyspawner_warm", {"parked": WARM_CHILDREN}, parks=True),
    Entry(
        WARM_UP,
        "pyspawner_warm",
        {"parked": WARM_CHILDREN, "warm_up": "bench.workloads.warm_up"},
        parks=True,
    ),
    Entry(
        BASELINE,
        "pyspawner_client",
        find_python=environments.pyspawner_1_python,
        cannot={"numpy matmul": "its seccomp filter kills the child (SIGSYS)"},
    ),
    # Process.start() polls the children of other threads, who may be reading the same exit status.
    Entry(FORK_SERVER, "forkserver", threads=(1,)),
    Entry(FORK, "bare_fork"),
    Entry("python -c, import pandas", "new_interpreter", **_SLOW),
    Entry("bubblewrap, import pandas", "bubblewrap", **_SLOW),
    Entry("sandlock, import pandas", "sandlock_popen", **_SLOW),
)

YARDSTICK = Entry("bare round trip", "round_trip", zygote=False)
"""No contestant: what the kernel takes to wake a process with a message, and be woken by its answer."""
YARDSTICK_WORKLOAD = "hello"
