"""What people use works in a child: time after time, and whether the zygote had it loaded or not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import pyspawner
from support import SANDBOX, Outcome, communicate

if TYPE_CHECKING:
    from collections.abc import Iterator

# A lock that was held in the zygote, or a race between threads of the child, hangs one child in many.
RUNS = 200
AT_ONCE = 3
# Far more than the slowest needs on a busy machine.
DEADLINE_SECONDS = 60

NOTHING = ()
STANDARD_LIBRARY = ("concurrent.futures", "subprocess", "asyncio", "sqlite3", "tempfile")
SCIKIT_LEARN = ("sklearn.cluster", "sklearn.ensemble")

CASES = [
    (NOTHING, "thread"),
    (NOTHING, "thread_pool"),
    (NOTHING, "echo"),
    (NOTHING, "event_loop"),
    (NOTHING, "sqlite"),
    (NOTHING, "matmul"),
    (NOTHING, "parquet"),
    (NOTHING, "groupby"),  # `import pandas` from cold
    (STANDARD_LIBRARY, "thread"),
    (STANDARD_LIBRARY, "thread_pool"),
    (STANDARD_LIBRARY, "echo"),
    (STANDARD_LIBRARY, "event_loop"),
    (STANDARD_LIBRARY, "sqlite"),
    (("blas_used_at_import",), "matmul"),
    (("pyarrow.parquet", "pyarrow.dataset"), "parquet"),
    (("pandas",), "groupby"),
    (SCIKIT_LEARN, "k_means"),
    (SCIKIT_LEARN, "forest"),
    (("numba",), "prange"),
    (("polars",), "polars_group_by"),
    (("duckdb",), "duckdb_group_by"),
    (("matplotlib.pyplot", "matplotlib.backends.backend_agg"), "plot"),
    (("lxml.etree",), "xml"),
]


@pytest.fixture(scope="module")
def zygote(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pyspawner.Client]:
    """A client that has imported the parameter's modules."""
    # Or matplotlib would keep its list of fonts in the home directory.
    environment = {"MPLCONFIGDIR": str(tmp_path_factory.mktemp("matplotlib"))}
    with pyspawner.Client(
        child_main="workloads.run", preload_imports=list(request.param), environment=environment
    ) as client:
        yield client


def name(preloaded: tuple[str, ...]) -> str:
    return f"preloaded {preloaded[0]}" if preloaded else "from cold"


@pytest.mark.parametrize(
    ("zygote", "workload"),
    [pytest.param(preloaded, work, id=f"{work}, {name(preloaded)}") for preloaded, work in CASES],
    indirect=["zygote"],
    scope="module",
)
def test_200_children_do_it_without_a_hang(zygote: pyspawner.Client, workload: str) -> None:
    give_up = threading.Event()

    def run(_: int) -> Outcome | None:
        if give_up.is_set():
            return None
        child = zygote.spawn_child([workload], sandbox_config=SANDBOX)
        outcome = communicate(child, timeout=DEADLINE_SECONDS)
        if outcome.exitcode:
            give_up.set()
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = [outcome for outcome in pool.map(run, range(RUNS)) if outcome is not None]

    hung = [outcome for outcome in outcomes if outcome.exitcode == -9]
    assert not hung, (
        f"{workload} hung: {len(hung)} of {len(outcomes)} children did not end within {DEADLINE_SECONDS} "
        f"seconds and were killed; the first of them: {hung[0]}"
    )
    assert {outcome.text for outcome in outcomes} == {f"{workload} done\n"}
    assert len(outcomes) == RUNS
