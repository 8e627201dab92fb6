"""After 5,000 children of all kinds, started and ended in all ways, nothing is left.

Their caller lives in a world of its own: each process, mount, interface and temporary file in it is there because of the caller. So all of
them count, also a process that is nobody's child any more, and nothing counts that others do on the machine meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import gc
import itertools
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kinds_of_children import (
    BY_CLIENT,
    BY_EXECUTOR,
    ENDS,
    IN_A_LOOP,
    PATIENCE,
    ROOTLESS,
    Executors,
    see_its_end,
    see_its_end_in_a_loop,
)

from aio_support import LOOPS
from pyspawner import Bind, Client, SandboxConfig, SandboxExecutor, aio
from pyspawner.events import ChildEnded, ChildSpawned
from support import open_descriptors, visible_directory

CHILDREN = 5_000
ROUND = 500
WARM_UP = 1_000
GROWTH = 8 << 20  # In bytes; 2 KiB a child.
TOO_LATE = 1_200  # In seconds; what hangs is ended then.

# Of each, this world has its own. One in which this checkout is would be hidden, with all that runs.
PLACES = [place for place in ("/tmp", "/dev/shm") if not Path(__file__).is_relative_to(place)]

# The mix. -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A child to be started and seen to its end."""

    way: str
    kind: str
    moment: float

    def begin(self, starter: Any) -> Any:
        return WAYS[self.way].kinds[self.kind](starter, self.moment)

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            raise AssertionError(f"{self.way}: a child that {self.kind}") from error

    def do(self, starter: Any) -> None:
        with self.named():
            self.begin(starter)


