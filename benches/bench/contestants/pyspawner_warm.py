"""pyspawner with warm children: clones that wait, locked in, for a request."""

from __future__ import annotations

from .pyspawner_client import PyspawnerClient


class WarmPyspawnerClient(PyspawnerClient):
    """A client that keeps so many of them, and makes a new one for each that is used."""

    def __init__(self, *, parked: int, warm_up: str | None = None) -> None:
        super().__init__(warm_children=parked, **({"warm_up": warm_up} if warm_up else {}))
        self._parked = parked

    def prepare(self) -> None:
        """Wait until all are there: neither is a spawn cold, nor does the last one's successor disturb it."""
        self._client.prewarm(self._sandbox, self._parked)


start = WarmPyspawnerClient
