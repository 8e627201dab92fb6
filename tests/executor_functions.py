"""What children of an executor run: ordinary functions, and hostile ones."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from pyspawner import _result_format

calls: list[int] = []


# Ordinary. ------------------------------------------------------------------------------------------------


def echo(*args, **kwargs):
    return [list(args), kwargs] if kwargs else args[0]


def evaluate(source: str):
    return eval(source)


def count_calls():
    calls.append(os.getpid())
    return calls


def double(number):
    return 2 * number


def wait_beyond(seconds, timeout):
    return [seconds, timeout]


def talk(size=0):
    print("printed")
    print("complained", file=sys.stderr)
    os.write(1, b"written\n")
    os.system("echo of a subprocess")
    print(end="x" * size)
    return "returned"


def fail(message="no such luck"):
    raise ValueError(message)


class Particular(Exception):
    """The caller must never make one."""

    made = 0

    def __init__(self, *args):
        super().__init__(*args)
        Particular.made += 1


def fail_in_particular():
    raise Particular("for a reason")


def touch(name: str):
    Path("/out", name).touch()


def meet(name: str):
    """Say that it has begun, and return when it may."""
    touch(name)
    while not Path("/out/go").exists():
        time.sleep(0.001)
    return name


def hang(name: str):
    """Say that it has begun, and never end."""
    touch(name)
    threading.Event().wait()


def hold_lock():
    with Path("/out/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hang("locked")


class WhereUnpickled:
    """Becomes the pid of the process in which it is unpickled."""

    def __reduce__(self):
        return os.getpid, ()


class NotThere:
    """Cannot be unpickled."""

    def __reduce__(self):
        return eval, ("1 / 0",)


class Callable:
    def method(self):
        pass

    def __call__(self):
        pass


def nested():
    def inner():
        pass

    return inner


# Hostile. -------------------------------------------------------------------------------------------------


def channel() -> int:
    """The descriptor on which results go."""
    return max(map(int, os.listdir("/proc/self/fd")))


def write(data: bytes) -> None:
    descriptor = channel()
    while data:
        data = data[os.write(descriptor, data) :]


def send(data: bytes):
    """Send these bytes in place of a result."""
    write(data)
    os._exit(0)


def send_many(data: bytes, times: int):
    for _ in range(times):
        write(data)
    os._exit(0)


def frame(kind: bytes, payload: bytes, length: int | None = None) -> bytes:
    return _result_format._HEADER.pack(b"pyspawn", kind, len(payload) if length is None else length) + payload


FORGED = frame(b"J", b'"forged"')


def forge_and_return():
    write(FORGED)
    return "true"


def forge_at_exit():
    atexit.register(os.write, os.dup(channel()), FORGED)
    return "true"


def forge_in_a_thread():
    """After the true result: it waits for the end of the main thread."""
    main_thread = threading.main_thread()
    duplicate = os.dup(channel())

    def forge():
        main_thread.join()
        os.write(duplicate, FORGED)

    threading.Thread(target=forge).start()
    return "true"


def forge_in_a_daemon():
    """After the true result: it waits for its end in the pipe's own buffer, and the child for it."""
    duplicate = os.dup(channel())
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.read(ready, 1)
        os.write(duplicate, FORGED)
        os._exit(0)
    atexit.register(os.wait)
    atexit.register(os.write, tell, b"x")
    return "true"


def forge_through_proc():
    with open(f"/proc/self/fd/{channel()}", "wb") as file:
        file.write(FORGED)
    return "true"


def eat_own_result():
    """Read the pipe that the caller reads."""
    descriptor = os.open(f"/proc/self/fd/{channel()}", os.O_RDWR | os.O_NONBLOCK)

    def eat():
        while True:
            try:
                os.read(descriptor, 1)
            except BlockingIOError:
                continue

    threading.Thread(target=eat, daemon=True).start()
    return bytes(100_000)


def close_channel():
    os.close(channel())
    return "true"


def replace_channel():
    """What it returns goes to a file in place of the caller."""
    descriptor = os.open("/dev/null", os.O_WRONLY)
    os.dup2(descriptor, channel())
    return "true"


def nonblocking_channel():
    os.set_blocking(channel(), False)
    return bytes(1_000_000)


def fill_channel():
    while True:
        write(bytes(65_536))


def fork_and_return():
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return "parent" if pid else "fork"


def fork_and_let_the_fork_return():
    pid = os.fork()
    if pid == 0:
        return "fork"
    os.waitpid(pid, 0)
    os._exit(0)


def fork_and_raise():
    pid = os.fork()
    if pid == 0:
        raise ValueError("in the fork")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def patch_json():
    json.dumps = json.JSONEncoder.encode = lambda *_: "broken"  # pyright: ignore[reportAttributeAccessIssue]
    return {"a": 1}


def patch_os():
    os.write = os.dup = os.dup2 = os.getpid = None  # pyright: ignore[reportAttributeAccessIssue]
    return "true"


def patch_streams():
    del sys.stdout, sys.stderr
    return "true"


def lower_limits():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return "true"


def end_threads_at_return():
    threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    threading.Event().wait()


def exit_at_exit():
    atexit.register(os._exit, 3)
    return "true"


class BadStr(Exception):
    def __init__(self, how: str) -> None:
        self.how = how

    def __str__(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        match self.how:
            case "raises":
                raise ValueError
            case "exits":
                sys.exit(3)
            case "interrupts":
                raise KeyboardInterrupt
            case "is no string":
                return 3  # noqa: PLE0307
            case "is long":
                return "long" * 25_000_000
            case "is odd":
                return "\ud800\0\x1b[2J\u202eä\n"
            case "recurses":
                return str(self)
            case "loops":
                while True:
                    pass
        return "?"


def fail_badly(how: str):
    raise BadStr(how)


class BadMeta(type):
    def __getattribute__(cls, name):
        if name in ("__qualname__", "__module__", "__name__"):
            raise ValueError
        return super().__getattribute__(name)


class BadName(Exception, metaclass=BadMeta):
    pass


def fail_without_a_name():
    raise BadName


def fail_with_a_long_name():
    raise type("N" * 100_000, (Exception,), {})("x")


def fail_deeply():
    try:
        fail_deeply()
    except RecursionError as error:
        raise ValueError("deep") from error


def fail_in_a_chain():
    error = ValueError("innermost")
    for number in range(5000):
        outer = ValueError(f"number {number}")
        outer.__cause__ = error
        error = outer
    raise error


def fail_in_a_circle():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


class BadObject:
    @property
    def __class__(self):  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
        raise ValueError

    def __getattr__(self, name):
        raise KeyboardInterrupt


def return_a_bad_object():
    return BadObject()


class BadDict(dict):
    def items(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(lambda: ("key", 1), None)


def return_an_endless_dict():
    return BadDict()


def return_a_circle():
    circle = []
    circle.append(circle)
    return circle


def return_deep(levels: int):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value
