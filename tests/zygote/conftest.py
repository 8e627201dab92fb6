"""Modules that zygotes import, and a Client to derive others from."""

from __future__ import annotations

import pytest

import pyspawner


@pytest.fixture(scope="module")
def parent():
    """A zygote to derive others from, which lives as long as the tests of a file."""
    with pyspawner.Client(child_main="support.run_source", preload_imports=["attacks"]) as client:
        yield client
