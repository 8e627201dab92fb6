"""Managed networks of children whose zygote is one of many, is a clone of another one, or has made place for a new one."""

from __future__ import annotations

import threading
from typing import Any

import managed_support
import pytest
from managed_support import children, close_client, interfaces, left_in, managed, unreached

import pyspawner
import rootless
import support
from internet import PUBLIC, targets
from netns import eventually
from pyspawner import events

WAYS_OUT = targets(PUBLIC[:1] + PUBLIC[-1:])

_retired = threading.Semaphore(0)


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_host(world):
    yield
    assert eventually(lambda: left_in(world.host.namespace) == []), left_in(world.host.namespace)


# What callers are asked to do.


def make(client: pyspawner.Client, name: str, **options: Any) -> None:
    """Make another Client of this name, for ``children``."""
    del client

    def see(event: events.Event) -> None:
        if isinstance(event, events.ZygoteRetired):
            _retired.release()

    managed_support._clients[name] = pyspawner.Client(
        child_main="support.run_source", on_event=see, **options
    )


def derive(client: pyspawner.Client, name: str) -> None:
    """Make another Client of this name, of the caller's own."""
    managed_support._clients[name] = client.derive()


def await_retirement(client: pyspawner.Client) -> bool:
    """Wait until a zygote of :func:`make` has made place for another one."""
    del client
    return _retired.acquire(timeout=60)


def spawn_with(client: pyspawner.Client, name: str) -> str:
    """Have a Client of :func:`make` notice what has ended."""
    del client
    return support.run(managed_support._clients[name], "print('ran')").text


# With root.


def test_a_child_of_a_retired_zygote_keeps_its_network_until_it_ends(world, own_caller):
    own_caller(make, "rotating", max_spawns_per_zygote=1)
    with children(own_caller, managed(), of="rotating") as [child]:
        assert own_caller(await_retirement)
        assert unreached(child.probe(WAYS_OUT, seconds=30)) == {}
        assert len(interfaces(world.host.namespace)) == 1
    assert eventually(lambda: own_caller(spawn_with, "rotating") and left_in(world.host.namespace) == [])
    own_caller(close_client, "rotating")


def test_close_takes_the_network_of_retired_zygotes_too(world, own_caller):
    own_caller(make, "rotating", max_spawns_per_zygote=1)
    with children(own_caller, managed(), of="rotating") as [child]:
        assert own_caller(await_retirement)
        own_caller(close_client, "rotating")
        assert left_in(world.host.namespace) == []
        assert child.reached(WAYS_OUT) == []


def test_many_zygotes_have_a_router_each_and_no_address_twice(own_caller):
    own_caller(make, "many", zygotes=2)
    with children(own_caller, managed(), managed(), managed(), managed(), of="many") as all_:
        assert [unreached(child.probe(WAYS_OUT, seconds=30)) for child in all_] == [{}] * 4
        addresses = [address for child in all_ for address in child.addresses]
        assert len(set(addresses)) == len(addresses)
        assert len(interfaces(all_[0].caller.namespace)) == 2
    own_caller(close_client, "many")


def test_the_end_of_a_parent_leaves_the_network_of_a_derived_zygotes_children(own_caller):
    own_caller(make, "parent")
    own_caller(derive, "derived")
    with (
        children(own_caller, managed(), of="parent") as [lost],
        children(own_caller, managed(), of="derived") as [child],
    ):
        own_caller(close_client, "parent")
        assert unreached(child.probe(WAYS_OUT, seconds=30)) == {}
        assert lost.reached(WAYS_OUT) == []
    own_caller(close_client, "derived")


# Without.


def test_without_root_a_derived_zygotes_watchdog_runs_pasta_too(world, user):
    """It lives in the user namespace that the first zygote has made, and in no other view of the host than the caller."""
    source = "import probes; print(probes.attempt_all(targets, 30))".replace("targets", repr(WAYS_OUT[:1]))
    with rootless.caller(world.host.namespace, user) as caller:
        sandbox = managed(dns=("1.1.1.1",))
        assert "'reached'" in caller(rootless.run_in_derived, source, sandbox)
        assert eventually(lambda: not rootless.pastas())
