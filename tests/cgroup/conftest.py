"""Tests of limits by cgroup v2, which need a host with one: ``make test-vm`` makes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import spawn

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="session", autouse=True)
def in_use(client):
    """A client has its part of the tree from its first child on."""
    assert "memory" in (CGROUPS / "cgroup.controllers").read_text(), "no cgroup v2 here: make test-vm"
    with spawn(client, "") as child:
        assert not child.layers["cgroup"].startswith("none"), child.layers


@pytest.fixture(autouse=True)
def no_cgroup_is_left_behind(in_use):
    before = set(CGROUPS.rglob("pyspawner-*/*/"))
    yield
    assert {path for path in CGROUPS.rglob("pyspawner-*/*/") if path.is_dir()} <= before


@pytest.fixture
def cgroup_of():
    """Where a child's cgroup is."""

    def find(child):
        (line,) = (
            line
            for line in Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
        return CGROUPS / line.removeprefix("0::/")

    return find
