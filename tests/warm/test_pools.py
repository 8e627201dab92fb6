"""Which children are parked, and that each is used once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyspawner
from pyspawner import Bind, Limits, NetworkConfig, Overlay, SandboxConfig, SandboxError, Tmpfs
from support import SANDBOX, communicate, run, spawn
from warm_support import (
    PARKED_NAME,
    await_parked,
    comm,
    eventually,
    parked,
    run_warm,
    spawn_warm,
    title,
    waiting,
)

READ_A_LINE = "import sys; print(sys.stdin.readline())"


def of_size(tmp_bytes: int) -> SandboxConfig:
    """A sandbox that is like no other."""
    return SandboxConfig(limits=Limits(tmp_bytes=tmp_bytes << 20))


def test_the_second_spawn_finds_a_child_and_another_takes_its_place(one_warm):
    assert run(one_warm, "print('first')").text == "first\n"
    seen = set()
    for number in range(10):
        await_parked(one_warm, 1)
        [there] = waiting()
        child = spawn(one_warm, f"print({number})")
        assert child.pid == there
        assert communicate(child).text == f"{number}\n"
        seen.add(child.pid)
    assert len(seen) == 10


def test_without_being_asked_nothing_is_parked(by_request):
    for _ in range(3):
        run(by_request, "")
    assert waiting() == set()


def test_no_child_has_anything_of_an_earlier_one(one_warm):
    source = """
    import builtins, os, sys
    found = [os.path.exists("/tmp/left"), os.environ.get("LEFT"), os.getcwd(), hasattr(builtins, "left"), os.umask(0o22)]
    open("/tmp/left", "w").close()
    os.environ["LEFT"] = builtins.left = "left"
    os.chdir("/tmp")
    os.umask(0)
    print(found)
    """
    expected = f"{[False, None, os.getcwd(), False, 0o22]}\n"
    assert run(one_warm, source).text == expected
    for _ in range(5):
        await_parked(one_warm, 1)
        assert run(one_warm, source).text == expected


def test_equal_sandboxes_share_a_pool_and_others_do_not(by_request):
    by_request.prewarm(of_size(1), 1)
    by_request.prewarm(of_size(1), 1)
    [there] = waiting()
    other = spawn(by_request, "", sandbox=of_size(2))
    assert other.pid != there
    same = spawn(by_request, "", sandbox=of_size(1))
    assert same.pid == there
    for child in (other, same):
        assert communicate(child).exitcode == 0


def test_the_four_sandboxes_that_were_used_last_have_pools(one_warm):
    for number in range(1, 5):
        run(one_warm, "", sandbox=of_size(number))
    await_parked(one_warm, 4)
    four = waiting()
    # The first is not the least recently used any more.
    first = spawn(one_warm, "", sandbox=of_size(1))
    assert first.pid in four
    assert communicate(first).exitcode == 0
    await_parked(one_warm, 4)
    run(one_warm, "", sandbox=of_size(5))
    await_parked(one_warm, 4)
    eventually(lambda: len(waiting()) == 4, "the end of the least recently used")
    for number in (1, 3, 4, 5):
        there = waiting()
        child = spawn(one_warm, "", sandbox=of_size(number))
        assert child.pid in there, number
        assert communicate(child).exitcode == 0
    there = waiting()
    cold = spawn(one_warm, "", sandbox=of_size(2))
    assert cold.pid not in there
    assert communicate(cold).exitcode == 0


def test_what_was_asked_for_stays_until_it_is_asked_to_go(one_warm):
    one_warm.prewarm(of_size(100), 2)
    asked_for = waiting()
    assert len(asked_for) == 2
    for number in range(1, 7):
        run(one_warm, "", sandbox=of_size(number))
    await_parked(one_warm, 2 + 4)
    assert asked_for <= waiting()
    one_warm.prewarm(of_size(100), 0)
    assert not asked_for & waiting()
    await_parked(one_warm, 4)


def test_the_number_that_was_asked_for_last_counts(by_request):
    for count in (3, 1, 2, 0):
        by_request.prewarm(SANDBOX, count)
        assert parked(by_request) == len(waiting()) == count
    run(by_request, "")
    assert waiting() == set()


def test_a_parked_child_says_so_in_ps_until_it_has_a_name(by_request):
    by_request.prewarm(SANDBOX, 1)
    [there] = waiting()
    assert (title(there), comm(there)) == (PARKED_NAME, PARKED_NAME)
    named = spawn_warm(by_request, READ_A_LINE, process_name="a job with a long name")
    assert (title(named.pid), comm(named.pid)) == ("a job with a long name", "a job with a lo")
    unnamed = spawn_warm(by_request, READ_A_LINE)
    cold = spawn(by_request, READ_A_LINE, sandbox=of_size(1))
    assert (title(unnamed.pid), comm(unnamed.pid)) == (title(cold.pid), comm(cold.pid))
    assert PARKED_NAME not in (title(unnamed.pid), comm(unnamed.pid))
    for child in (named, unnamed, cold):
        assert communicate(child, b"x\n").exitcode == 0


def test_input_of_all_kinds_reaches_a_warm_child(by_request):
    args = bytes(range(256)) * 4096
    outcome = run_warm(
        by_request, "import sys; print(len(args), sys.stdin.read())", stdin=b"stdin", args=args
    )
    assert outcome.text == f"{len(args)} stdin\n"


class TestArguments:
    def test_a_number_is_wanted(self, by_request):
        for count in ("1", None, 1.0):
            with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
                by_request.prewarm(SANDBOX, count)
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            pyspawner.Client(child_main="support.run_source", warm_children="1")  # pyright: ignore[reportArgumentType]

    def test_a_negative_one_makes_no_sense(self, by_request):
        with pytest.raises(ValueError, match="count must not be negative: -1"):
            by_request.prewarm(SANDBOX, -1)
        with pytest.raises(ValueError, match="warm_children must not be negative: -1"):
            pyspawner.Client(child_main="support.run_source", warm_children=-1)

    def test_a_sandbox_is_wanted(self, by_request):
        with pytest.raises(TypeError, match="sandbox_config must be a SandboxConfig"):
            by_request.prewarm(None, 1)

    def test_a_sandbox_that_makes_no_sense_is_refused(self, by_request):
        with pytest.raises(ValueError, match="relative"):
            by_request.prewarm(SandboxConfig(mounts=(Tmpfs("relative"),)), 1)

    def test_a_closed_client_has_none(self, by_request):
        by_request.close()
        with pytest.raises(RuntimeError, match="the Client is closed"):
            by_request.prewarm(SANDBOX, 1)


class TestSandboxesForOneChildAtATime:
    @pytest.fixture(params=["an upper", "a veth pair of a name"])
    def sandbox(self, request, directory):
        if request.param == "a veth pair of a name":
            return SandboxConfig(network=NetworkConfig("psw-test", "eth0", "10.79.1.1", "10.79.1.2"))
        for name in ("lower", "upper"):
            (directory / name).mkdir()
        overlay = Overlay("/mnt", lower=directory / "lower", upper=directory / "upper")
        return SandboxConfig(mounts=(overlay,))

    def test_prewarm_refuses_them(self, sandbox, by_request):
        with pytest.raises(ValueError, match="for one at a time"):
            by_request.prewarm(sandbox, 1)

    def test_they_are_cloned_for_each_spawn(self, sandbox, one_warm):
        for _ in range(3):
            assert run(one_warm, "print('cold')", sandbox=sandbox).text == "cold\n"
        assert waiting() == set()


def test_a_sandbox_that_cannot_work_is_the_error_that_a_spawn_has(by_request):
    missing = SandboxConfig(mounts=(Bind("/srv/missing", "/mnt"),))
    with pytest.raises(SandboxError) as of_spawn:
        run(by_request, "", sandbox=missing)
    with pytest.raises(SandboxError) as of_prewarm:
        by_request.prewarm(missing, 1)
    assert str(of_prewarm.value) == str(of_spawn.value)


def test_a_sandbox_that_never_works_is_no_reason_to_neglect_others(one_warm, directory):
    source = directory / "source"
    broken = SandboxConfig(mounts=(Bind(source, "/mnt"),))
    one_warm.prewarm(SANDBOX, 1)
    for number in range(20):
        with pytest.raises(SandboxError):
            run(one_warm, "", sandbox=broken)
        # No other use brings the good one to the front: it is refilled because it lacks one.
        await_parked(one_warm, 1)
        assert run(one_warm, f"print({number})").text == f"{number}\n"
        with pytest.raises(SandboxError):
            run(one_warm, "", sandbox=broken)
    await_parked(one_warm, 1)
    assert Path(f"/proc/{waiting().pop()}").exists()


def test_an_error_of_one_sandbox_is_not_told_to_who_prewarms_another(one_warm, directory):
    broken = SandboxConfig(mounts=(Bind(directory / "missing", "/mnt"),))
    for number in range(1, 20):
        with pytest.raises(SandboxError):
            run(one_warm, "", sandbox=broken)
        one_warm.prewarm(of_size(number), 1)
