"""A managed network goes with its child, its Client and its caller, however these end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from managed_support import (
    caller_of,
    children,
    close_client,
    documented,
    interfaces,
    kill_child,
    left_in,
    left_open,
    managed,
    router,
    tables,
    unreached,
)

import pyspawner
import support
from internet import HOST, HOST_PUBLIC, INTERNAL, OTHER, PUBLIC, targets
from netns import Namespace, eventually

WAYS_OUT = targets(PUBLIC[:1] + PUBLIC[-1:])


def settings(namespace: Namespace) -> set[str]:
    """All sysctls of a network namespace, less those of interfaces of pyspawner and those that count something."""
    lines = namespace.run("sysctl", "--all", "--ignore", "--pattern", r"^net\.").splitlines()
    return {line for line in lines if ".psp" not in line and "_count" not in line}


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_host(world):
    host = world.host.namespace
    before, routes = settings(host), host.run("ip", "route", "show", "table", "all")
    yield
    assert eventually(lambda: left_in(host) == []), left_in(host)
    assert settings(host) == before
    assert host.run("ip", "route", "show", "table", "all") == routes


def kill_zygote(client: pyspawner.Client) -> None:
    os.kill(client.zygote_pid, signal.SIGKILL)


def spawn_without_zygote(client: pyspawner.Client) -> None:
    """Until the Client knows that it has none."""
    support.run(client, "print('ran')", sandbox=managed())


def test_there_is_one_interface_and_one_table_while_there_are_children(world, own_caller):
    host = world.host.namespace
    before = settings(host)
    with children(own_caller, managed(), managed()):
        [interface], [table] = interfaces(host), tables(host)
        assert len(interface) == len("psp") + 8
        assert table == f"pyspawner-{interface.removeprefix('psp')}"
        assert settings(host) == before


def test_a_child_that_ends_or_is_killed_leaves_no_interface_and_no_descriptor(own_caller):
    with children(own_caller, managed()) as [witness]:
        between = router(witness)
        before = set(between.look().interfaces), own_caller(left_open)
        with children(own_caller, managed()) as [ends]:
            assert len(between.look().interfaces) == len(before[0]) + 1, ends
        with children(own_caller, managed()) as [killed]:
            own_caller(kill_child, killed.pid)
        assert eventually(lambda: set(between.look().interfaces) == before[0])
        assert own_caller(left_open) == before[1]
        assert unreached(witness.probe(WAYS_OUT, seconds=30)) == {}


def test_children_that_outlive_their_client_have_no_way_out(world, own_caller):
    with children(own_caller, managed(), of="another") as [child]:
        assert unreached(child.probe(WAYS_OUT, seconds=30)) == {}
        before = own_caller(left_open)
        own_caller(close_client, "another")
        assert left_in(world.host.namespace) == []
        assert len(own_caller(left_open)[1]) < len(before[1])
        world.forget()
        assert child.reached(WAYS_OUT) == []
        assert world.internet.packets() == set()


def test_another_client_works_on_when_one_is_closed(own_caller):
    with children(own_caller, managed(), of="another"), children(own_caller, managed()) as [child]:
        own_caller(close_client, "another")
        assert unreached(child.probe(WAYS_OUT, seconds=30)) == {}


def test_children_outlive_the_zygote_with_their_network(own_caller):
    with children(own_caller, managed(), of="") as [child]:
        own_caller(kill_zygote)
        with pytest.raises(pyspawner.ZygoteDiedError):
            own_caller(spawn_without_zygote)
        assert unreached(child.probe(WAYS_OUT, seconds=30)) == {}


def test_what_a_killed_caller_has_left_is_swept_by_the_next(world, tmp_path):
    host = world.host.namespace
    for name in ("killed", "next"):
        (tmp_path / name).mkdir()
    with caller_of(host, tmp_path / "killed") as killed:
        with children(killed, managed(), of="another") as [first]:
            assert unreached(first.probe(WAYS_OUT, seconds=30)) == {}
        killed(hold, managed())
        both = tables(host)
        assert len(both) == 2
        killed.kill()
    # The interfaces go with the process, the tables do not.
    assert eventually(lambda: interfaces(host) == [])
    assert tables(host) == both
    with caller_of(host, tmp_path / "next") as following, children(following, managed()) as [child]:
        [table] = tables(host)
        assert [f"pyspawner-{name.removeprefix('psp')}" for name in interfaces(host)] == [table]
        assert unreached(child.probe(WAYS_OUT, seconds=30)) == {}


def hold(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig) -> int:
    """Have a child until the caller ends."""
    held.append(support.spawn(client, "import sys; sys.stdin.read()", sandbox=sandbox))
    return held[-1].pid


held: list[pyspawner.ChildProcess] = []


def test_the_tables_of_the_living_are_not_swept(world, own_caller, tmp_path):
    with children(own_caller, managed()) as [child]:
        before = tables(world.host.namespace)
        (tmp_path / "next").mkdir()
        with caller_of(world.host.namespace, tmp_path / "next") as following:
            with children(following, managed()):
                assert set(before) < set(tables(world.host.namespace))
            assert unreached(child.probe(WAYS_OUT, seconds=30)) == {}
        assert tables(world.host.namespace) == before


def test_tables_of_others_are_not_swept(world, own_caller):
    host = world.host.namespace
    for name in ("inet pyspawner-x", "inet other", "ip pyspawner-0a000000"):
        host.run("nft", "add", "table", *name.split())
    try:
        with children(own_caller, managed()):
            listed = json.loads(host.run("nft", "-j", "list", "tables"))["nftables"]
            names = {entry["table"]["name"] for entry in listed if "table" in entry}
            assert names > {"pyspawner-x", "other", "pyspawner-0a000000"}
    finally:
        for name in ("inet pyspawner-x", "inet other", "ip pyspawner-0a000000"):
            host.run("nft", "delete", "table", *name.split())


@pytest.mark.parametrize("zygote", ["lives", "killed"])
def test_a_client_that_is_closed_by_its_callers_end_leaves_nothing(world, tmp_path, zygote):
    with caller_of(world.host.namespace, tmp_path) as caller:
        caller(hold, managed())
        if zygote == "killed":
            caller(kill_zygote)
        assert left_in(world.host.namespace) != []
    assert left_in(world.host.namespace) == []


def test_a_firewall_that_is_flushed_takes_away_the_way_out_and_not_the_judge(world, own_caller):
    host = world.host.namespace
    with children(own_caller, managed(), managed(), documented()) as (child, sibling, unmanaged):
        forbidden = targets([*HOST, OTHER[0], OTHER[2], *INTERNAL, *sibling.addresses])
        assert unreached(child.probe(WAYS_OUT, seconds=30)) == {}
        host.run("nft", "flush", "ruleset")
        world.forget()
        # Whoever routes the answers to nobody's addresses would answer.
        assert child.reached([*forbidden, *WAYS_OUT]) in ([], WAYS_OUT)
        assert not {packet.caller for packet in world.internet.packets()} & set(HOST_PUBLIC)
        assert world.host.calls() == []
        assert world.internal.packets() | world.other.packets() == set()
        assert unmanaged.reached(["tcp/80 10.0.0.5"], seconds=30) == ["tcp/80 10.0.0.5"]


def test_after_a_spawn_that_failed_nothing_is_left(world, own_caller):
    host = world.host.namespace
    with children(own_caller, managed()) as [witness]:
        between = router(witness)
        before = set(between.look().interfaces), own_caller(left_open)
        bad = pyspawner.SandboxConfig(network=managed().network, chroot_dir=Path("/nonexistent"))
        for _ in range(3):
            with pytest.raises(OSError, match="chroot_dir"):
                own_caller(support.run, "print('ran')", sandbox=bad)
        assert eventually(lambda: set(between.look().interfaces) == before[0])
        assert own_caller(left_open) == before[1]
        assert len(left_in(host)) == 2
