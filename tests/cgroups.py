"""Control groups that tests make on a machine of their own, and callers that run in one. See cgroups(7): all is version 2.

Who imports this: the tests in ``tests/cgroup``, as root. They run in the virtual machine of ``tests/vm``, whose control groups are theirs:
every process is in the root, and no controller is enabled for others.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import support

CONTROLLERS = ("cpu", "memory", "pids")

_MOUNT = Path("/sys/fs/cgroup")
# What a cgroup's owner needs, says the kernel: Documentation/admin-guide/cgroup-v2.rst, "Model of Delegation".
_FOR_THE_OWNER = (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
_ENTER = 'echo $$ > "$0"; exec "$@"'
_MOUNT_OWN_ROOT = 'umount "$0"; mount -t cgroup2 -o ro,nosuid,nodev,noexec cgroup2 "$0"; exec "$@"'


@dataclass(frozen=True)
class Cgroup:
    """A control group, by its directory."""

    path: Path

    @property
    def name(self) -> str:
        """As ``/proc/PID/cgroup`` has it."""
        return str("/" / self.path.relative_to(_MOUNT))

    def read(self, file: str) -> str:
        return (self.path / file).read_text().strip()

    def write(self, file: str, value: object) -> None:
        (self.path / file).write_text(f"{value}")

    def count(self, file: str) -> dict[str, int]:
        """Read a file of names and numbers, ``memory.events`` for one."""
        lines = (line.split() for line in self.read(file).splitlines())
        return {name: int(number) for name, number in lines}

    def processes(self) -> list[int]:
        return [int(pid) for pid in self.read("cgroup.procs").split()]

    def new(self, name: str) -> Cgroup:
        """Make one in this one."""
        (self.path / name).mkdir()
        return Cgroup(self.path / name)

    def give(self, uid: int) -> None:
        """Delegate it to a user."""
        for file in _FOR_THE_OWNER:
            os.chown(self.path / file, uid, uid)

    def entering(self) -> list[str]:
        """A program that runs another in this cgroup. Only root may."""
        return ["sh", "-ec", _ENTER, str(self.path / "cgroup.procs")]

    def as_container(self) -> list[str]:
        """A program that runs another in what container engines make of this cgroup: the root of its namespace, mounted read-only."""
        return [*self.entering(), "unshare", "--cgroup", "--mount", "sh", "-ec", _MOUNT_OWN_ROOT, str(_MOUNT)]

    def remove(self) -> None:
        """Remove it and all in it, once its processes have ended. Those that do not within some seconds are killed, and fail the test."""
        deadline = time.monotonic() + 5
        left: list[int] = []
        while self.count("cgroup.events")["populated"]:
            if time.monotonic() > deadline:
                left = left or [pid for each in self._all() for pid in each.processes()]
                self.write("cgroup.kill", 1)
            time.sleep(0.01)
        for each in self._all():
            each.path.rmdir()
        assert not left, f"processes are left in {self.name}: {left}"

    def _all(self) -> list[Cgroup]:
        """This one and all in it, the innermost first."""
        return [Cgroup(Path(directory)) for directory, _, _ in os.walk(self.path, topdown=False)]


ROOT = Cgroup(_MOUNT)


@dataclass(frozen=True)
class Service(Cgroup):
    """A cgroup that is delegated to a service, with no process of its own, so that it can pass its controllers on."""

    @property
    def main(self) -> Cgroup:
        """Where the service's processes are."""
        return Cgroup(self.path / "main")


@contextlib.contextmanager
def delegated(*, owner: int = 0, controllers: Sequence[str] = CONTROLLERS) -> Iterator[Service]:
    """Make what a service of systemd with ``Delegate=yes`` and ``DelegateSubgroup=main`` has.

    :param owner: the user who may change it.
    :param controllers: of the service. None is enabled for what is in it.
    """
    with _new("service", controllers) as cgroup:
        service = Service(cgroup.path)
        service.new("main")
        if owner:
            service.give(owner)
            service.main.give(owner)
        yield service


@contextlib.contextmanager
def undelegated(*, controllers: Sequence[str] = CONTROLLERS) -> Iterator[Cgroup]:
    """Make a cgroup for a process that somebody else watches over: root alone may change it, and what is around it.

    :param controllers: that it has.
    """
    with _new("undelegated", controllers) as cgroup:
        yield cgroup


def run_in(cgroup: Cgroup, source: str, *, wrapper: Sequence[str] = (), **popen: Any) -> str:
    """Run ``source`` as a caller in a cgroup; see ``support.run_caller``. Its standard output."""
    return support.run_caller(source, wrapper=[*cgroup.entering(), *wrapper], **popen)


@contextlib.contextmanager
def _new(name: str, controllers: Sequence[str]) -> Iterator[Cgroup]:
    """Make a cgroup in the root that has exactly these controllers."""
    assert ROOT.read("cgroup.subtree_control") == "", "another layout is there"
    ROOT.write("cgroup.subtree_control", " ".join(f"+{each}" for each in controllers))
    try:
        cgroup = ROOT.new(name)
        try:
            yield cgroup
        finally:
            cgroup.remove()
    finally:
        ROOT.write("cgroup.subtree_control", " ".join(f"-{each}" for each in controllers))
