"""A child of an executor: calls one function, and sends what it returns or raises."""

from __future__ import annotations

import fcntl
import importlib
import os
import pickle
from typing import TYPE_CHECKING, Any, BinaryIO

from pyspawner import _result_format

if TYPE_CHECKING:
    from collections.abc import Callable

# Out of the way of code that closes or counts the low ones.
_HIGH = 1000


def main(name: str, pickled: bytes, max_result_bytes: int, with_tables: bool) -> None:
    """Call the function ``name`` with the pickled arguments, and send its result on what is standard output now.

    What comes from here on, imports, arguments and function, is not ours. It can send what it likes; the caller expects that.
    """
    channel = _take_standard_output()
    own_pid = os.getpid()
    frame = _call(name, pickled, max_result_bytes, with_tables)
    # A fork that the function has made may come back here too.
    if os.getpid() == own_pid:
        with channel:
            channel.write(frame)


def _take_standard_output() -> BinaryIO:
    """Keep the pipe for the result. What is printed goes to standard error from here on, and cannot mix with it."""
    limit = os.sysconf("SC_OPEN_MAX")
    number = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, min(_HIGH, limit - 1))
    os.dup2(2, 1)
    return os.fdopen(number, "wb")


def _call(name: str, pickled: bytes, max_result_bytes: int, with_tables: bool) -> bytes:
    try:
        function = _find(name)
        args, kwargs = pickle.loads(pickled)  # noqa: S301 (inside the sandbox)
        value = function(*args, **kwargs)
    except BaseException as error:
        # Without our own frame.
        return _result_format.encode_error(
            error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        )
    try:
        return _result_format.encode(value, max_bytes=max_result_bytes, with_tables=with_tables)
    except BaseException as error:
        return _result_format.encode_error(error.with_traceback(None))


def _find(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(
            f"{error}; a child does not see all of the caller's files: name it in preload_imports"
        ) from None
    return getattr(module, function_name)
