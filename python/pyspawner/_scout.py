"""The scout: a fork of the starting zygote that runs ``warm_up`` once, to see what it imports, and ends.

In the zygote itself it never runs: thread pools that have run before a clone hang every child after it.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, NoReturn

from pyspawner._native import end_with_zygote

if TYPE_CHECKING:
    from collections.abc import Callable


def modules_imported_by(warm_up: Callable[[], object]) -> list[str]:
    """Return the names of the modules that ``warm_up()`` imports, in the order in which their imports began.

    :raises RuntimeError: it has raised; with its traceback. Or it has ended the process.
    """
    # Not a pipe: a process that it leaves behind would hold that open.
    answer = os.memfd_create("pyspawner-scout")
    zygote = os.getpid()
    with warnings.catch_warnings():
        # Python warns of forks in threaded processes. Children meet the same conditions.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _scout(warm_up, answer, zygote)
    _, status = os.waitpid(pid, 0)
    os.lseek(answer, 0, os.SEEK_SET)
    with os.fdopen(answer, encoding="utf-8") as file:
        failure, came_to_its_end, names = file.read().partition("\0")
    if failure:
        raise RuntimeError(f"it has raised:\n{failure}")
    if not came_to_its_end:
        raise RuntimeError(f"it has ended its process: {_how_it_ended(os.waitstatus_to_exitcode(status))}")
    return names.split()


def _scout(warm_up: Callable[[], object], answer: int, zygote: int) -> NoReturn:
    try:
        end_with_zygote(zygote)
        known = set(sys.modules)
        try:
            warm_up()
        except BaseException:
            text = traceback.format_exc() + "\0"
        else:
            text = "\0" + "\n".join(name for name in list(sys.modules) if name not in known)
        os.write(answer, text.encode("utf-8", "backslashreplace"))
    finally:
        os._exit(0)


def _how_it_ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
