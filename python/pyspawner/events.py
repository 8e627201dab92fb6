"""What happens to zygotes and children, for operators: see ``on_event`` of :class:`pyspawner.Client`.

Every event also goes to the logger ``pyspawner``: the end and the new start of a zygote, and that a child could not be
parked, as a warning; the rest at level DEBUG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pyspawner._process import Cause, Usage

__all__ = [
    "ChildEnded",
    "ChildSpawned",
    "Event",
    "ParkingFailed",
    "SpawnFailed",
    "ZygoteDied",
    "ZygoteStarted",
]


@dataclass(frozen=True)
class ZygoteStarted:
    """A zygote serves."""

    pid: int
    """Its pid."""

    seconds: float
    """How long the start took, imports above all."""

    restarts: int
    """How many zygotes of the same Client were there before it."""


@dataclass(frozen=True)
class ZygoteDied:
    """A spawn has found the zygote dead."""

    pid: int
    """Its pid."""

    message: str
    """How it ended."""


@dataclass(frozen=True)
class ChildSpawned:
    """A child runs."""

    pid: int
    """Its pid."""

    process_name: str | None
    """As given to :meth:`pyspawner.Client.spawn_child`."""

    seconds: float
    """How long the spawn took."""


@dataclass(frozen=True)
class SpawnFailed:
    """There is no child, but an exception for who asked for it."""

    process_name: str | None
    """As given to :meth:`pyspawner.Client.spawn_child`."""

    error: BaseException
    """The exception."""

    seconds: float
    """How long it took to fail."""


@dataclass(frozen=True)
class ParkingFailed:
    """No warm child could be made ready. Spawns go on, with children that are cloned for them, and it is tried again.

    It is told with the next spawn; of several failures of one sandbox since the last one, the latest.
    """

    error: BaseException
    """Why, as :meth:`pyspawner.Client.prewarm` would raise it."""


@dataclass(frozen=True)
class ChildEnded:
    """A method of its :class:`pyspawner.ChildProcess` has found that a child has ended.

    There is one for each child, and none if it was reaped by other means.
    """

    pid: int
    """Its pid."""

    process_name: str | None
    """As given to :meth:`pyspawner.Client.spawn_child`."""

    returncode: int
    """Exit code, or minus a signal's number."""

    cause: Cause
    """Why it ended."""

    usage: Usage
    """What it has used."""

    blocked_syscall: str | None = None
    """As in :class:`pyspawner.Completed`."""


Event: TypeAlias = ZygoteStarted | ZygoteDied | ChildSpawned | SpawnFailed | ParkingFailed | ChildEnded
