"""A child's own end: from the inside of its sandbox to its exit."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable


def run(child_main: Callable[..., object], args_descriptor: int) -> NoReturn:
    """Unpickle the args, call ``child_main(*args)`` and end the process as Python would."""
    code = 1
    try:
        _forget_exit_handlers()
        _differ_from_siblings()
        code = _call(child_main, args_descriptor)
        code = _finish(code)
    finally:
        # Readers see the end of file now, and not after the kernel has torn the memory down.
        os.closerange(0, 3)
        os._exit(code)


def _forget_exit_handlers() -> None:
    """Forget what the zygote's modules would do at exit: this process did not open what they would close.

    But it may itself start what these two end.
    """
    atexit._clear()
    for module_name, handler in (("logging", "shutdown"), ("multiprocessing.util", "_exit_function")):
        module = sys.modules.get(module_name)
        if module is not None:
            atexit.register(getattr(module, handler))


def _differ_from_siblings() -> None:
    """Reseed what fork hooks do not: ``random`` does it itself, ``uuid``, ``secrets`` and ``ssl`` ask the kernel."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _call(child_main: Callable[..., object], args_descriptor: int) -> int:
    try:
        with os.fdopen(args_descriptor, "rb") as file:
            args = pickle.load(file)  # noqa: S301 (inside the sandbox)
        child_main(*args)
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:
        # Without our own frame.
        traceback = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        return 1
    return 0


def _exit_code(error: SystemExit) -> int:
    """Return the exit code of ``SystemExit`` as the interpreter has it: a text goes to standard error and is a failure."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _finish(code: int) -> int:
    """Join threads, run exit handlers and flush, as the interpreter does at its end."""
    # There is no public name for what the interpreter does here; multiprocessing calls the same.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # The reader may be gone, and user code may have closed or replaced the stream.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    return code
