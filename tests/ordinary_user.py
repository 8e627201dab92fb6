"""An ordinary user of this machine: no root, in no group but its own, and nobody that the machine knows.

Who imports this: tests that run a caller, or an attack without a sandbox, as such a user. What it runs must be readable for strangers,
so it gets copies of the package and of the tests' modules, and the system's Python where the one that runs the tests is not.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspawner
import support

UID = 54_321
SYSTEM_PYTHON = "/usr/bin/python3"
# Enough to tell that the interpreter, its library and its extension modules can all be read.
_PROBE = "import ctypes, json, socket, sys; assert sys.version_info >= (3, 10)"


def become(groups: Sequence[int] = (), uid: int = UID) -> list[str]:
    """A program that runs another as the user, or as another one."""
    groups_option = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    # setpriv itself keeps root's capabilities, and could execute what the user cannot: they go with the first program.
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", groups_option, "--inh-caps=-all", "/usr/bin/env"]


@functools.cache
def python() -> str:
    """An interpreter that strangers can run."""
    for executable in (sys.executable, SYSTEM_PYTHON):
        if Path(executable).exists():
            done = subprocess.run(
                [*become(), executable, "-c", _PROBE], cwd="/", check=False, capture_output=True
            )
            if done.returncode == 0:
                return executable
    raise AssertionError(f"strangers can run neither {sys.executable} nor {SYSTEM_PYTHON}")


def caller(source: str, *, prelude: str = "") -> str:
    """A program that runs ``source`` with a ``client`` and the names of ``support``, after ``prelude``."""
    return (
        f"{textwrap.dedent(prelude)}\n"
        "from support import *\n"
        "with pyspawner.Client(child_main='support.run_source') as client:\n"
        f"{textwrap.indent(textwrap.dedent(source), '    ')}"
    )


@dataclass(frozen=True)
class OrdinaryUser:
    """The user, and where its copies are."""

    modules: Path
    uid: int = UID

    def python(
        self,
        program: str,
        *,
        groups: Sequence[int] = (),
        wrapper: Sequence[str] = (),
        uid: int | None = UID,
        **popen: Any,
    ) -> str:
        """Run a Python program as the user. Its standard output.

        :param wrapper: a program and its arguments that run the process; root, as the tests are.
        :param uid: of another user. ``None``: root's, and the program becomes the user itself.
        """
        user = [] if uid is None else become(groups, uid)
        command = [*wrapper, *user, python(), "-B", "-W", "ignore", "-c", textwrap.dedent(program)]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(self.modules), "PATH": "/usr/bin:/bin"},
            cwd="/",
            **popen,
        )
        assert done.returncode == 0, done
        assert self.processes_end(), "processes of the user are left"
        return done.stdout

    def run_caller(self, source: str, *, prelude: str = "", **options: Any) -> str:
        """Run ``source`` as the user, with a ``client`` and the names of ``support``. Its standard output.

        :param prelude: runs before the client is made.
        """
        return self.python(caller(source, prelude=prelude), **options)

    def processes(self) -> list[int]:
        """The living processes of the user."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and entry.stat().st_uid == self.uid:
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def processes_end(self) -> bool:
        """Whether no process of the user is left, within some seconds."""
        deadline = time.monotonic() + 5
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """Make the user's copies, and remove them at last."""
    with support.visible_directory() as directory:
        package = Path(pyspawner.__file__).parent
        shutil.copytree(package, directory / "pyspawner", ignore=shutil.ignore_patterns("__pycache__"))
        tests = Path(support.__file__).parent
        for module in [*tests.glob("*.py"), *tests.glob("hosts/*.py")]:
            shutil.copy(module, directory)
        for copy in [directory, *directory.rglob("*")]:
            copy.chmod(0o755 if copy.is_dir() else 0o644)
        yield OrdinaryUser(directory)


def give(path: Path) -> None:
    """Make a file or directory the user's."""
    os.chown(path, UID, UID, follow_symlinks=False)
