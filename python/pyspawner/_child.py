"""A child's own end: from the inside of its sandbox to its exit."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from pyspawner._native import tell_uncaught

if TYPE_CHECKING:
    from collections.abc import Callable

# In place of an exit code, of which there are 256.
_UNCAUGHT = 256


def run(
    child_main: Callable[..., object], args_descriptor: int, reseeding: list[Callable[[], object]]
) -> NoReturn:
    """Unpickle the args, call ``child_main(*args)`` and end the process as Python would.

    Every line here is paid for in each child, and mostly in pages that it touches first.
    """
    code = 1
    try:
        # Handlers of the zygote's modules are not this process's: it did not open what they would close.
        atexit._clear()  # pyright: ignore[reportPrivateUsage]
        code = _call(child_main, args_descriptor, reseeding)
        code = _finish(code)
    except BaseException as error:
        code = _UNCAUGHT
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        # Readers see the end of file now, and not after the kernel has torn the memory down.
        os.closerange(0, 3)
        if code == _UNCAUGHT:
            tell_uncaught()
            code = 1
        os._exit(code)


def _call(
    child_main: Callable[..., object], args_descriptor: int, reseeding: list[Callable[[], object]]
) -> int:
    try:
        for reseed in reseeding:
            reseed()
        with os.fdopen(args_descriptor, "rb") as file:
            args = pickle.load(file)  # noqa: S301 (inside the sandbox)
        child_main(*args)
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:
        # Without our own frame.
        traceback = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        return _UNCAUGHT
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
    """Join threads and processes, run exit handlers and flush, as the interpreter does at its end."""
    if threading.active_count() > 1:
        # There is no public name for what the interpreter does here; multiprocessing calls the same.
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    _run_forgotten_handlers()
    for name in ("stdout", "stderr"):
        # The reader may be gone, and user code may have closed, replaced or deleted the stream.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            getattr(sys, name).flush()
    return code


def _run_forgotten_handlers() -> None:
    """Do what these three do at exit, where the child has used them: they registered it in the zygote."""
    finalize: Any = weakref.finalize
    if any(finalizer.atexit for finalizer in finalize._registry.values()):
        finalize._exitfunc()
    logging: Any = sys.modules.get("logging")
    # One handler is always there, logging's own last resort.
    if logging is not None and len(logging._handlerList) > 1:
        logging.shutdown()
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None and (util._finalizer_registry or util.process.active_children()):
        util._exit_function()
