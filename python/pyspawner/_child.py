"""A child's own end: from the inside of its sandbox to its exit."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import sys
import threading
import traceback
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from pyspawner._native import tell_uncaught

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspawner._native import Start

# Args of so many bytes are read at once.
_SMALL = 1 << 16

# In place of an exit code, of which there are 256.
_UNCAUGHT = 256


def run(
    child_main: Callable[..., object],
    start: Start,
    reseeding: list[Callable[[], object]],
    warm_up: Callable[[], object],
) -> NoReturn:
    """Park, if that is wanted; then unpickle the args, call ``child_main(*args)`` and end the process as Python would.

    Every line here is paid for in each child, and mostly in pages that it touches first.
    """
    code = 1
    try:
        # Handlers of the zygote's modules are not this process's: it did not open what they would close.
        atexit._clear()  # pyright: ignore[reportPrivateUsage]
        if start.parks:
            _get_ready(start, reseeding, warm_up)
            reseeding = []
        code = _call(child_main, start, reseeding)
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


def _get_ready(start: Start, reseeding: list[Callable[[], object]], warm_up: Callable[[], object]) -> None:
    """Do what need not wait for a request, and leave no word of it in its output."""
    try:
        for reseed in reseeding:
            reseed()
        warm_up()
        _rehearse()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException as error:
        last = "".join(traceback.format_exception_only(type(error), error)).strip()
        start.give_up(last.encode("utf-8", "backslashreplace").decode())


def _rehearse() -> None:
    """Do once what every child does with its args, so that the memory for it is there."""
    descriptor = os.memfd_create("pyspawner-rehearsal")
    os.write(descriptor, pickle.dumps([], protocol=5))
    os.lseek(descriptor, 0, os.SEEK_SET)
    _load(descriptor)


def _load(descriptor: int) -> list[Any]:
    size = os.fstat(descriptor).st_size
    if size <= _SMALL:
        # In as few calls as can be: a warm child does little else.
        pickled = os.read(descriptor, size)
        os.close(descriptor)
        return pickle.loads(pickled)  # noqa: S301 (inside the sandbox)
    with os.fdopen(descriptor, "rb") as file:
        return pickle.load(file)  # noqa: S301 (inside the sandbox)


def _call(child_main: Callable[..., object], start: Start, reseeding: list[Callable[[], object]]) -> int:
    try:
        for reseed in reseeding:
            reseed()
        child_main(*_load(start.args()))
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:
        # Without our own frame.
        frames = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
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
