"""The scout: a fork of the starting zygote that runs ``warm_up`` once, to see what it imports, and ends.

In the zygote itself it never runs: thread pools that have run before a clone hang every child after it.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable


def modules_imported_by(warm_up: Callable[[], object]) -> list[str]:
    """Return the names of the modules that ``warm_up()`` imports, in the order in which their imports began.

    :raises RuntimeError: it has raised; with its traceback. Or it has ended the process.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forks in threaded processes. Children meet the same conditions.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(reader)
        _scout(warm_up, writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="backslashreplace") as answer:
        failure, _, names = answer.read().partition("\0")
    _, status = os.waitpid(pid, 0)
    if failure:
        raise RuntimeError(f"it has raised:\n{failure}")
    if status != 0:
        raise RuntimeError(f"it has ended its process: {_how_it_ended(os.waitstatus_to_exitcode(status))}")
    return names.split()


def _scout(warm_up: Callable[[], object], writer: int) -> NoReturn:
    code = 1
    try:
        known = set(sys.modules)
        try:
            warm_up()
        except BaseException:
            answer = traceback.format_exc() + "\0"
        else:
            answer = "\0" + "\n".join(name for name in list(sys.modules) if name not in known)
        with os.fdopen(writer, "w", encoding="utf-8", errors="backslashreplace") as pipe:
            pipe.write(answer)
        code = 0
    finally:
        os._exit(code)


def _how_it_ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
