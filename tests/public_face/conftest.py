"""Fixtures for ``pyspawner.aio``."""

from __future__ import annotations

import pytest

from pyspawner import _aio_client


@pytest.fixture
def patient(monkeypatch):
    """On a busy machine, what a thread does may take longer than anybody should wait."""
    monkeypatch.setattr(_aio_client, "_PATIENCE", 60)
