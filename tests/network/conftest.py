"""A world, and a caller on its host that knows a resolver."""

from __future__ import annotations

import managed_support
import pytest

import internet


@pytest.fixture(scope="module")
def caller(world, tmp_path_factory):
    """A caller whose resolver is one of the Internet."""
    with managed_support.caller_of(world.host.namespace, tmp_path_factory.mktemp("etc")) as caller:
        with managed_support.children(caller, managed_support.managed()) as [child]:
            managed_support.router(child).sysctl(**internet.ALL_ERRORS)
        yield caller


@pytest.fixture
def own_caller(world, tmp_path):
    """The same for one test, which may break what it likes."""
    with managed_support.caller_of(world.host.namespace, tmp_path) as caller:
        yield caller
