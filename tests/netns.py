"""Network namespaces that tests make for themselves. The machine's own is never touched.

A namespace has no name: a descriptor of this process keeps it, so it is gone with the process, however that
ends. What runs inside is started by nsenter(1): the ``ip`` program, a server, or a :class:`Caller` with a
``Client`` of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyspawner
import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_CLONE_NEWNET = 0x4000_0000

_ANSWER = """
import socket
server = socket.create_server((address, 0))
print(server.getsockname()[1])
connection, peer = server.accept()
connection.sendall(connection.recv(100).upper())
print(peer[0])
"""


@dataclass(frozen=True)
class View:
    """What ip(8) shows in one namespace."""

    interfaces: dict[str, Any]
    routes: list[dict[str, Any]]

    def addresses(self, interface: str) -> list[str]:
        infos = self.interfaces[interface]["addr_info"]
        return [f"{info['local']}/{info['prefixlen']}" for info in infos]

    def is_up(self, interface: str) -> bool:
        return "UP" in self.interfaces[interface]["flags"]

    def kind(self, interface: str) -> str | None:
        return self.interfaces[interface].get("linkinfo", {}).get("info_kind")


@dataclass(frozen=True)
class Namespace:
    """A network namespace by its path: ``/proc/PID/ns/net`` of a process inside, or ``/proc/PID/fd/N``."""

    path: str

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, *argv: str, stdin: str = "") -> str:
        done = subprocess.run(self.command(*argv), check=False, capture_output=True, text=True, input=stdin)
        assert done.returncode == 0, done
        return done.stdout

    def ip(self, *commands: str) -> None:
        """Change something with ip(8)."""
        self.run("ip", "-batch", "-", stdin="\n".join(commands))

    def sysctl(self, **settings: object) -> None:
        """Set what is below ``/proc/sys/net``, as in ``ipv4__ip_forward=1``."""
        words = [f"net.{name.replace('__', '.')}={value}" for name, value in settings.items()]
        self.run("sysctl", "-qw", *words)

    def look(self) -> View:
        interfaces = json.loads(self.run("ip", "-json", "-details", "address"))
        routes = json.loads(self.run("ip", "-json", "-4", "route"))
        return View({interface["ifname"]: interface for interface in interfaces}, routes)


def of_process(pid: int) -> Namespace:
    """Return the namespace that a process is in."""
    return Namespace(f"/proc/{pid}/ns/net")


@contextlib.contextmanager
def new() -> Iterator[Namespace]:
    """Make a namespace with nothing in it but a ``lo`` that is down."""
    descriptors: list[int] = []

    def leave_and_open() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) == 0:
            descriptors.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    # A thread leaves alone, and ends: this process stays where it is.
    thread = threading.Thread(target=leave_and_open)
    thread.start()
    thread.join()
    assert descriptors, "unshare(CLONE_NEWNET) was refused"
    try:
        yield Namespace(f"/proc/{os.getpid()}/fd/{descriptors[0]}")
    finally:
        os.close(descriptors[0])


@contextlib.contextmanager
def echo_server(namespace: Namespace, address: str) -> Iterator[tuple[int, Callable[[], str]]]:
    """Answer one TCP connection in capitals. Yields the port, and a function that tells who has called."""
    argv = namespace.command(sys.executable, "-u", "-c", f"address = {address!r}\n{_ANSWER}")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline()), server.stdout.readline
        finally:
            server.kill()


def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> bool:
    """Whether ``condition`` comes true: the kernel takes namespaces down in its own time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Caller:
    """A process in a namespace that has a ``Client`` and calls functions with it.

    ``caller(function, ...)`` is ``function(client, ...)`` over there; the result comes back, or the exception
    is raised here. The client's children run source code: ``caller(support.run, "print(1)")``.

    :param prefix: a program that runs the caller with less than full rights, for example ``setpriv``.
    :param prelude: called in the process before it makes its ``Client``.
    :param interpreter: another Python.
    :param modules: a directory with all that it imports; see ``ordinary_user.py``.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        prefix: Sequence[str] = (),
        prelude: Callable[[], object] | None = None,
        interpreter: str = sys.executable,
        modules: Path | None = None,
    ) -> None:
        self.namespace = namespace
        program = __file__ if modules is None else str(modules / "netns.py")
        path = sys.path if modules is None else [str(modules)]
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                namespace.command(*prefix, interpreter, program, str(theirs.fileno())),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                pass_fds=[theirs.fileno()],
            )
        self._connection.send(prelude)

    def kill(self) -> None:
        """Let it end without a chance to clean up."""
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._connection.send((function, args, kwargs))
        if not self._connection.poll(300):
            raise TimeoutError("the caller does not answer")
        result, error = self._connection.recv()
        if error is not None:
            raise error
        return result

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()
        if self._process.returncode == -signal.SIGKILL:
            return
        try:
            status = self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        assert status == 0, "the caller did not end well"


# What callers are asked to do.


@contextlib.contextmanager
def running(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig) -> Iterator[pyspawner.ChildProcess]:
    child = support.spawn(client, "import sys; sys.stdin.read()", sandbox=sandbox)
    try:
        yield child
    finally:
        assert support.communicate(child).status == 0


def look_around(client: pyspawner.Client, *sandboxes: pyspawner.SandboxConfig) -> tuple[View, list[View]]:
    """Run a child in each sandbox, all at once; answer the caller's view and theirs."""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(running(client, sandbox)) for sandbox in sandboxes]
        views = [of_process(child.pid).look() for child in children]
        return of_process(os.getpid()).look(), views


def call_child(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig, address: str) -> tuple[bytes, str]:
    """Call a child that answers at ``address``; return its answer, and who it says has called."""
    child = support.spawn(client, _ANSWER, sandbox=sandbox, address=address)
    try:
        port = int(child.stdout.readline())
        with socket.create_connection((address, port), timeout=30) as connection:
            connection.sendall(b"hello")
            answer = connection.recv(100)
    finally:
        outcome = support.communicate(child)
    return answer, outcome.text.strip()


def refuse_keyctl() -> None:
    """Be in a container whose seccomp profile refuses keyctl(2): a layer after the network then fails."""
    number = {"x86_64": 250, "aarch64": 219}[platform.machine()]
    load_number, jump_if_equal, answer = 0x20, 0x15, 0x06
    instructions = [
        (load_number, 0, 0, 0),
        (jump_if_equal, 0, 1, number),
        (answer, 0, 0, 0x0005_0000 | errno.EPERM),
        (answer, 0, 0, 0x7FFF_0000),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(program))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    set_seccomp, filter_mode = 22, 2
    assert libc.prctl(set_seccomp, filter_mode, header) == 0, os.strerror(ctypes.get_errno())


def _be_a_caller(connection: Connection) -> None:
    warnings.simplefilter("ignore", pyspawner.InsecureSandboxWarning)
    prelude = connection.recv()
    if prelude is not None:
        prelude()
    with pyspawner.Client(child_main="support.run_source") as client:
        while True:
            try:
                function, args, kwargs = connection.recv()
            except EOFError:
                return
            try:
                outcome = function(client, *args, **kwargs), None
            except Exception as error:
                outcome = None, error
            connection.send(outcome)


if __name__ == "__main__":
    _be_a_caller(Connection(int(sys.argv[1])))
