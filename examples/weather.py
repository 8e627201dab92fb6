"""Four years of Seattle's weather: one zygote with pandas, one sandboxed child a year, all at the same time.

The caller never imports pandas. It gives each child the CSV file on standard input, shows every line as it
comes, and at the end what each spawn cost. It trusts the children to end and to write little; for those
that you do not trust so far, see judge.py.
"""

from __future__ import annotations

import importlib
import os
import select
import selectors
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyspawner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DATA = Path(__file__).parent / "data" / "seattle-weather.csv"
YEARS = (2012, 2013, 2014, 2015)


def report_year(year: int) -> None:
    """Be the child: read the CSV file on standard input, print one line a month and one for the year."""
    # The zygote has imported it. pandas brings no types along, hence Any.
    pd: Any = importlib.import_module("pandas")
    days = pd.read_csv(sys.stdin.buffer, parse_dates=["date"])
    days = days[days["date"].dt.year == year]
    for month, of_month in days.groupby(days["date"].dt.month):
        rain, warmest = of_month["precipitation"].sum(), of_month["temp_max"].max()
        print(f"{year}-{month:02} {rain:6.1f} mm of rain, {warmest:5.1f} °C at most")
    for weather, count in days["weather"].value_counts().sort_index().items():
        print(f"{year} {weather}: {count} days")


@dataclass
class Job:
    """A child at work and its clock. Times are seconds since the call of ``spawn_child``."""

    name: str
    child: pyspawner.ChildProcess
    started: float
    spawned: float
    first_byte: float | None = None
    reaped: float | None = None
    exit_code: int | None = None
    partial_lines: dict[int, bytes] = field(default_factory=dict[int, bytes])

    def clock(self) -> float:
        """Seconds since the call of ``spawn_child``."""
        return time.perf_counter() - self.started


def spawn(client: pyspawner.Client, name: str, args: Sequence[object]) -> Job:
    """Spawn a child and start its clock."""
    started = time.perf_counter()
    child = client.spawn_child(list(args), process_name=name, sandbox_config=pyspawner.SandboxConfig())
    return Job(name, child, started, spawned=time.perf_counter() - started)


def follow(jobs: Sequence[Job], stdin: bytes, show: Callable[[Job, str], None]) -> None:
    """Feed all jobs at once, show each line as it comes, and reap each child when its pipes have ended."""
    with selectors.DefaultSelector() as selector:
        for job in jobs:
            selector.register(job.child.stdin, selectors.EVENT_WRITE, (job, memoryview(stdin)))
            for pipe in (job.child.stdout, job.child.stderr):
                job.partial_lines[pipe.fileno()] = b""
                selector.register(pipe, selectors.EVENT_READ, (job, None))
        while selector.get_map():
            for key, events in selector.select():
                job, to_write = key.data
                if events & selectors.EVENT_WRITE:
                    rest = _write_some(key.fd, to_write)
                    if rest:
                        selector.modify(key.fd, selectors.EVENT_WRITE, (job, rest))
                    else:
                        selector.unregister(key.fd)
                        job.child.stdin.close()
                elif not _read_some(key.fd, job, show):
                    selector.unregister(key.fd)
                if job.child.stdin.closed and not job.partial_lines:
                    _reap(job)


def _write_some(descriptor: int, data: memoryview) -> memoryview:
    """Write what fits without blocking, and return the rest."""
    try:
        return data[os.write(descriptor, data[: select.PIPE_BUF]) :]
    except BrokenPipeError:  # The child has closed its standard input: it does not want the rest.
        return data[:0]


def _read_some(descriptor: int, job: Job, show: Callable[[Job, str], None]) -> bool:
    """Read what there is, and return whether more may come."""
    data = os.read(descriptor, 65536)
    if data and job.first_byte is None:
        job.first_byte = job.clock()
    *lines, rest = (job.partial_lines[descriptor] + data).split(b"\n")
    if data:
        job.partial_lines[descriptor] = rest
    else:
        del job.partial_lines[descriptor]
        lines += [rest] if rest else []
    for line in lines:
        show(job, line.decode(errors="replace"))
    return bool(data)


def _reap(job: Job) -> None:
    child = job.child
    _, status = child.wait()
    job.reaped = job.clock()
    job.exit_code = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    child.stderr.close()


def milliseconds(seconds: float | None) -> str:
    """Format a cell of the table of costs."""
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def main() -> int:
    """Show all years; return the exit code."""
    started = time.perf_counter()
    with pyspawner.Client(child_main="weather.report_year", preload_imports=["pandas"]) as client:
        print(f"The zygote imported pandas in {milliseconds(time.perf_counter() - started)} ms, once.")
        jobs = [spawn(client, str(year), [year]) for year in YEARS]
        print(f"Each child is locked in by: {', '.join(jobs[0].child.layers)}.", flush=True)
        follow(jobs, DATA.read_bytes(), lambda job, line: print(f"{job.name} | {line}", flush=True))

    print("\nWhat each spawn cost, in ms since its start:")
    print(f"{'child':>6} {'spawn call':>11} {'first byte':>11} {'reaped':>8}  exit code")
    for job in jobs:
        times = [milliseconds(seconds) for seconds in (job.spawned, job.first_byte, job.reaped)]
        print(f"{job.name:>6} {times[0]:>11} {times[1]:>11} {times[2]:>8}  {job.exit_code}")
    return 0 if all(job.exit_code == 0 for job in jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
