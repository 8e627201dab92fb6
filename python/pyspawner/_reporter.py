"""Tells operators what happens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pyspawner.events import ParkingFailed, ZygoteDied, ZygoteStarted

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspawner.events import Event

logger = logging.getLogger("pyspawner")


class Reporter:
    """Hands events to the logger and to the user's function."""

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self._on_event = on_event

    def __call__(self, event: Event) -> None:
        """Hand it on. What the function raises is logged: it is nobody's error who spawns or waits."""
        is_remarkable = isinstance(event, (ZygoteDied, ParkingFailed)) or (
            isinstance(event, ZygoteStarted) and event.restarts
        )
        logger.log(logging.WARNING if is_remarkable else logging.DEBUG, "%s", event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                logger.exception("on_event has raised for %s", event)
