"""What to mount in a child's root."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspawner import _native

if TYPE_CHECKING:
    from os import PathLike

MIB = 1024 * 1024


class Mount(ABC):
    """Something to be mounted in a child's root: one of the classes below.

    A ``target`` is an absolute path in that root. What is missing of it is made, as directories, or as a file if the source is one; a
    symbolic link on the way leads nowhere but to places in the root. Where its parent is read-only, the parent is made anew in memory with
    a bind of everything that it holds: cheaper is a target that exists.
    """

    @abstractmethod
    def to_native(self) -> _native.Mount:
        """Return what the core makes of it."""


@dataclass(frozen=True)
class Bind(Mount):
    """A file or directory of the host, with everything that is mounted below it if it is read-only."""

    source: str | PathLike[str]
    """Where it is on the host. Not a symbolic link: pass ``os.path.realpath()`` of one."""

    target: str | PathLike[str]
    """Where the child has it."""

    writable: bool = False
    """Whether the child may write to it. The child then stands in for the caller there: it may do what the owner may, and what it
    writes belongs to the caller. See mount_setattr(2), ID-mapped mounts. Default: read-only, with the permissions of a stranger."""

    def to_native(self) -> _native.Mount:
        return _native.Mount.bind(self.source, self.target, self.writable)


@dataclass(frozen=True)
class Tmpfs(Mount):
    """An empty directory in memory that belongs to the child; tmpfs(5)."""

    target: str | PathLike[str]
    """Where the child has it."""

    size_bytes: int = 64 * MIB
    """The most bytes in it; more gives ``ENOSPC``."""

    max_inodes: int = 16_384
    """The most files and directories in it, itself included."""

    def to_native(self) -> _native.Mount:
        _check_count("size_bytes", self.size_bytes)
        _check_count("max_inodes", self.max_inodes)
        return _native.Mount.tmpfs(self.target, self.size_bytes, self.max_inodes)


@dataclass(frozen=True)
class Overlay(Mount):
    """A directory that the child may change while the original stays as it is: copy-on-write, by overlayfs.

    The child stands in for the caller in it, as in a writable :class:`Bind`: what belongs to the caller on disk, the child may read and
    change. Mounts below the original are not part of it.
    """

    target: str | PathLike[str] = "/"
    """Where the child has it."""

    size_bytes: int = 64 * MIB
    """The most bytes of changes, in memory, where they vanish with the child. Without effect if there is an ``upper``."""

    lower: str | PathLike[str] | None = None
    """The original, a directory of the host. ``None`` (default): what ``chroot_dir`` has at ``target``."""

    upper: str | PathLike[str] | None = None
    """A directory of the host that keeps the changes, in its subdirectory ``changes``; ``work`` beside it is the kernel's. One child at a
    time may use it: while it lives, another one's spawn raises :class:`SandboxError`. ``None`` (default): nothing is kept."""

    def to_native(self) -> _native.Mount:
        _check_count("size_bytes", self.size_bytes)
        return _native.Mount.overlay(self.target, self.size_bytes, self.lower, self.upper)


@dataclass(frozen=True)
class Proc(Mount):
    """The child's own ``/proc``, read-only, for a ``chroot_dir``."""

    target: str | PathLike[str] = "/proc"
    """Where the child has it."""

    def to_native(self) -> _native.Mount:
        return _native.Mount.proc(self.target)


@dataclass(frozen=True)
class Dev(Mount):
    """A minimal ``/dev``: null, zero, full, random, urandom, fd, stdin, stdout, stderr, and an own ``shm``."""

    target: str | PathLike[str] = "/dev"
    """Where the child has it."""

    ptmx: bool = False
    """Whether it has pseudoterminals of its own (``ptmx`` and ``pts``)."""

    def to_native(self) -> _native.Mount:
        return _native.Mount.dev(self.target, self.ptmx)


def _check_count(field: str, value: int) -> None:
    # Of any type at run time, whatever the annotation says.
    if not isinstance(value, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{field} must be a number, not {value!r}")
    if not 0 <= value < 2**63:
        raise ValueError(f"{field} must be a positive number below 2**63, not {value}")
