"""How to lock a child in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class NetworkConfig:
    """A veth pair between the caller's network namespace and the child's; see veth(4).

    Both ends are up, ``lo`` is up, and the child's default route leads through the kernel's end. Each child that runs at the same time
    needs names and addresses of its own: an interface that already has ``kernel_veth_name`` is deleted first. Where packets go from
    there (forwarding, NAT, firewall) is up to the host.
    """

    kernel_veth_name: str = "veth-pyspawn"
    """Name of the interface in the caller's network namespace; at most 15 bytes."""

    child_veth_name: str = "veth-pyspawn-c"
    """Name of the interface in the child; at most 15 bytes, and not the other one."""

    kernel_ipv4_address: str = "192.168.123.1"
    """Address of the kernel's end, the child's gateway."""

    child_ipv4_address: str = "192.168.123.2"
    """Address of the child's end, in the same /24."""


@dataclass(frozen=True)
class SandboxConfig:
    """The sandbox of one child. What it does when you say nothing is the safe choice."""

    chroot_dir: Path | None = None
    """Directory to become the child's root, read-only, by pivot_root(2); the working directory is ``/`` in it.

    It must hold everything that the child opens or imports from then on; what the zygote has imported is in memory. ``None`` (default):
    the child sees what the host's permissions show to a stranger.
    """

    network: NetworkConfig | None = None
    """``None`` (default): only a ``lo`` that is down; connect(2) gives ``ENETUNREACH``."""

    skip_sandbox_except: frozenset[str] = frozenset()
    """For tests of one layer at a time. When not empty, only the optional layers named here are on, with an
    :class:`InsecureSandboxWarning`. Optional layers: ``drop_capabilities``, ``setuid``, ``no_new_privs``, ``seccomp``."""
