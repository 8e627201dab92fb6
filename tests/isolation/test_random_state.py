"""Siblings draw different random numbers, though they are copies of one process that has drawn some."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import pyspawner
from support import communicate, run, spawn

if TYPE_CHECKING:
    from collections.abc import Iterator

SIBLINGS = 8

SOURCES = [
    "random.random()",
    "random.getrandbits(64)",
    "random.Random().random()",
    "random.SystemRandom().random()",
    "numpy.random.random()",
    "numpy.random.standard_normal()",
    "numpy.random.RandomState().random()",
    "numpy.random.default_rng().random()",
    "uuid.uuid1()",
    "uuid.uuid4()",
    "secrets.token_hex()",
    "ssl.RAND_bytes(16)",
    "os.urandom(16)",
    "tempfile.mktemp()",
    "multiprocessing.process.current_process().authkey",
    "pandas.Series(range(10**6)).sample(4).tolist()",
]


@pytest.fixture(scope="module")
def client_that_drew() -> Iterator[pyspawner.Client]:
    with pyspawner.Client(
        child_main="support.run_source", preload_imports=["random_state_of_the_zygote"]
    ) as client:
        yield client


def drawn_by_siblings(client: pyspawner.Client, expression: str) -> set[str]:
    """What each of a few children, all alive at once, draws."""
    module = expression.partition(".")[0]
    children = [spawn(client, f"import {module}; print({expression})") for _ in range(SIBLINGS)]
    return {communicate(child).text for child in children}


@pytest.mark.parametrize("expression", SOURCES)
def test_siblings_draw_different_numbers(expression: str, client_that_drew: pyspawner.Client) -> None:
    assert len(drawn_by_siblings(client_that_drew, expression)) == SIBLINGS


def test_siblings_have_different_clock_sequences_in_uuid1(client_that_drew: pyspawner.Client) -> None:
    """It is what tells apart two that ask within one tick. It has 14 bits: a few may be equal by chance."""
    assert len(drawn_by_siblings(client_that_drew, "uuid.uuid1().clock_seq")) > 1


@pytest.mark.parametrize(
    ("module", "expression"),
    [
        ("numpy_generator_replaced", "numpy.random.random()"),
        ("polars_random_state_of_the_zygote", "polars.Series(range(10**6)).shuffle().head(4).to_list()"),
    ],
)
def test_siblings_differ_whatever_a_module_did_in_the_zygote(module: str, expression: str) -> None:
    with pyspawner.Client(child_main="support.run_source", preload_imports=[module]) as client:
        assert len(drawn_by_siblings(client, expression)) == SIBLINGS


class TestControl:
    """State that nobody reseeds is the same in every sibling."""

    @pytest.mark.parametrize("generator", ["GENERATOR", "NUMPY_GENERATOR"])
    def test_a_generator_of_a_module_goes_on_where_it_was_in_the_zygote(
        self, generator: str, client_that_drew: pyspawner.Client
    ) -> None:
        draw = f"random_state_of_the_zygote.{generator}.random()"
        assert len(drawn_by_siblings(client_that_drew, draw)) == 1

    def test_forks_of_one_process_draw_the_same_number_from_numpy(
        self, client_that_drew: pyspawner.Client
    ) -> None:
        """It has no fork hook: a child's global state differs because pyspawner reseeds it."""
        draw_in_two_forks = """
            import numpy, os
            for _ in range(2):
                pid = os.fork()
                if not pid:
                    os.write(1, b"%r\\n" % numpy.random.random())
                    os._exit(0)
                os.waitpid(pid, 0)
        """
        first, second = run(client_that_drew, draw_in_two_forks).text.splitlines()
        assert first == second

    def test_the_same_seed_gives_the_same_numbers(self, client_that_drew: pyspawner.Client) -> None:
        seeded = "random.Random(1).random()"
        assert len(drawn_by_siblings(client_that_drew, seeded)) == 1
