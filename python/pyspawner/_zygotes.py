"""A Client's zygotes, and others in the place of those that have died or grown old."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pyspawner._errors import ZygoteDiedError
from pyspawner._reporter import log_memory_image, log_threads
from pyspawner._rotation import Pauses, Rotation, start_failed
from pyspawner.events import ZygoteDied, ZygoteRetired, ZygoteStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pyspawner import _native
    from pyspawner._reporter import Reporter
    from pyspawner.events import StartCause

_T = TypeVar("_T")

# How long who waits for others does not notice that it is to stop, in seconds.
_PATIENCE = 0.1


@dataclass(frozen=True)
class Imports:
    """What a zygote begins with."""

    child_main: str
    preload_imports: tuple[str, ...]

    warm_up: str | None

    def more(self, child_main: str | None, preload_imports: tuple[str, ...], warm_up: str | None) -> Imports:
        """Answer what a clone of such a zygote has that imports this too, in the order in which it has come to it."""
        own_module = self.child_main.rpartition(".")[0]
        imports = dict.fromkeys([*self.preload_imports, own_module, *preload_imports])
        return Imports(child_main or self.child_main, tuple(imports), warm_up)


@dataclass(frozen=True)
class Plan:
    """How many zygotes, and for how long."""

    count: int
    restart: bool
    max_spawns: int | None
    warm_children: int

    @property
    def warm_children_each(self) -> int:
        """How many children each zygote parks of a sandbox that is used."""
        return self.each(self.warm_children)

    def each(self, children: int) -> int:
        """Return the part of one zygote, rounded up."""
        return -(-children // self.count)


@dataclass(eq=False)
class _Zygote:
    """One of them. The lock of its :class:`Zygotes` is held for each change."""

    native: _native.Client
    # Threads that do something with it.
    users: int = 0
    spawns: int = 0
    is_dead: bool = False
    # It has ended; its watchdog lives for the children that are left.
    is_retired: bool = False


class Zygotes:
    """Clones of one zygote, which take turns. Thread-safe."""

    def __init__(
        self,
        interpreter: Callable[..., _native.Client],
        imports: Imports,
        report: Reporter,
        plan: Plan,
        *,
        first: Callable[[], _native.Client] | None = None,
    ) -> None:
        """Start them.

        :param interpreter: starts a new one, and takes the rest of what it is to do.
        :param first: makes the very first zygote in another way.
        """
        self._interpreter = interpreter
        self._imports = imports
        self._report = report
        self._plan = plan
        self._owner = os.getpid()
        # Held for moments only: whoever holds it starts nothing, and calls nobody.
        self._lock = threading.Condition()
        # One start at a time in place of the dead. A handler of its events may come back here.
        self._starts = threading.RLock()
        self._is_starting = False
        self._is_closed = False
        self._serving: list[_Zygote] = []
        self._turn = 0
        # Their watchdogs watch over their children.
        self._former: list[_Zygote] = []
        self._restarts = 0
        # What later zygotes are to keep parked too.
        self._prewarmed: list[tuple[_native.Sandbox, int]] = []
        # Between starts of an interpreter, and between clones of one that lives.
        self._pauses, self._clone_pauses = Pauses(), Pauses()
        self._rotation: Rotation[list[_Zygote]] | None = None
        self._serving = self._generation("start", first=first)

    @property
    def current(self) -> _native.Client:
        """The first of those that serve."""
        return self._serving[0].native

    @property
    def parked(self) -> int:
        """How many warm children wait."""
        return sum(zygote.native.parked for zygote in self._serving)

    def parking_failures(self) -> list[BaseException]:
        """Return why children could not be parked, if that is news."""
        failures = (zygote.native.parking_failure() for zygote in self._serving)
        return [failure for failure in failures if failure is not None]

    def use(self, work: Callable[[_native.Client], _T], *, is_spawn: bool = True) -> _T:
        """Do ``work`` with the zygote whose turn it is, or another one that lives, if there can be one."""
        if os.getpid() != self._owner:
            # Locks may be held here by threads that exist only there.
            return work(self.current)
        self._forget_ended()
        while True:
            self._replenish()
            used = self._next()
            try:
                result = work(used.native)
            except ZygoteDiedError as error:
                death = error
            except BaseException:
                # What was given up before it was there is ended at this one's next turn, which is now the next.
                with self._lock:
                    self._turn -= 1
                raise
            else:
                if is_spawn:
                    self._count(used)
                return result
            finally:
                self._done_with(used)
            self._bury(used, death)
            # It holds on to this frame.
            del death

    def prewarm(self, sandbox: _native.Sandbox, count: int) -> None:
        """Have the zygotes, and each after them, keep so many children parked between them."""
        each = self._plan.each(count)
        # First without waiting: what makes no sense is not remembered.
        for zygote in list(self._serving):
            zygote.native.want_warm(sandbox, each)
        with self._lock:
            self._prewarmed = [(other, number) for other, number in self._prewarmed if other != sandbox]
            if count:
                self._prewarmed.append((sandbox, count))
        for _ in range(self._plan.count):
            self.use(lambda zygote: zygote.prewarm(sandbox, each), is_spawn=False)

    def close(self) -> None:
        """End them. The second time, do nothing."""
        if os.getpid() != self._owner:
            for zygote in (*self._former, *self._serving):
                zygote.native.close()
            return
        with self._lock:
            self._is_closed = True
            rotation = self._rotation
        if rotation is not None:
            rotation.stop()
        with self._lock:
            all_of_them = [*self._former, *self._serving]
        for zygote in all_of_them:
            zygote.native.close()

    def _next(self) -> _Zygote:
        """Return the one whose turn it is. It is not retired until :meth:`_done_with` it."""
        with self._lock:
            self._turn += 1
            used = self._serving[self._turn % len(self._serving)]
            used.users += 1
        return used

    def _done_with(self, used: _Zygote) -> None:
        with self._lock:
            used.users -= 1
            if not used.users:
                self._lock.notify_all()

    def _count(self, used: _Zygote) -> None:
        with self._lock:
            if not used.spawns:
                # One that has worked starts a new row: the next may start at once.
                self._pauses.end()
                self._clone_pauses.end()
            used.spawns += 1
            limit = self._plan.max_spawns
            is_old = limit is not None and used.spawns >= limit and used in self._serving
            if not is_old or self._rotation is not None or self._is_closed:
                return
            rotation = self._rotation = Rotation(self._next_generation, self._switch, self._report)
        try:
            rotation.begin()
        except RuntimeError as error:
            # There can be no more threads now. After as many spawns there may be.
            with self._lock:
                self._rotation = None
                used.spawns = 1
            self._report(start_failed(error, time.monotonic()))

    def _bury(self, dead: _Zygote, error: ZygoteDiedError) -> None:
        """Let others serve in its place. Raise ``error`` if there are none."""
        with self._lock:
            is_news = not dead.is_dead
            dead.is_dead = True
            if dead in self._serving and len(self._serving) > 1:
                self._serving.remove(dead)
                self._former.append(dead)
        if is_news:
            self._report(ZygoteDied(dead.native.zygote_pid, str(error)))
        with self._starts:
            with self._lock:
                if dead not in self._serving:
                    # Others live, or another thread was here.
                    return
                left = self._pauses.left()
            if not self._plan.restart or self._is_closed or self._is_starting:
                raise error
            if left > 0:
                raise ZygoteDiedError(f"{error}; a new one may start in {left:.1f} seconds") from None
            self._pauses.begin()
            with self._starting():
                generation = self._generation("restart")
            if self._replace(generation) is None:
                raise error

    def _replenish(self) -> None:
        """Clone one that lives in place of one that has died, if it is time."""
        if len(self._serving) == self._plan.count:
            return
        with self._lock:
            is_short = self._plan.restart and len(self._serving) < self._plan.count
            if not is_short or self._clone_pauses.left() > 0:
                return
        if not self._starts.acquire(blocking=False):
            return
        try:
            if self._is_starting:
                return
            self._clone_pauses.begin()
            began = time.monotonic()
            living = self._next()
            try:
                with self._starting():
                    successor = self._clone(living.native, None, "restart")
            except Exception as error:
                if not self._is_closed:
                    self._report(start_failed(error, began))
                return
            finally:
                self._done_with(living)
            with self._lock:
                is_wanted = (
                    not self._is_closed and living in self._serving and len(self._serving) < self._plan.count
                )
                if is_wanted:
                    self._serving.append(successor)
            if not is_wanted:
                successor.native.close()
        finally:
            self._starts.release()

    @contextmanager
    def _starting(self) -> Generator[None]:
        """Have a handler that comes back here find that a start is under way."""
        self._is_starting = True
        try:
            yield
        finally:
            self._is_starting = False

    def _next_generation(self, stop: _native.Stop) -> list[_Zygote]:
        return self._generation("rotation", stop=stop)

    def _generation(
        self,
        cause: StartCause,
        *,
        first: Callable[[], _native.Client] | None = None,
        stop: _native.Stop | None = None,
    ) -> list[_Zygote]:
        """Start one zygote and clone it."""
        made: list[_Zygote] = []
        try:
            made.append(self._made(first or (lambda: self._begin(stop)), cause))
            while len(made) < self._plan.count:
                made.append(self._clone(made[0].native, stop, cause))
        except BaseException:
            for zygote in made:
                zygote.native.close()
            raise
        return made

    def _begin(self, stop: _native.Stop | None) -> _native.Client:
        imports = self._imports
        return self._interpreter(
            child_main=imports.child_main,
            preload_imports=list(imports.preload_imports),
            warm_children=self._plan.warm_children_each,
            warm_up=imports.warm_up,
            stop=stop,
        )

    def _clone(self, zygote: _native.Client, stop: _native.Stop | None, cause: StartCause) -> _Zygote:
        imports = self._imports

        def clone() -> _native.Client:
            return zygote.derive(
                child_main=imports.child_main,
                preload_imports=[],
                warm_children=self._plan.warm_children_each,
                warm_up=imports.warm_up,
                stop=stop,
            )

        return self._made(clone, cause)

    def _made(self, make: Callable[[], _native.Client], cause: StartCause) -> _Zygote:
        began = time.monotonic()
        zygote = make()
        seconds = time.monotonic() - began
        with self._lock:
            self._restarts += cause == "restart"
            restarts = self._restarts
            prewarmed = list(self._prewarmed)
        for sandbox, count in prewarmed:
            zygote.want_warm(sandbox, self._plan.each(count))
        log_threads(zygote.threads)
        log_memory_image(zygote.no_memory_image)
        self._report(ZygoteStarted(zygote.zygote_pid, seconds, restarts, cause))
        return _Zygote(zygote)

    def _switch(self, generation: list[_Zygote]) -> None:
        """Let a new generation serve. The old one ends when nobody uses it any more, but for its children."""
        rotation = self._rotation
        for zygote in self._replace(generation) or []:
            with self._lock:
                while zygote.users and not (rotation is None or rotation.is_stopped):
                    self._lock.wait(_PATIENCE)
            self._retire(zygote)
            if zygote.is_retired:
                self._report(ZygoteRetired(zygote.native.zygote_pid, zygote.spawns))
        with self._lock:
            self._rotation = None

    def _replace(self, generation: list[_Zygote]) -> list[_Zygote] | None:
        """Let others serve, and return those that have until now; or ``None``, if there is nobody to serve any more."""
        with self._lock:
            if not self._is_closed:
                old, self._serving = self._serving, generation
                self._former += old
                return old
        for zygote in generation:
            zygote.native.close()
        return None

    def _retire(self, zygote: _Zygote) -> None:
        with self._lock:
            if zygote.is_retired or zygote.users or self._is_closed:
                return
            zygote.is_retired = True
        zygote.native.retire()

    def _forget_ended(self) -> None:
        """Let nothing be left of former zygotes whose children have all ended."""
        if not self._former:
            return
        with self._lock:
            former = list(self._former)
        for zygote in former:
            if zygote.is_dead:
                self._retire(zygote)
            if zygote.is_retired and zygote.native.has_ended():
                with self._lock:
                    if zygote in self._former:
                        self._former.remove(zygote)
