"""Waiting for what goes on although its caller is cancelled: a child that dies, a thread that works."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


async def insist(future: asyncio.Future[Any], patience: float) -> None:
    """Wait until ``future`` is done, at most ``patience`` seconds, whoever cancels meanwhile.

    It is for a caller who has been cancelled already and will say so: a cancellation more is no news.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while not future.done() and (left := deadline - loop.time()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future], timeout=left)
