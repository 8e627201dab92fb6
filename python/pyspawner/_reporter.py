"""Tells operators what happens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pyspawner.events import ParkingFailed, ZygoteDied, ZygoteStarted, ZygoteStartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyspawner.events import Event

logger = logging.getLogger("pyspawner")


class Reporter:
    """Hands events to the logger and to the user's function."""

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self._on_event = on_event

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens to what happens all the time: of a spawn, it takes longer to tell than one would think."""
        return self._on_event is not None or logger.isEnabledFor(logging.DEBUG)

    def __call__(self, event: Event) -> None:
        """Hand it on. What the function raises is logged: it is nobody's error who spawns or waits."""
        is_remarkable = isinstance(event, ZygoteDied | ZygoteStartFailed | ParkingFailed) or (
            isinstance(event, ZygoteStarted) and event.cause == "restart"
        )
        logger.log(logging.WARNING if is_remarkable else logging.DEBUG, "%s", event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                logger.exception("on_event has raised for %s", event)


def log_threads(threads: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Log the threads of each module that its import has started in a zygote."""
    for module, names in threads:
        logger.info(
            "importing %r started %d thread(s) in the zygote: %s; children do not have them",
            module,
            len(names),
            ", ".join(names),
        )


def log_memory_image(why_not: str | None) -> None:
    """Log why a zygote has no memory image, if it should have one."""
    if why_not is not None:
        logger.info("the zygote has no memory image: %s", why_not)
