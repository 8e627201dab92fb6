"""The zygote: imports what children need, then serves clones of itself.

Who runs this: an interpreter that the caller's ``Client`` started. Whatever is in its memory, every child can read: it knows module names
and ``sys.path``, and nothing about any child.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import signal
import sys
import traceback
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pyspawner import _child, _scout
from pyspawner._native import Boot, Start
from pyspawner._randomness import plan_reseeding

if TYPE_CHECKING:
    from collections.abc import Callable


# What is imported already of what these functions import.
_scouted: set[str] = set()


def main() -> None:
    """Be a zygote until the caller closes its ``Client``; in a clone, be its child, or another zygote. Never returns."""
    boot = Boot(int(sys.argv[1]))
    sys.argv[:] = [""]
    sys.orig_argv[:] = sys.orig_argv[:1]
    _restore_environment()
    if boot.sys_path is not None:
        sys.path[:] = map(os.fsdecode, boot.sys_path)

    streams = sys.stdin, sys.stdout, sys.stderr
    while True:
        child_main, reseeding, warm_up = _import_all(boot, streams)
        # Bound to names, because every child would free them otherwise.
        installation, search_path = _installation(), [Path(entry or ".") for entry in sys.path]
        _freeze()
        try:
            served = boot.serve(installation, search_path)
        except Exception:
            # Whatever modules would do at the exit is not for a clone to do, which may be of a zygote that lives.
            traceback.print_exc()
            os._exit(1)
        if served is None:
            os._exit(0)
        if isinstance(served, Start):
            _child.run(child_main, served, reseeding, warm_up)
        boot = served


def _import_all(
    boot: Boot, streams: tuple[TextIO, TextIO, TextIO]
) -> tuple[Callable[..., object], list[Callable[[], object]], Callable[[], object]]:
    """Import what children need. What they run, what gives them new random state, and what they do before they park."""
    for module in boot.preload_imports:
        _attempt(
            boot, f"cannot import {module!r} of preload_imports", lambda module=module: _import(boot, module)
        )
    child_main = _attempt(
        boot, f"child_main {boot.child_main!r} is not usable", lambda: _find(boot, boot.child_main)
    )
    warm_up = _attempt(boot, f"warm_up {boot.warm_up!r} is not usable", lambda: _find_warm_up(boot))
    _attempt(boot, "cannot leave the imports' threads behind", lambda: _leave_threads_behind(boot))

    reseeding = _attempt(boot, "cannot plan new random state for children", plan_reseeding)
    # Whatever an import put in their place: a child's streams are its descriptors 0 to 2.
    sys.stdin, sys.stdout, sys.stderr = streams
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams  # pyright: ignore[reportConstantRedefinition, reportAttributeAccessIssue]

    # What modules of the zygote would remove at exit is not a child's to remove.
    finalize: Any = weakref.finalize
    for finalizer in finalize._registry.values():
        finalizer.atexit = False
    return child_main, reseeding, warm_up


def _freeze() -> None:
    """Make this process fit to be cloned."""
    # Children neither collect nor move what is here: a collection would copy every page.
    gc.collect()
    gc.freeze()

    # Where in Python a child was, for its last words when a system call of it is blocked: the sandbox's handler calls this one.
    faulthandler.register(signal.SIGSYS, file=2, all_threads=False, chain=False)


def _restore_environment() -> None:
    """Undo what interpreter start-up has done (PEP 538 coerces LC_CTYPE): the environment is what the caller said."""
    entries = (entry.partition(b"=") for entry in Path("/proc/self/environ").read_bytes().split(b"\0"))
    given = {key: value for key, _, value in entries if key}
    for key in os.environb.keys() - given.keys():
        del os.environb[key]
    for key, value in given.items():
        if os.environb.get(key) != value:
            os.environb[key] = value


def _attempt(boot: Boot, what: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401 (whatever work returns)
    """Do a part of the start-up. If it raises, whatever it raises, the caller gets to know and the zygote ends."""
    try:
        return work()
    except BaseException as error:
        last = "".join(traceback.format_exception_only(type(error), error)).strip()
        # A message may hold half a surrogate pair, of a path that is no text.
        lines = (f"{what}: {last}", traceback.format_exc())
        boot.failed(*(line.encode("utf-8", "backslashreplace").decode() for line in lines))
        os._exit(1)


def _import(boot: Boot, module: str) -> Any:  # noqa: ANN401 (a module's attributes are of any type)
    boot.importing(module)
    return importlib.import_module(module)


def _find(boot: Boot, name: str) -> Callable[..., object]:
    module_name, _, function_name = name.rpartition(".")
    found = getattr(_import(boot, module_name), function_name)
    if not callable(found):
        raise TypeError(f"{name} is a {type(found).__name__}, which cannot be called")
    return found


def _find_warm_up(boot: Boot) -> Callable[[], object]:
    """Find what children do before they park, and import what it imports: children that are not parked profit too."""
    if boot.warm_up is None:
        return lambda: None
    warm_up = _find(boot, boot.warm_up)
    if boot.warm_up in _scouted:
        # This is a clone of the zygote that has.
        return warm_up
    _scouted.add(boot.warm_up)
    for module in _scout.modules_imported_by(warm_up):
        # One that was put into sys.modules by hand, or taken out again, cannot be imported by its name.
        with contextlib.suppress(Exception):
            _import(boot, module)
    return warm_up


def _leave_threads_behind(boot: Boot) -> None:
    """Go on in a fork, if imports have started threads: a clone of a threaded process has their locks and not them."""
    if not boot.must_hand_over():
        return
    predecessor = os.pidfd_open(os.getpid())
    with warnings.catch_warnings():
        # Python warns of forks in threaded processes. Here the real fork, with every library's handlers, is the remedy.
        warnings.simplefilter("ignore", DeprecationWarning)
        successor = os.fork()
    if successor:
        try:
            boot.hand_over(successor)
        finally:
            os._exit(0)
    boot.take_over(predecessor)


def _installation() -> list[Path]:
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    return [Path(path) for path in (sys.executable, *sorted(prefixes)) if path]


if __name__ == "__main__":
    main()