def one_by_one(client: Client, jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.do(client)


def several_at_once(starter: Client | Executors, jobs: Sequence[Job]) -> None:
    with ThreadPoolExecutor(6) as pool:
        for _ in pool.map(lambda job: job.do(starter), jobs):
            pass


def in_loops(client: aio.Client, jobs: Sequence[Job]) -> None:
    async def main(jobs: Sequence[Job]) -> None:
        semaphore = asyncio.Semaphore(8)

        async def do(job: Job) -> None:
            async with semaphore:
                with job.named():
                    await job.begin(client)

        await asyncio.gather(*map(do, jobs))

    for number, run in enumerate(LOOPS.values()):
        run(main(jobs[number :: len(LOOPS)]))


class Way(NamedTuple):
    """A way to start children: which kinds there are, and what does many jobs."""

    kinds: Mapping[str, Callable[..., Any]]
    do: Callable[[Any, Sequence[Job]], None]


WAYS = {
    "plain code": Way(BY_CLIENT, one_by_one),
    "several threads": Way(BY_CLIENT, several_at_once),
    "a loop": Way(IN_A_LOOP, in_loops),
    "an executor": Way(BY_EXECUTOR, several_at_once),
}

# They take the most CPU time.
RARE = {"uses its CPU time", "has a network", "writes too much", "prints much"}


def mix(chance: random.Random) -> Iterator[Job]:
    """Every kind once, and then whatever comes."""
    each = [(name, kind) for name, way in WAYS.items() for kind in way.kinds]
    for name, kind in chance.sample(each, len(each)):
        yield Job(name, kind, chance.random())
    while True:
        name, way = chance.choice(list(WAYS.items()))
        (kind,) = chance.choices(list(way.kinds), [0.1 if kind in RARE else 1 for kind in way.kinds])
        yield Job(name, kind, chance.random())


def do_all(jobs: Sequence[Job], starters: Mapping[str, Any]) -> None:
    """In all ways at the same time."""
    with ThreadPoolExecutor(len(WAYS)) as pool:
        done = [
            pool.submit(way.do, starters[name], [job for job in jobs if job.way == name])
            for name, way in WAYS.items()
        ]
    for each in done:
        each.result()


# What is there. -------------------------------------------------------------------------------------------


def of_each_process(look: Callable[[Path], object]) -> dict[int, Any]:
    """Of all in this world. A zombie shows little."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(directory.name)] = look(directory)
    return found


def state() -> dict[str, Any]:
    """What must not grow in this world."""
    # What nobody holds any more, but itself.
    gc.collect()
    return {
        "processes": of_each_process(lambda process: (process / "comm").read_text().strip()),
        "threads": of_each_process(lambda process: len(os.listdir(process / "task"))),
        "Python's threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": of_each_process(lambda process: open_descriptors(process.name)),
        "mounts": of_each_process(lambda process: (process / "mountinfo").read_text()),
        "interfaces": socket.if_nameindex(),
        "files": sorted(file for place in PLACES for file in Path(place).rglob("*")),
        "cgroups": sorted(Path("/sys/fs/cgroup").glob(f"**/pyspawner-{os.getpid()}-*/**/")),
    }


def changes(before: Mapping[str, Any]) -> dict[str, Any]:
    now = state()
    return {part: (before[part], now[part]) for part in before if now[part] != before[part]}


def expect_no_changes(before: Mapping[str, Any]) -> None:
    # The kernel takes namespaces down in its own time.
    deadline = time.monotonic() + PATIENCE
    while found := changes(before):
        assert time.monotonic() < deadline, f"before and now: {found}"
        time.sleep(0.01)


def memory() -> dict[int, int]:
    """What each process has in memory, in bytes."""
    gc.collect()
    page = os.sysconf("SC_PAGESIZE")
    return of_each_process(lambda process: int((process / "statm").read_text().split()[1]) * page)


def grown(before: Mapping[int, int]) -> dict[int, int]:
    return {pid: now - before[pid] for pid, now in memory().items() if now - before[pid] > GROWTH}


class Log(logging.Handler):
    """Counts births and deaths, and keeps what nobody should have to say."""

    def __init__(self) -> None:
        super().__init__()
        self.events: Counter[type] = Counter()
        self.complaints: list[str] = []
        logging.getLogger().addHandler(self)
        logging.getLogger("pyspawner").setLevel(logging.DEBUG)
        sys.unraisablehook = threading.excepthook = lambda raised: self.complaints.append(str(raised))

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.complaints.append(self.format(record))
        self.events.update(map(type, record.args or ()))


# In a world of its own. -----------------------------------------------------------------------------------


@contextlib.contextmanager
def all_starters(outbox: Path) -> Iterator[dict[str, Any]]:
    """What to start children with, in each way."""
    client_of_loops = aio.Client(child_main="support.run_source")
    executor = functools.partial(SandboxExecutor, preload_imports=["executor_functions"])
    sandbox = SandboxConfig(mounts=(Bind(outbox, "/out", writable=True),))
    asyncio.run(client_of_loops.start())
    try:
        with (
            Client(child_main="support.run_source") as client,
            executor(sandbox_config=sandbox, max_workers=3) as usual,
            executor(sandbox_config=sandbox, max_workers=1) as narrow,
            executor(sandbox_config=ROOTLESS) as rootless,
        ):
            # With its first child, each makes what it keeps, such as a cgroup.
            see_its_end(ENDS["exits"], client, 0)
            asyncio.run(see_its_end_in_a_loop(ENDS["exits"], client_of_loops, 0))
            for each in (usual, narrow, rootless):
                each.submit(abs, -1).exception(PATIENCE)
            executors = Executors(usual, narrow, rootless, outbox)
            yield dict(zip(WAYS, (client, client, client_of_loops, executors), strict=True))
    finally:
        asyncio.run(client_of_loops.close())


def live(seed: int) -> None:
    faulthandler.dump_traceback_later(TOO_LATE, exit=True)
    jobs, log = mix(random.Random(seed)), Log()
    nothing = state()
    with visible_directory() as outbox, all_starters(outbox) as starters:
        # Threads end when they have nothing to do, or with their client.
        before = {part: found for part, found in state().items() if "threads" not in part}

        def have(children: int) -> None:
            while log.events[ChildSpawned] < children:
                do_all(list(itertools.islice(jobs, ROUND)), starters)
                expect_no_changes(before)

        have(WARM_UP)
        memory_before = memory()
        have(CHILDREN)
        assert not grown(memory_before), grown(memory_before)
    expect_no_changes(nothing)
    assert log.events[ChildEnded] == log.events[ChildSpawned]
    assert not log.complaints, log.complaints


LEFT: dict[str, Callable[[], object]] = {
    "processes": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "threads": threading.Thread(target=threading.Event().wait, daemon=True).start,
    "Python's threads": threading.Thread(target=threading.Event().wait, daemon=True).start,
    "descriptors": lambda: os.dup(0),
    "mounts": lambda: os.system("mount -t tmpfs none /mnt"),
    "interfaces": lambda: os.system("ip link add left type veth"),
    "files": Path("/dev/shm/left").touch,
    "cgroups": Path(f"/sys/fs/cgroup/pyspawner-{os.getpid()}-0").mkdir,
}


def leave_something() -> None:
    # Whose cgroups are the machine's.
    os.system("mount -t tmpfs none /sys/fs/cgroup")
    for part, leave in LEFT.items():
        before = state()
        leave()
        assert part in changes(before), part
    before = memory()
    left = b"x" * 2 * GROWTH
    assert grown(before), len(left)


WORLD = "\n".join(
    ["mount --make-rshared /", *(f"mount -t tmpfs none {place}" for place in PLACES), 'exec "$@"']
)


def in_a_world_of_its_own(call: str) -> None:
    program = f"import sys; sys.path[:] = {sys.path!r}; import test_mixed_children as mixed; mixed.{call}"
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # So that its memory is what it uses, and not what the C library keeps for later.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [*unshare, "sh", "-ec", WORLD, "sh", sys.executable, "-W", "error", "-c", program],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{call}\n{done.stderr}"


def test_after_5_000_mixed_children_nothing_is_left():
    in_a_world_of_its_own(f"live(seed={random.randrange(1_000_000)})")


def test_control_what_is_left_is_noticed():
    in_a_world_of_its_own("leave_something()")
