"""Parked children give way where a spawn lacks what they hold, and their keeper does not try without pause."""

from __future__ import annotations

import textwrap

import pytest

from support import run_caller


def in_a_caller(source: str) -> list[str]:
    prologue = "import resource\nfrom warm_support import *\n"
    return run_caller(prologue + textwrap.dedent(source)).split()


def test_descriptors_that_they_hold_are_given_to_who_spawns():
    said = in_a_caller(
        """
        client.prewarm(SANDBOX, 10)
        # No new descriptor, and none that is free.
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 4096))
        try:
            while True: taken.append(os.dup(0))
        except OSError:
            pass
        assert parked(client) == 10
        for number in range(5):
            print(run(client, f"print({number})").text)
        print(parked(client) < 10)
        """
    )
    assert said == ["0", "1", "2", "3", "4", "True"]


def test_a_caller_without_descriptors_and_without_parked_children_gets_the_error():
    said = in_a_caller(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 4096))
        client.prewarm(SANDBOX, 1)
        client.prewarm(SANDBOX, 0)
        taken = []
        try:
            while True: taken.append(os.dup(0))
        except OSError:
            pass
        try:
            spawn(client, "")
        except OSError as error:
            print(error.errno)
        del taken
        """
    )
    assert said == ["24"]


def test_that_they_cannot_be_parked_is_told_and_spawns_go_on():
    said = in_a_caller(
        """
        client.close()
        from pyspawner.events import ParkingFailed
        told = []
        with pyspawner.Client(child_main="support.run_source", warm_children=200, on_event=told.append) as client:
            run(client, "")
            # A spawn needs some twenty of them for a moment; the keeper takes all that it can get.
            resource.setrlimit(resource.RLIMIT_NOFILE, (150, 4096))
            def is_told():
                assert run(client, "print('ran')").text == "ran\\n"
                return [event for event in told if isinstance(event, ParkingFailed)]
            eventually(is_told, "ParkingFailed")
            [failed, *_] = is_told()
            print(failed.error.errno, failed.error.__class__.__name__)
        print(waiting())
        """
    )
    assert said == ["24", "OSError", "set()"]


def test_a_keeper_that_cannot_start_is_no_reason_not_to_spawn():
    """Its eventfds need three descriptors; a cold spawn gets by with what is given back at once."""
    said = in_a_caller(
        """
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 4096))
        try:
            while True: taken.append(os.dup(0))
        except OSError:
            pass
        try:
            client.prewarm(SANDBOX, 1)
        except OSError as error:
            print(error.errno)
        for descriptor in taken:
            os.close(descriptor)
        print(run(client, "print('ran')").text)
        await_parked(client, 1)
        print(parked(client))
        """
    )
    assert said == ["24", "ran", "1"]


@pytest.mark.parametrize("spare", [0, 5])
def test_a_zygote_that_lacks_descriptors_is_no_reason_to_hang(spare):
    """It drops a request for which it has none."""
    said = in_a_caller(
        f"""
        import dataclasses
        sandboxes = dataclasses.replace(SANDBOX, mounts=tuple(pyspawner.Bind("/usr", f"/mnt/{{n}}") for n in range(12)))
        sandboxes = dataclasses.replace(sandboxes, mounts=(pyspawner.Tmpfs("/mnt"), *sandboxes.mounts))
        # As numbers go, and not as many as there are.
        limit = max(open_descriptors(client.zygote_pid)) + 1 + {spare}
        resource.prlimit(client.zygote_pid, resource.RLIMIT_NOFILE, (limit, 4096))
        try:
            client.prewarm(sandboxes, 1)
        except OSError as error:
            print(type(error).__name__)
        resource.prlimit(client.zygote_pid, resource.RLIMIT_NOFILE, (4096, 4096))
        client.prewarm(sandboxes, 1)
        print(parked(client))
        """
    )
    assert said == ["SandboxError", "1"]
