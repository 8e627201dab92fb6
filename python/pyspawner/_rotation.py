"""Starting zygotes in a thread, and how long to wait from one start to the next."""

from __future__ import annotations

import atexit
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from pyspawner import _native
from pyspawner.events import ZygoteStartFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspawner._reporter import Reporter

_T = TypeVar("_T")

# Seconds from one start to the next in a row.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30


class Pauses:
    """The first start of a row may be at once, the next one after a pause, and each later one after twice as long."""

    def __init__(self) -> None:
        self._length = 0.0
        self._not_before = 0.0

    def left(self) -> float:
        """How many seconds are left until the next start may be."""
        return max(0.0, self._not_before - time.monotonic())

    def begin(self) -> None:
        """Count a start."""
        self._length = min(self._length * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
        self._not_before = time.monotonic() + self._length

    def end(self) -> None:
        """End the row."""
        self._length = self._not_before = 0.0


def start_failed(error: Exception, began: float) -> ZygoteStartFailed:
    """Make an event of an exception that nobody catches, and that is so not to hold on to what it came through."""
    return ZygoteStartFailed(error.with_traceback(None), time.monotonic() - began)


class Rotation(Generic[_T]):
    """Makes something in a thread, and hands it on. Where that fails, it tries again after a pause."""

    def __init__(
        self, make: Callable[[_native.Stop], _T], hand_on: Callable[[_T], None], report: Reporter
    ) -> None:
        self._make = make
        self._hand_on = hand_on
        self._report = report
        self._stop = _native.Stop()
        self._is_stopped = threading.Event()
        # The interpreter does not wait for it at its end, but has it given up: a thread must not be in the core then.
        self._thread = threading.Thread(target=self._run, name="pyspawner-rotation", daemon=True)

    def begin(self) -> None:
        """Start the thread.

        :raises RuntimeError: there can be no more threads.
        """
        self._thread.start()
        atexit.register(self.stop)

    @property
    def is_stopped(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._is_stopped.is_set()

    def stop(self) -> None:
        """Give it up, and wait until nothing of it is left."""
        self._is_stopped.set()
        self._stop.set()
        # It may be the thread's own doing, in an event's handler.
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._make_until_it_works()
        finally:
            atexit.unregister(self.stop)

    def _make_until_it_works(self) -> None:
        pauses = Pauses()
        while not self._is_stopped.is_set():
            began = time.monotonic()
            try:
                made = self._make(self._stop)
            except Exception as error:
                if not self._is_stopped.is_set():
                    self._report(start_failed(error, began))
                pauses.begin()
                self._is_stopped.wait(pauses.left())
            else:
                self._hand_on(made)
                return
