"""How to lock a child in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyspawner._limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from pyspawner._mounts import Mount
    from pyspawner._network import LoopbackNetwork, ManagedNetwork, NetworkConfig


@dataclass(frozen=True)
class SandboxConfig:
    """The sandbox of one child. What it does when you say nothing is the safe choice."""

    chroot_dir: Path | None = None
    """Directory to become the child's root, read-only, by pivot_root(2); it has no ``/proc``, ``/sys`` and ``/dev`` but by ``mounts``.

    It must hold everything that the child opens or imports from then on; what the zygote has imported is in memory. It may lie on any
    filesystem, and is not a symbolic link.

    ``None`` (default): the host's tree, read-only, with an own ``/proc``, a minimal ``/dev``, an own ``/tmp``, ``/var/tmp`` and
    ``/dev/shm`` (``tmp_bytes`` of :attr:`limits` together), and without what is private: ``/run``, ``/sys``, ``/mnt``, ``/media``,
    ``/root`` and homes are empty, but for what the interpreter and the modules on ``sys.path`` need.
    """

    network: NetworkConfig | ManagedNetwork | LoopbackNetwork | None = None
    """``None`` (default): only a ``lo`` that is down; connect(2) gives ``ENETUNREACH``. :meth:`NetworkConfig.managed`: a way out for many
    children at once, with a firewall. :meth:`NetworkConfig.loopback`: a ``lo`` that is up. A :class:`NetworkConfig`: what your own rules
    let it."""

    skip_sandbox_except: frozenset[str] = frozenset()
    """For tests of one layer at a time. When not empty, only the optional layers named here are on, with an
    :class:`InsecureSandboxWarning`. Optional layers: ``drop_capabilities``, ``setuid``, ``no_new_privs``, ``landlock``,
    ``seccomp``."""

    mounts: tuple[Mount, ...] = ()
    """What to mount in the child's root, in this order: :class:`Bind`, :class:`Tmpfs`, :class:`Overlay`, :class:`Proc`, :class:`Dev`; at
    most 30."""

    working_dir: Path | None = None
    """The child's working directory, a path in its root. ``None`` (default): with a ``chroot_dir`` ``/``; else the directory in which the
    Client was made, or ``/`` if the child does not see it."""

    proc: bool = True
    """Without a ``chroot_dir``: whether the child has a ``/proc``. ``False`` is for containers in which the kernel refuses one."""

    namespaces: bool = True
    """``False``: see :meth:`without_namespaces`."""

    max_landlock_abi: int | None = None
    """For tests of what an older kernel's Landlock can do: the highest ABI version to use; see landlock(7)."""

    limits: Limits | Literal["required"] = Limits()  # noqa: RUF009 (frozen)
    """What it may use. ``"required"`` is short for ``Limits(cgroup="required")``."""

    @classmethod
    def without_namespaces(
        cls,
        *,
        working_dir: Path | None = None,
        limits: Limits | Literal["required"] = Limits(),  # noqa: B008 (frozen)
        skip_sandbox_except: frozenset[str] = frozenset(),
        max_landlock_abi: int | None = None,
    ) -> SandboxConfig:
        """Make a weaker sandbox for where namespaces and mounts are impossible, such as a default Docker container.

        The child has a host uid of its own, no capabilities and no sockets; by Landlock it reads what it could read with namespaces, and
        writes nowhere: there is no private ``/tmp``. It may know what it should not: the pids of other processes, the names, sizes and
        owners of files that it cannot read. What it starts and detaches outlives it.

        Every user must be able to read the interpreter: there is no mount that shows it. It needs root and Linux 6.2; pyspawner never
        chooses it for you.
        """
        return cls(
            working_dir=working_dir,
            limits=limits,
            skip_sandbox_except=skip_sandbox_except,
            max_landlock_abi=max_landlock_abi,
            namespaces=False,
        )
