"""Warm children with a managed network: judged as cold ones, and gone without a trace."""

from __future__ import annotations

import os
import signal

from managed_support import caller_of, children, left_in, left_open, managed, router

import pyspawner
import warm_support
from internet import HOST, INTERNAL, OTHER, PUBLIC, targets
from netns import eventually

EVERYBODY = targets(PUBLIC[:2] + INTERNAL[:2] + OTHER[:1] + HOST[:1])


def prewarm(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig, count: int) -> list[int]:
    """Those that wait then."""
    client.prewarm(sandbox, count)
    return sorted(warm_support.waiting())


def kill_parked(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig) -> None:
    """Let them be replaced."""
    before = warm_support.waiting()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    warm_support.eventually(lambda: not before & warm_support.waiting(), "their end")
    warm_support.await_parked(client, len(before))


def test_a_warm_one_reaches_whom_a_cold_one_reaches(caller):
    for sandbox in (managed(), managed("10.0.0.0/8"), managed(deny=["*"])):
        with children(caller, sandbox) as [cold]:
            expected = cold.probe(EVERYBODY, seconds=5)
        there = caller(prewarm, sandbox, 1)
        with children(caller, sandbox) as [warm]:
            assert warm.pid in there
            assert warm.probe(EVERYBODY, seconds=5) == expected
        caller(prewarm, sandbox, 0)


def test_warm_siblings_do_not_reach_each_other(caller):
    sandbox = managed()
    there = caller(prewarm, sandbox, 2)
    with children(caller, sandbox, sandbox) as (one, other):
        assert {one.pid, other.pid} & set(there)
        reached = one.reached([f"tcp/9999 {address}" for address in other.addresses], seconds=1)
        assert reached == []
    caller(prewarm, sandbox, 0)


def test_the_interfaces_of_parked_ones_go_with_them(own_caller):
    with children(own_caller, managed()) as [witness]:
        between = router(witness)
        before, (_, descriptors) = set(between.look().interfaces), own_caller(left_open)
        own_caller(prewarm, managed(), 3)
        assert len(between.look().interfaces) == len(before) + 3
        own_caller(kill_parked, managed())
        assert eventually(lambda: len(between.look().interfaces) == len(before) + 3)
        own_caller(prewarm, managed(), 0)
        assert eventually(lambda: set(between.look().interfaces) == before)
        left = own_caller(left_open)[1]
        # What the keeper waits with, it keeps.
        assert len(left) - len(descriptors) <= 5, set(left) - set(descriptors)


def test_a_closed_caller_leaves_nothing_of_parked_ones_on_the_host(world, tmp_path):
    host = world.host.namespace
    # Of another caller, maybe.
    before = left_in(host)
    with caller_of(host, tmp_path) as caller:
        assert len(caller(prewarm, managed(), 2)) == 2
        assert left_in(host) != before
    assert eventually(lambda: left_in(host) == before), left_in(host)


def test_a_killed_caller_leaves_no_parked_ones(world, tmp_path):
    host = world.host.namespace
    with caller_of(host, tmp_path) as caller:
        there = caller(prewarm, managed(), 2)
        caller.kill()
        assert eventually(lambda: not any(map(warm_support.title, there)))
