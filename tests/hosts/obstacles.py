"""What hosts put in pyspawner's way, made by a caller for itself, and what came of it.

Who imports this: a process of its own for each host, started by ``support.run_caller``. What it does to itself
stays until its end, and its zygotes inherit it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import attacks
import pyspawner
import support

if TYPE_CHECKING:
    from collections.abc import Callable

# linux/mount.h: what fsconfig(2) is asked to do.
FSCONFIG, FSCONFIG_SET_FLAG = 431, 0
# linux/filter.h: load a word, compare, return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
# struct seccomp_data: the call's number, and the low half of an argument.
_NUMBER, _ARGUMENTS = 0, 16
_SECCOMP = attacks.NUMBERS["seccomp"]
CLOSE_RANGE = 436
CLOSE_RANGE_CLOEXEC = 4
_FIRST_AFTER_LINUX_5_10 = 441


def _install(*program: tuple[int, int, int, int]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    answer = attacks.call(_SECCOMP, 1, 0, whole)
    assert answer == 0, os.strerror(-answer)


def refuse(answer: int, *calls: str | int) -> None:
    """Answer system calls with an errno, as the seccomp profile of a container does, or an older kernel."""
    for call in calls:
        number = call if isinstance(call, int) else attacks.NUMBERS[call]
        _install(
            (_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | answer),
            (_RETURN, 0, 0, _ALLOW),
        )  # fmt: skip


def refuse_flag(answer: int, number: int, argument: int, flag: int) -> None:
    """Answer a system call with an errno when ``flag`` is in its argument."""
    _install(
        (_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 3, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_ANY_BIT, 0, 1, flag), (_RETURN, 0, 0, _ERRNO | answer),
        (_RETURN, 0, 0, _ALLOW),
    )  # fmt: skip


def refuse_value(answer: int, number: int, argument: int, value: int) -> None:
    """Answer a system call with an errno when its argument is ``value``."""
    _install(
        (_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 3, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ERRNO | answer),
        (_RETURN, 0, 0, _ALLOW),
    )  # fmt: skip


def refuse_from(answer: int, first: int) -> None:
    """Answer every system call from a number upwards with an errno. x32's calls, far above, are of no matter."""
    _install(
        (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, first), (_RETURN, 0, 0, _ERRNO | answer),
        (_RETURN, 0, 0, _ALLOW),
    )  # fmt: skip


def be_linux_5_10(enosys: int, einval: int) -> None:
    """Have no system call that came later, and no ``CLOSE_RANGE_CLOEXEC``."""
    refuse_flag(einval, CLOSE_RANGE, 2, CLOSE_RANGE_CLOEXEC)
    refuse_from(enosys, _FIRST_AFTER_LINUX_5_10)


def enter_user_namespace(ids: str) -> None:
    """Move this process to a new user namespace with these ids; the format is that of user_namespaces(7)."""
    me, (told, tell) = os.getpid(), os.pipe()
    mapper = os.fork()
    if mapper == 0:
        # Whoever has left a namespace has no right to map it any more.
        os.read(told, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{me}/{name}").write_text(ids)
        os._exit(0)
    assert attacks.call("unshare", attacks.NEWUSER) == 0
    os.write(tell, b"x")
    assert os.waitpid(mapper, 0)[1] == 0
    os.close(told)
    os.close(tell)


# All ids of the host.
EVERY_ID = f"0 0 {2**32 - 1}"


def limit_namespaces(kind: str) -> Callable[[], object]:
    """Move to a user namespace below which there may be none of a kind. Answers how to lift the limit."""
    enter_user_namespace(EVERY_ID)
    # This sysctl is per user namespace: the machine's own stays as it is.
    sysctl = Path(f"/proc/sys/user/max_{kind}_namespaces")
    before = sysctl.read_text()
    sysctl.write_text("0")
    return lambda: sysctl.write_text(before)


_IN_OPEN = 0x20
_USER_CODE = """
# All that every child may do, whatever its sandbox, is to read.
open(bell).close()
print("it ran")
"""


def tell_what_happens(
    directory: Path,
    sandbox: pyspawner.SandboxConfig,
    *,
    lift: Callable[[], object] | None = None,
    other: pyspawner.SandboxConfig | None = None,
) -> None:
    """Make a client, spawn twice, and print as JSON what came of it.

    :param directory: has the file ``bell``, which user code rings: it opens it.
    :param lift: removes the obstacle, between the two.
    :param other: the sandbox of the second, if it is another.
    """
    bell = _watch(directory / "bell")
    before = _possessions()
    spawns: list[dict[str, object]] = []
    try:
        with pyspawner.Client(child_main="support.run_source") as client:
            with_client = _possessions()
            for config in (sandbox, other or sandbox):
                spawns.append(_spawn(client, directory, config, bell))
                spawns[-1]["left behind"] = _difference(with_client)
                if lift is not None:
                    lift()
    except Exception as error:  # Of what class it is, the test judges.
        spawns.append(_described(error))
        spawns[-1]["rang"] = _rang(bell)
    print(json.dumps({"spawns": spawns, "left behind": _difference(before)}))


def _spawn(
    client: pyspawner.Client, directory: Path, sandbox: pyspawner.SandboxConfig, bell: int
) -> dict[str, object]:
    path = str(directory / "bell") if sandbox.chroot_dir is None else "/bell"
    try:
        told = _described(None, support.run(client, _USER_CODE, sandbox=sandbox, bell=path).text)
    except OSError as error:
        told = _described(error)
    return {**told, "rang": _rang(bell)}


def _described(error: Exception | None, text: str = "") -> dict[str, object]:
    if error is None:
        return {"class": None, "text": text}
    copy = pickle.loads(pickle.dumps(error))
    told = [
        {
            "class": type(one).__name__,
            "is an OSError": isinstance(one, OSError),
            "layer": getattr(one, "layer", None),
            "errno": getattr(one, "errno", None),
            "hint": getattr(one, "hint", None),
            "text": str(one),
        }
        for one in (error, copy)
    ]
    assert told[0] == told[1], "a pickled error is another one"
    return told[0]


def _watch(path: Path) -> int:
    """A descriptor that can be read when the file has been opened, by whomever and under whatever name; inotify(7)."""
    libc = ctypes.CDLL(None)
    inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(inotify, os.fsencode(path), _IN_OPEN) > 0
    return inotify


def _rang(bell: int) -> bool:
    try:
        return os.read(bell, 4096) != b""
    except BlockingIOError:
        return False


def _possessions() -> tuple[set[int], dict[int, str]]:
    gc.collect()
    return support.children_of_this_process(), support.open_descriptors()


def _difference(before: tuple[set[int], dict[int, str]]) -> str:
    now = _possessions()
    return "" if now == before else f"{before} has become {now}"
