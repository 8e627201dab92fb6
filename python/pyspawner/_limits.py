"""What a child may use."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import Literal

_MIB = 1024 * 1024
_TOO_BIG = 2**63


@dataclass(frozen=True)
class Limits:
    """What a child may use. ``None``: as much as its caller may.

    With a cgroup v2 of its own, memory, processes and CPU time are limited for the child and all that it starts together. A child gets one
    where the host gives the caller a part of the tree of cgroups to divide. Elsewhere memory and CPU time are limited for each of its
    processes, by setrlimit(2), and ``child.layers["cgroup"]`` says why. A child can never have more than its caller.
    """

    memory_bytes: int | None = 2048 * _MIB
    """Memory in bytes, beside what it shares with the zygote; at least 4 MiB. With a cgroup, all that it uses, its files in ``/tmp`` and
    the kernel's buffers too: beyond it the kernel ends the child, :attr:`Cause.OUT_OF_MEMORY`; there is no swap. With or without, the
    private memory that each process asks for: beyond it Python raises ``MemoryError``. See ``RLIMIT_DATA``."""

    cpu_seconds: float | None = 3600
    """CPU time in seconds, in user mode and in the kernel. The child is killed then: :attr:`Cause.CPU_TIME`. Without a cgroup it is that of
    the child's first process, and others that it starts are killed after half as much again, and a second. See ``RLIMIT_CPU``."""

    processes: int | None = 512
    """Processes and threads at one time, the child itself included. Beyond it ``fork()`` fails with ``BlockingIOError``, and a thread does
    not start: ``RuntimeError``. See ``RLIMIT_NPROC``."""

    open_files: int | None = 1024
    """Open descriptors of each process; at least 16. Beyond it: ``OSError`` with ``EMFILE``. See ``RLIMIT_NOFILE``."""

    file_bytes: int | None = 8 * 1024 * _MIB
    """The size of each file that it writes, in bytes. Beyond it: ``OSError`` with ``EFBIG``. See ``RLIMIT_FSIZE``."""

    tmp_bytes: int = 256 * _MIB
    """What ``/tmp``, ``/var/tmp`` and ``/dev/shm`` hold together, in bytes; and a file for each 4,096 of them. Beyond it: ``OSError`` with
    ``ENOSPC``. With a ``chroot_dir``, mount a :class:`Tmpfs`."""

    nice: int = 0
    """Added to the caller's niceness, 0 to 19: how much the child gives way to others. See nice(2). Where the scheduler groups processes by
    session, only a cgroup makes it count."""

    cpus: float | None = None
    """How many CPUs' time it may use at most, 0.5 for half of one, on average over 0.1 s. It needs a cgroup with the controller ``cpu``, or
    there is a :class:`SandboxError`."""

    cgroup: Literal["if_delegated", "required", "never"] = "if_delegated"
    """``"required"``: without a cgroup there is no child, but a :class:`SandboxError` with what to do about it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "cgroup":
                _check_number(field.name, getattr(self, field.name))


def _check_number(name: str, value: object) -> None:
    """See that it is a number that the core can take. What makes sense is checked there."""
    if value is None and name not in {"tmp_bytes", "nice"}:
        return
    is_float = name in {"cpu_seconds", "cpus"}
    if isinstance(value, float) and is_float:
        return
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        wanted = "a number" if is_float else "an int"
        raise TypeError(f"{name} must be {wanted}, not {value!r}") from None
    if not 0 <= number < _TOO_BIG:
        raise ValueError(f"{name} must not be negative, nor 2**63 or more: {value!r}")
