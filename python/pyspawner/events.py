"""What happens to zygotes and children, for operators: see ``on_event`` of :class:`pyspawner.Client`.

Every event also goes to the logger ``pyspawner``: the death of a zygote, the start of one in its place, a start that has failed where
nobody waits for it, and that a child could not be parked, as a warning; the rest at level DEBUG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from pyspawner._process import Cause, Usage

__all__ = [
    "ChildEnded",
    "ChildSpawned",
    "Event",
    "ParkingFailed",
    "SpawnFailed",
    "StartCause",
    "ZygoteDied",
    "ZygoteRetired",
    "ZygoteStartFailed",
    "ZygoteStarted",
]

StartCause: TypeAlias = Literal["start", "restart", "rotation"]
"""Why a zygote was started: for a new Client; in place of one that has died; in place of one that was old."""


@dataclass(frozen=True)
class ZygoteStarted:
    """A zygote serves."""

    pid: int
    """Its pid."""

    seconds: float
    """How long the start took, imports above all."""

    restarts: int
    """How many zygotes of the same Client have been started in place of dead ones, with this one."""

    cause: StartCause = "start"
    """Why it was started."""


@dataclass(frozen=True)
class ZygoteDied:
    """A spawn has found the zygote dead."""

    pid: int
    """Its pid."""

    message: str
    """How it ended."""


@dataclass(frozen=True)
class ZygoteStartFailed:
    """A zygote could not be started beside others that serve. It is tried again."""

    error: BaseException
    """The exception."""

    seconds: float
    """How long it took to fail."""


@dataclass(frozen=True)
class ZygoteRetired:
    """A zygote has ended because another one serves in its place. Its children go on."""

    pid: int
    """Its pid."""

    spawns: int
    """How many children it has made, clones that are zygotes among them."""


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

    It is told with the next spawn; of several failures since the last one, the latest.
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


Event: TypeAlias = (
    ZygoteStarted
    | ZygoteDied
    | ZygoteStartFailed
    | ZygoteRetired
    | ChildSpawned
    | SpawnFailed
    | ParkingFailed
    | ChildEnded
)
