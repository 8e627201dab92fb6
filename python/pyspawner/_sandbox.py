"""A :class:`SandboxConfig` as the core has it."""

from __future__ import annotations

from pathlib import Path

from pyspawner import _native
from pyspawner._config import SandboxConfig
from pyspawner._limits import Limits
from pyspawner._mounts import Mount
from pyspawner._network import to_native as network_to_native


def to_native(config: SandboxConfig) -> _native.Sandbox:
    """Check what the core cannot, because it is about types, and convert the rest."""
    # Of any type at run time, whatever the annotation says.
    if not isinstance(config, SandboxConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"sandbox_config must be a SandboxConfig, not {config!r}")
    if isinstance(config.mounts, Mount):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"mounts must be a tuple, such as ({config.mounts!r},)")
    if isinstance(config.skip_sandbox_except, str):
        raise TypeError("skip_sandbox_except must be a frozenset of layer names, not a string")
    return _native.Sandbox(
        chroot_dir=_path(config.chroot_dir),
        mounts=[_mount(index, mount) for index, mount in enumerate(config.mounts)],
        working_dir=_path(config.working_dir),
        proc=config.proc,
        namespaces=config.namespaces,
        max_landlock_abi=config.max_landlock_abi,
        network=network_to_native(config.network),
        limits=_limits(config.limits),
        skip_sandbox_except=sorted(config.skip_sandbox_except),
    )


def _mount(index: int, mount: Mount) -> _native.Mount:
    # Of any type at run time, whatever the annotation says.
    if not isinstance(mount, Mount):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"mounts[{index}] must be one of Bind, Tmpfs, Overlay, Proc and Dev, not {mount!r}")
    try:
        return mount.to_native()
    except (TypeError, ValueError) as error:
        # Which argument it was may be in a note.
        what = ", ".join([str(error), *getattr(error, "__notes__", [])])
        raise type(error)(f"mounts[{index}]: {what}") from None


def _limits(limits: Limits | str) -> Limits:
    if limits == "required":
        return Limits(cgroup="required")
    # Of any type at run time, whatever the annotation says.
    if not isinstance(limits, Limits):
        raise TypeError(f'limits must be Limits(...) or "required", not {limits!r}')
    return limits


def _path(path: Path | None) -> Path | None:
    """Be as lenient as ``open()``: a string is a path too."""
    return None if path is None else Path(path)
