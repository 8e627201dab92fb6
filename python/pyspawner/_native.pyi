"""The native core of pyspawner. Private: use ``pyspawner``."""

from collections.abc import Sequence
from os import PathLike
from typing import NoReturn, final

from pyspawner._limits import Limits

__version__: str

def end_with_zygote(zygote: int) -> None:
    """Have this process, a fork of the zygote of that pid, be killed when the zygote ends."""

def tell_uncaught() -> None:
    """In a child: say that an exception ends it, with an exit code of 1."""

def open_beneath(directory: str | PathLike[str], path: str | PathLike[str]) -> int:
    """Open a regular file below a directory for reading, and return its descriptor."""

@final
class Client:
    """A running zygote."""

    def __new__(
        cls,
        *,
        executable: str | PathLike[str],
        arguments: list[str],
        environment: list[tuple[str, str]],
        child_main: str,
        preload_imports: list[str],
        sys_path: list[bytes] | None,
        memory_image: bool,
        warm_children: int,
        warm_up: str | None,
        stop: Stop | None = None,
    ) -> Client: ...
    def derive(
        self,
        *,
        child_main: str,
        preload_imports: list[str],
        warm_children: int,
        warm_up: str | None,
        stop: Stop | None = None,
    ) -> Client:
        """Return a clone of the zygote, with imports of its own."""
    def spawn(
        self,
        args: bytes,
        *,
        process_name: str | None,
        sandbox: Sandbox,
    ) -> tuple[Child, int, int, int]:
        """Return the child, and the caller's ends of its stdin, stdout and stderr."""
    def prewarm(self, sandbox: Sandbox, count: int) -> None:
        """Return when so many are parked."""
    def want_warm(self, sandbox: Sandbox, count: int) -> None:
        """Have so many parked, some time."""
    def parking_failure(self) -> BaseException | None:
        """Why no child could be parked, if that was so since this was asked last."""
    @property
    def parked(self) -> int:
        """How many are parked."""
    def close(self) -> None: ...
    def retire(self) -> None:
        """End the zygote and leave its children their watchdog."""
    def has_ended(self) -> bool:
        """Return whether, after that, the last child has ended, and nothing is left."""
    @property
    def zygote_pid(self) -> int: ...
    @property
    def watchdog_pid(self) -> int: ...
    @property
    def no_memory_image(self) -> str | None:
        """Why the zygote has none, if it should."""
    @property
    def threads(self) -> list[tuple[str, list[str]]]: ...

@final
class Sandbox:
    """How to lock a child in."""

    def __new__(
        cls,
        *,
        chroot_dir: str | PathLike[str] | None,
        mounts: list[Mount],
        working_dir: str | PathLike[str] | None,
        proc: bool,
        namespaces: bool,
        max_landlock_abi: int | None,
        network: Network | None,
        limits: Limits,
        skip_sandbox_except: list[str],
    ) -> Sandbox: ...

@final
class Stop:
    """Gives up the start of a zygote, from another thread, within a tenth of a second."""

    def __new__(cls) -> Stop: ...
    def set(self) -> None: ...

@final
class Mount:
    """Something to be mounted in a child's root."""

    @staticmethod
    def bind(source: str | PathLike[str], target: str | PathLike[str], writable: bool) -> Mount: ...
    @staticmethod
    def tmpfs(target: str | PathLike[str], size_bytes: int, max_inodes: int) -> Mount: ...
    @staticmethod
    def overlay(
        target: str | PathLike[str],
        size_bytes: int,
        lower: str | PathLike[str] | None,
        upper: str | PathLike[str] | None,
    ) -> Mount: ...
    @staticmethod
    def proc(target: str | PathLike[str]) -> Mount: ...
    @staticmethod
    def dev(target: str | PathLike[str], ptmx: bool) -> Mount: ...

@final
class Network:
    """A child's network."""

    @staticmethod
    def loopback() -> Network: ...
    @staticmethod
    def veth(
        kernel_veth_name: str, child_veth_name: str, kernel_ipv4_address: str, child_ipv4_address: str
    ) -> Network: ...
    @staticmethod
    def managed(
        *,
        allow: list[str],
        deny: list[str],
        ipv6: bool,
        dns: list[str] | None,
        bandwidth: int | None,
        subnet: str,
        subnet6: str,
    ) -> Network: ...

@final
class Child:
    """A running child."""

    @property
    def pid(self) -> int: ...
    @property
    def layers(self) -> list[tuple[str, str]]: ...
    @property
    def layer_nanoseconds(self) -> list[tuple[str, int]]: ...
    def kill(self) -> None: ...
    def wait(self, options: int) -> tuple[int, int]: ...
    def send_signal(self, signal: int) -> None: ...
    def time_out(self) -> None:
        """Its time is over: if the caller kills it from now on, that is why."""
    def poll(self) -> int | None:
        """Look whether it has ended; its status."""
    @property
    def ended(self) -> Ended | None:
        """How it ended, if that is known."""
    @property
    def pidfd(self) -> int: ...
    def communicate(
        self,
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        already_read: tuple[bytes, bytes],
        data: bytes,
        timeout: float | None,
        max_output: int,
    ) -> Completed:
        """Feed it, read what it writes, reap it. Takes the descriptors."""

@final
class Completed:
    """What became of a child."""

    @property
    def ended(self) -> Ended: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> bytes: ...
    @property
    def stdout_dropped(self) -> int: ...
    @property
    def stderr_dropped(self) -> int: ...

@final
class Ended:
    """How a child ended, and what it used."""

    @property
    def status(self) -> int: ...
    @property
    def cause(self) -> str: ...
    @property
    def blocked_syscall(self) -> str | None: ...
    @property
    def wall_seconds(self) -> float: ...
    @property
    def user_seconds(self) -> float: ...
    @property
    def system_seconds(self) -> float: ...
    @property
    def peak_memory_bytes(self) -> int: ...
    @property
    def peak_processes(self) -> int | None: ...
    @property
    def refused_processes(self) -> int | None: ...

@final
class Boot:
    """The zygote, from its first line on."""

    def __new__(cls, socket: int) -> Boot: ...
    @property
    def child_main(self) -> str: ...
    @property
    def preload_imports(self) -> list[str]: ...
    @property
    def sys_path(self) -> list[bytes] | None: ...
    @property
    def warm_up(self) -> str | None: ...
    def importing(self, module: str) -> None:
        """Tell the caller whose import begins."""
    def failed(self, summary: str, traceback: str) -> None:
        """Tell the caller why there will be no zygote."""
    def must_hand_over(self) -> bool:
        """Whether imports left threads behind, so that the zygote must fork first."""
    def hand_over(self, successor: int) -> None:
        """Tell the caller which process goes on; then this one must end."""
    def take_over(self, predecessor: int) -> None:
        """In that fork: wait until the process behind the pidfd has ended and the caller is the parent."""
    def serve(
        self, installation: Sequence[str | PathLike[str]], search_path: Sequence[str | PathLike[str]]
    ) -> Start | Boot | None:
        """Serve until the caller closes its Client. In every child, return its start.

        In a clone that is to be another zygote, return the boot of that one.
        """

@final
class Start:
    """A child, from the inside of its sandbox to what it is to run."""

    @property
    def parks(self) -> bool:
        """Whether it parks, and gets ready before that."""
    def args(self) -> int:
        """Return the descriptor of the pickled args. A child that parks waits for them."""
    def give_up(self, summary: str) -> NoReturn:
        """Tell the caller why it cannot get ready, and end."""
