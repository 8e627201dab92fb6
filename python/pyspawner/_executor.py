"""The caller's side of calls in sandboxes: ``SandboxExecutor``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import os
import pickle
import sys
import threading
import traceback
import weakref
from collections import deque
from concurrent.futures import Executor, Future, InvalidStateError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyspawner import _result_format
from pyspawner._call import Call, take_apart
from pyspawner._client import Client
from pyspawner._config import SandboxConfig
from pyspawner._errors import ChildTimeoutError, RemoteError, ResultError
from pyspawner._process import MIB, Cause, ChildProcess, Completed, to_seconds
from pyspawner._reporter import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_DEFAULT_SANDBOX = SandboxConfig()


class SandboxFuture(Future[Any]):
    """The ``concurrent.futures.Future`` of a call of a :class:`SandboxExecutor`. It can be cancelled also while it runs.

    ``cancel()`` then kills the child. The future is cancelled at once: ``result()`` raises ``CancelledError``, and ``wait()`` and
    ``as_completed()`` know. Of the result and a ``cancel()`` the first one decides: after the result, ``cancel()`` returns ``False`` and
    changes nothing.
    """

    completed: Completed | None
    """What became of the child, with what the function has printed in ``stderr`` and nothing in ``stdout``. ``None`` before the child has
    ended, which may be a little after ``cancel()``, and where there was none."""

    def __init__(self, started: threading.Event) -> None:
        super().__init__()
        self.completed = None
        # To its base class, a future that runs still waits for its turn; so it can be cancelled.
        self._started = started

    def running(self) -> bool:
        """Return whether it has its turn and is not done."""
        return self._started.is_set() and not self.done()

    def __repr__(self) -> str:
        text = super().__repr__()
        return text.replace("state=pending", "state=running") if self._started.is_set() else text


class _Run:
    """The one run of a call, as far as it can be cancelled from elsewhere."""

    def __init__(self, call: Call) -> None:
        self.started = threading.Event()
        self._call: Call | None = call
        self._child: ChildProcess | None = None
        self._is_cancelled = False
        # A signal handler may cancel in the middle of a change.
        self._lock = threading.RLock()

    def start(self) -> Call | None:
        """Return what to do, or ``None`` after :meth:`end`."""
        with self._lock:
            if self._call is not None:
                self.started.set()
            return self._call

    def hold(self, child: ChildProcess) -> None:
        """Let :meth:`end` kill the child from now on; it may have been called already."""
        with self._lock:
            self._child = child
            if self._is_cancelled:
                self._kill()

    def release(self) -> None:
        """Forget the child, which has ended."""
        with self._lock:
            self._child = None

    def end(self, future: Future[Any]) -> None:
        """Be the first callback of the future. If it was cancelled, tell ``wait()`` and ``as_completed()``, and kill the child."""
        with self._lock:
            self._call = None
            if future.cancelled():
                self._is_cancelled = True
                future.set_running_or_notify_cancel()
                self._kill()

    def _kill(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()


class SandboxExecutor(Executor):
    """Runs functions, each call in a new child with a sandbox of its own. A ``concurrent.futures.Executor``.

    It has a :class:`Client` of its own, and one thread for each call that runs. It is thread-safe, and works with ``asyncio`` through
    ``loop.run_in_executor()`` and ``asyncio.wrap_future()``. As a context manager it shuts itself down.

    Arguments are pickled, and unpickled in the child. Results come back as data, and nothing of them is unpickled or run:

    - what JSON has: ``None``, ``bool``, ``int``, ``float``, ``str``, ``list``, and ``dict`` with keys that are ``str``. A tuple arrives as
      a list, an object of a subclass as one of the class. A key of another type, a float that is not finite, a set or any other object is
      a ``TypeError`` in the child. At most 100 levels, and 4,300 digits a number;
    - bytes; a ``bytearray`` or ``memoryview`` arrives as bytes;
    - with ``trust_arrow``, tables: whatever has ``__arrow_c_stream__``, such as a ``pyarrow.Table`` or a ``DataFrame`` of pandas or polars,
      arrives as a ``pyarrow.Table``.

    What the function prints goes to standard error, and is in :attr:`SandboxFuture.completed`.

    :param sandbox_config: how to lock each child in. With a :class:`NetworkConfig`, which only
        one child at a time can have, ``max_workers`` must be 1; :meth:`NetworkConfig.managed` is for many.
    :param max_workers: the most children at a time. Default: the number of CPUs that this process may use.
    :param timeout: how long a call may run, in seconds from the moment when its sandbox is complete. Default: without end.
    :param max_result_bytes: the longest result, in bytes on the wire. The result of JSON may take 60 times as much memory in the caller.
    :param max_output: how many bytes of what a function prints to keep; the rest is counted and dropped.
    :param trust_arrow: have pyarrow read what a child calls a table. pyarrow is not written in a memory-safe language: by a mistake in it,
        a child could attack the caller. Without it, a table is a ``TypeError`` in the child.
    :param environment: of every child, as :class:`Client` has it.
    :param preload_imports: as :class:`Client` has it. Name the modules of your functions: others are imported anew in each child.
    :param executable: as :class:`Client` has it.
    :param warm_children: as :class:`Client` has it.
    :param warm_up: as :class:`Client` has it.
    :raises ImportError: ``trust_arrow`` without pyarrow.
    :raises ValueError: ``max_workers`` is less than 1, or a limit is negative.

    :raises RuntimeError: the interpreter is at its end.

    And whatever :class:`Client` raises.

    At the interpreter's end, calls that are not done are cancelled, where other executors wait for them.
    """

    _has_interpreter_ended = False

    def __init__(
        self,
        *,
        sandbox_config: SandboxConfig = _DEFAULT_SANDBOX,
        max_workers: int | None = None,
        timeout: float | None = None,
        max_result_bytes: int = MIB,
        max_output: int = MIB,
        trust_arrow: bool = False,
        environment: Mapping[str, str] = {},
        preload_imports: Sequence[str] = [],
        executable: str = sys.executable,
        warm_children: int = 0,
        warm_up: str | None = None,
    ) -> None:
        # Of any type at run time, whatever the annotation says.
        if not isinstance(sandbox_config, SandboxConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"sandbox_config must be a SandboxConfig, not {sandbox_config!r}")
        if trust_arrow:
            importlib.import_module("pyarrow")
        self._sandbox_config = sandbox_config
        self._max_workers = _at_least(
            1, "max_workers", len(os.sched_getaffinity(0)) if max_workers is None else max_workers
        )
        self._timeout = to_seconds(timeout)
        self._max_result_bytes = _at_least(0, "max_result_bytes", max_result_bytes)
        self._max_output = _at_least(0, "max_output", max_output)
        self._trust_arrow = bool(trust_arrow)
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._is_shut_down = False
        self._waiting: deque[tuple[SandboxFuture, _Run]] = deque()
        self._running: set[SandboxFuture] = set()
        # How many threads look for work. Among the threads are also some that have just stopped.
        self._workers = 0
        self._threads: set[threading.Thread] = set()
        self._call_at_exit()
        self._client = Client(
            child_main="pyspawner._executor_child.main",
            environment=environment,
            preload_imports=preload_imports,
            executable=executable,
            warm_children=warm_children,
            warm_up=warm_up,
        )
        _executors.add(self)
        if self._has_interpreter_ended:
            self.shutdown()
            raise RuntimeError("there can be no SandboxExecutor at the interpreter's end")

    def __repr__(self) -> str:
        state = "shut down" if self._is_shut_down else f"{len(self._waiting)} waiting"
        return f"<{type(self).__name__}: {len(self._running)} running, {state}>"

    def submit(  # pyright: ignore[reportIncompatibleMethodOverride] (a name will do, and there is a timeout)
        self,
        function: Callable[..., Any] | str,
        /,
        *args: Any,  # noqa: ANN401 (whatever the function takes)
        timeout: float | None = None,
        **kwargs: Any,  # noqa: ANN401 (the same)
    ) -> SandboxFuture:
        """Have ``function(*args, **kwargs)`` called in a child of its own.

        The child imports the function by its name, and ps and top show that. So it is at the top of a module, and that is not
        ``__main__``: the child has another.

        :param function: the function, or its full name, ``"package.module.function"``; or a ``functools.partial`` of the function, which is
            how the function itself gets an argument that is called ``timeout``.
        :param timeout: how long this call may run, in seconds; ``math.inf`` for without end. Default: the executor's ``timeout``.
        :raises TypeError: ``function`` is neither a name nor a function, or ``timeout`` is no number.
        :raises ValueError: a child cannot import it: it is a lambda or a method, inside of another function, or in ``__main__``.
        :raises RuntimeError: the executor is shut down, or belongs to another process (after a fork).

        The future's ``result()`` raises:

        :raises RemoteError: the function, or its import, raised an exception, or its result cannot be sent.
        :raises ChildTimeoutError: it took longer than ``timeout``. It is a ``TimeoutError``.
        :raises ChildFailed: the child ended without a result, by a signal or ``os._exit()`` for example.
        :raises ResultError: the child sent something that is no result, or one of more than ``max_result_bytes``.
        :raises SandboxError: and whatever else :meth:`Client.spawn_child` raises; also what pickle raises for the arguments.
        """
        name, args, kwargs = take_apart(function, args, kwargs)
        seconds = self._timeout if timeout is None else to_seconds(timeout)
        self._check_open()
        try:
            pickled = pickle.dumps((args, kwargs), protocol=5)  # every supported Python reads 5
        except Exception as error:
            future = SandboxFuture(threading.Event())
            future.set_exception(error)
            return future
        run = _Run(Call(name, pickled, seconds))
        future = SandboxFuture(run.started)
        future.add_done_callback(run.end)
        self._enqueue(future, run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the zygote when the last one is done. A second call may wait for what the first has not.

        :param wait: return when all calls are done, and no thread, process or descriptor is left.
        :param cancel_futures: cancel the calls that have not begun. Those that run go on: ``cancel()`` ends them.
        """
        # A fork has none of the threads, and its parent's locks.
        if self._owner != os.getpid():
            return
        with self._lock:
            self._is_shut_down = True
            dropped = [future for future, _ in self._waiting] if cancel_futures else []
            is_idle = not self._workers
            threads = list(self._threads)
        for future in dropped:
            future.cancel()
        if is_idle:
            self._client.close()
        if wait:
            for thread in threads:
                # A callback may shut down too.
                if thread is not threading.current_thread():
                    thread.join()

    @staticmethod
    def _abandon_all() -> None:
        """End everything, at the interpreter's end."""
        SandboxExecutor._has_interpreter_ended = True
        for executor in list(_executors):
            # A fork is not the owner, and its parent's locks may be held for ever.
            if executor._owner == os.getpid():
                with executor._lock:
                    executor._is_shut_down = True
                    futures = [*(future for future, _ in executor._waiting), *executor._running]
                for future in futures:
                    # Of a callback's.
                    with contextlib.suppress(SystemExit):
                        future.cancel()
                executor._client.close()

    @staticmethod
    @functools.cache
    def _call_at_exit() -> None:
        """Have all executors end with the interpreter, before it waits for their threads, which wait for children.

        There is no public name for that; ``concurrent.futures`` calls the same. Its own hook waits for threads that may wait for a call. It
        must be there first, to be called after this one.
        """
        importlib.import_module("concurrent.futures.thread")
        threading._register_atexit(SandboxExecutor._abandon_all)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def _check_open(self) -> None:
        if self._owner != os.getpid():
            raise RuntimeError("the SandboxExecutor belongs to another process")
        if self._is_shut_down:
            raise RuntimeError("the SandboxExecutor is shut down")

    def _enqueue(self, future: SandboxFuture, run: _Run) -> None:
        with self._lock:
            self._check_open()
            self._waiting.append((future, run))
            if self._workers == self._max_workers:
                return
            thread = threading.Thread(target=self._work, name="pyspawner-executor", daemon=False)
            try:
                thread.start()
            except (RuntimeError, MemoryError):
                # The system has no more threads. Another worker will do it later, if there is one.
                if not self._workers:
                    self._waiting.pop()
                    raise
                return
            self._workers += 1
            self._threads = {thread, *(other for other in self._threads if other.is_alive())}

    def _work(self) -> None:
        """Be one of the threads, until nothing is waiting."""
        while (work := self._next()) is not None:
            future, run = work
            try:
                self._perform(future, run)
            except BaseException:
                logger.critical("a callback of a future has raised", exc_info=True)
            finally:
                with self._lock:
                    self._running.discard(future)

    def _next(self) -> tuple[SandboxFuture, _Run] | None:
        with self._lock:
            if self._waiting:
                work = self._waiting.popleft()
                self._running.add(work[0])
                return work
            self._workers -= 1
            is_last = self._is_shut_down and not self._workers
        if is_last:
            self._client.close()
        return None

    def _perform(self, future: SandboxFuture, run: _Run) -> None:
        call = run.start()
        if call is None:
            return
        settle: Callable[[Any], None] = future.set_result
        try:
            future.completed, sent = self._execute(call, run)
            outcome: Any = self._interpret(future.completed, sent)
        except BaseException as error:
            # The child, above all, must not live as long as the exception.
            traceback.clear_frames(error.__traceback__)
            settle, outcome = future.set_exception, error
        # It may have been cancelled at the last moment.
        with contextlib.suppress(InvalidStateError):
            settle(outcome)
        # The exception has this frame, and these have the exception.
        del future, settle, outcome

    def _execute(self, call: Call, run: _Run) -> tuple[Completed, bytes]:
        """Run a child to its end. Return what became of it, and apart from that what it sent."""
        # One byte more, to see what is too long.
        longest_frame = (
            _result_format.HEADER_BYTES + max(self._max_result_bytes, _result_format.MAX_ERROR_BYTES) + 1
        )
        with self._client.spawn_child(
            [call.function, call.pickled, self._max_result_bytes, self._trust_arrow],
            process_name=call.function,
            sandbox_config=self._sandbox_config,
        ) as child:
            run.hold(child)
            try:
                completed = child.communicate(
                    timeout=call.timeout, max_output=max(longest_frame, self._max_output)
                )
            finally:
                run.release()
        sent, printed = completed.stdout, completed.stderr[: self._max_output]
        dropped = completed.stderr_dropped + len(completed.stderr) - len(printed)
        completed = replace(completed, stdout=b"", stdout_dropped=0, stderr=printed, stderr_dropped=dropped)
        return completed, sent

    def _interpret(self, completed: Completed, sent: bytes) -> object:
        if completed.cause is Cause.TIMED_OUT:
            raise ChildTimeoutError(completed)
        completed.check()
        try:
            result = _result_format.decode(
                sent, max_bytes=self._max_result_bytes, with_tables=self._trust_arrow
            )
        except ValueError as error:
            reason = str(error)
        else:
            if isinstance(result, _result_format.ErrorTexts):
                raise RemoteError(result.type_name, result.message, result.traceback, completed)
            return result
        # Not up there, where it would hold what the child has sent.
        raise ResultError(f"the child ended well, but {reason}", completed)


def _at_least(least: int, name: str, number: int) -> int:
    number = operator.index(number)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


_executors: weakref.WeakSet[SandboxExecutor] = weakref.WeakSet()
