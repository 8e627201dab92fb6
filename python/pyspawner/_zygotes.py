"""A Client's zygote, and the next one after its death."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

from pyspawner._errors import ZygoteDiedError
from pyspawner.events import ZygoteDied, ZygoteStarted

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspawner import _native
    from pyspawner._reporter import Reporter

_T = TypeVar("_T")

# Seconds from one start to the next in a row.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30


class Zygotes:
    """One zygote at a time. Thread-safe."""

    def __init__(self, start: Callable[[], _native.Client], report: Reporter, *, restart: bool) -> None:
        self._start = start
        self._report = report
        self._restart = restart
        self._lock = threading.Lock()
        # A dead zygote's watchdog watches over its children, until all are closed.
        self._former: list[_native.Client] = []
        self._is_closed = False
        # The last one of whose death was told.
        self._told: _native.Client | None = None
        self._restarts = 0
        # What later zygotes are to keep parked too.
        self._prewarmed: list[tuple[_native.Sandbox, int]] = []
        self._pause = 0.0
        self._not_before = 0.0
        self.current = self._started()

    def use(self, work: Callable[[_native.Client], _T]) -> _T:
        """Do ``work`` with a zygote that lives, if there can be one."""
        used = self.current
        try:
            result = work(used)
        except ZygoteDiedError as error:
            if not self._restart:
                self._tell_once(used, error)
                raise
            result = work(self._successor(used, error))
        # One that has worked starts a new row: the next may start at once.
        self._pause = self._not_before = 0.0
        return result

    def prewarm(self, sandbox: _native.Sandbox, count: int) -> None:
        """Have the zygote, and each after it, keep so many children parked."""
        # A sandbox that makes no sense is refused before anything remembers it.
        self.use(lambda zygote: zygote.want_warm(sandbox, count))
        with self._lock:
            self._prewarmed = [(other, number) for other, number in self._prewarmed if other != sandbox]
            if count:
                self._prewarmed.append((sandbox, count))
        self.use(lambda zygote: zygote.prewarm(sandbox, count))

    def close(self) -> None:
        """End them. The second time, do nothing."""
        with self._lock:
            self._is_closed = True
            for zygote in (*self._former, self.current):
                zygote.close()

    def _successor(self, used: _native.Client, error: ZygoteDiedError) -> _native.Client:
        with self._lock:
            # Another thread may have been here.
            if self.current is used:
                if self._is_closed:
                    raise error
                self._tell_once(used, error)
                left = self._not_before - time.monotonic()
                if left > 0:
                    raise ZygoteDiedError(f"{error}; a new one may start in {left:.1f} seconds") from None
                self._pause = min(self._pause * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
                self._not_before = time.monotonic() + self._pause
                successor = self._started()
                self._former.append(used)
                self.current = successor
            return self.current

    def _started(self) -> _native.Client:
        began = time.monotonic()
        zygote = self._start()
        for sandbox, count in self._prewarmed:
            zygote.want_warm(sandbox, count)
        self._report(ZygoteStarted(zygote.zygote_pid, time.monotonic() - began, self._restarts))
        self._restarts += 1
        return zygote

    def _tell_once(self, dead: _native.Client, error: ZygoteDiedError) -> None:
        if dead is not self._told:
            self._told = dead
            self._report(ZygoteDied(dead.zygote_pid, str(error)))
