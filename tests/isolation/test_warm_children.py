"""A warm child finds nothing of others in its memory, nor anything of its own from before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import memory_search
import pytest

import pyspawner
from support import SANDBOX, communicate, spawn
from warm_support import cool, eventually, parked, spawn_warm, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

EARLIER_CHILDREN = 50

# Never in one piece: a searching child would find its own copy.
HALVES = ("Wm8", "qRz")
PREFIX = "".join(HALVES)

SEARCH = r"""
import memory_search, sys
received = sys.stdin.read()
for match in sorted(memory_search.search(rf"{''.join(halves)}-[a-z]+-\d\d\d\d".encode())):
    print(match.decode())
"""


def marker(kind: str, number: int) -> str:
    """Several times in a row: an allocator may overwrite the first bytes of what was freed."""
    return " ".join([f"{PREFIX}-{kind}-{number:04}"] * 3)


@pytest.fixture(scope="module")
def of_earlier_requests() -> Iterator[pyspawner.Client]:
    """A client that has woken some children, each with marks in all that a request has."""
    with pyspawner.Client(child_main="support.run_source", preload_imports=["memory_search"]) as client:
        for number in range(EARLIER_CHILDREN):
            # One more waits while this one is woken.
            client.prewarm(SANDBOX, 2)
            child = spawn_warm(
                client,
                "import sys; print(sys.stdin.read(), of_args)",
                process_name=marker("name", number),
                of_args=marker("args", number),
            )
            assert PREFIX in communicate(child, marker("stdin", number).encode()).text
        cool(client)
        yield client


@pytest.fixture
def experienced(of_earlier_requests: pyspawner.Client) -> Iterator[pyspawner.Client]:
    yield of_earlier_requests
    cool(of_earlier_requests)


def test_nothing_of_earlier_requests_is_found(experienced):
    for _ in range(3):
        child = spawn_warm(experienced, SEARCH, halves=HALVES)
        assert communicate(child).text == ""


def test_those_that_wait_have_nothing_of_any_request(experienced):
    experienced.prewarm(SANDBOX, 3)
    running = spawn(experienced, "import sys; sys.stdin.read()", of_args=marker("args", 9999))
    eventually(lambda: parked(experienced) == 3, "a full pool")
    for pid in (*waiting(), experienced.zygote_pid):
        assert memory_search.search(rf"{PREFIX}-[a-z]+-\d\d\d\d".encode(), str(pid)) == set()
    assert communicate(running).exitcode == 0


def test_control_a_woken_child_finds_its_own(experienced):
    child = spawn_warm(
        experienced,
        SEARCH,
        halves=HALVES,
        process_name=marker("name", 9999),
        of_args=marker("args", 9999),
    )
    found = communicate(child, marker("stdin", 9999).encode()).text.split()
    assert found == [f"{PREFIX}-{kind}-9999" for kind in ("args", "name", "stdin")]


def test_it_has_no_descriptor_but_its_streams(experienced):
    source = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    # And the one that lists them.
    assert communicate(spawn_warm(experienced, source)).text == "[0, 1, 2, 3]\n"
