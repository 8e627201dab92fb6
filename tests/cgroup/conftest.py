"""Tests in this folder change the control groups of the machine, and look that they leave them as they were."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

import pyspawner
from cgroups import ROOT
from support import spawn


def pytest_configure() -> None:
    if "PYSPAWNER_TEST_MACHINE" not in os.environ:
        raise pytest.UsageError("tests/cgroup needs a machine whose control groups are its own: make test-vm")


@pytest.fixture(scope="module")
def client():
    """A client in the root of the tree, of which it takes a part when the first child wants one."""
    with pyspawner.Client(child_main="support.run_source") as client:
        yield client
    del client
    gc.collect()
    enabled = ROOT.read("cgroup.subtree_control").split()
    ROOT.write("cgroup.subtree_control", " ".join(f"-{name}" for name in enabled))


@pytest.fixture(scope="module")
def in_use(client):
    """Have it take its part, so that tests find it as it was."""
    with spawn(client, "") as child:
        assert not child.layers["cgroup"].startswith("none"), child.layers


@pytest.fixture(autouse=True)
def no_cgroup_is_left_behind(nothing_is_left_behind):
    """After every test."""
    del nothing_is_left_behind  # It ends after this one.
    before = _cgroups()
    yield
    assert _cgroups() == before


def _cgroups() -> set[str]:
    """All that there are, and what the root has enabled for them."""
    return {*(directory for directory, _, _ in os.walk(ROOT.path)), ROOT.read("cgroup.subtree_control")}


@pytest.fixture
def cgroup_of():
    """Where a child's cgroup is."""

    def find(child: pyspawner.ChildProcess) -> Path:
        lines = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
        (own,) = (line for line in lines if line.startswith("0::"))
        return ROOT.path / own.removeprefix("0::/")

    return find
