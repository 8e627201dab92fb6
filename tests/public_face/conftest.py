"""An executor, and a place where its children leave files; patience for ``pyspawner.aio``."""

from __future__ import annotations

import pytest

import pyspawner
from pyspawner import _aio_client
from support import visible_directory


@pytest.fixture(scope="module")
def shared_outbox():
    with visible_directory() as directory:
        yield directory


@pytest.fixture
def outbox(shared_outbox):
    """Where children leave files for a test to find, as ``/out``."""
    for file in shared_outbox.iterdir():
        file.unlink()
    return shared_outbox


@pytest.fixture(scope="module")
def sandbox(shared_outbox):
    mounts = (pyspawner.Bind(shared_outbox, "/out", writable=True),)
    return pyspawner.SandboxConfig(mounts=mounts)


@pytest.fixture(scope="module")
def executor(sandbox):
    imports = ["executor_functions"]
    with pyspawner.SandboxExecutor(
        sandbox_config=sandbox, max_workers=3, preload_imports=imports
    ) as executor:
        yield executor


@pytest.fixture
def patient(monkeypatch):
    """On a busy machine, what a thread does may take longer than anybody should wait."""
    monkeypatch.setattr(_aio_client, "_PATIENCE", 60)
