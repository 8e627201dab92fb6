"""Clients with warm children."""

from __future__ import annotations

import pytest

import pyspawner
import support


@pytest.fixture
def one_warm():
    """A client that has one child of each sandbox in use parked."""
    with pyspawner.Client(child_main="support.run_source", warm_children=1) as client:
        yield client


@pytest.fixture
def by_request():
    """A client that has children parked only where ``prewarm`` asks for them."""
    with pyspawner.Client(child_main="support.run_source") as client:
        yield client


@pytest.fixture(scope="module")
def preloaded(preloaded):
    """As everywhere; its keeper has what it needs before anybody counts."""
    preloaded.prewarm(support.SANDBOX, 1)
    preloaded.prewarm(support.SANDBOX, 0)
    return preloaded
