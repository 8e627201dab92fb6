"""The trap: threads that an import has started are not in the children, and the log says whose they were."""

from __future__ import annotations

import logging

import pytest

import pyspawner

# Each with the library it uses: importing that alone may start threads too, of BLAS for example, which
# copes with a fork.
USERS_OF_THREADS = [
    pytest.param("threading", "thread_started_at_import", id="a thread"),
    pytest.param("sklearn.cluster", "openmp_used_at_import", id="OpenMP"),
    pytest.param("numba", "numba_used_at_import", id="numba"),
]
# A pool on a machine of one processor has no thread unless it is told so.
TWO_WORKERS = {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}


def log_of_a_client(
    caplog: pytest.LogCaptureFixture, *, child_main: str = "builtins.print", preload_imports: list[str]
) -> list[str]:
    caplog.set_level(logging.INFO, "pyspawner")
    with pyspawner.Client(child_main=child_main, preload_imports=preload_imports, environment=TWO_WORKERS):
        return [record.getMessage() for record in caplog.records if record.name == "pyspawner"]


@pytest.mark.parametrize(("library", "module"), USERS_OF_THREADS)
def test_the_log_names_a_preloaded_module_that_used_a_pool(
    library: str, module: str, caplog: pytest.LogCaptureFixture
) -> None:
    messages = log_of_a_client(caplog, preload_imports=[library, module, "json"])
    assert f"importing '{module}' started " in messages[-1]
    assert "in the zygote" in messages[-1]
    assert "children do not have them" in messages[-1]


@pytest.mark.parametrize(("library", "module"), USERS_OF_THREADS)
def test_the_log_names_the_module_of_child_main_that_used_a_pool(
    library: str, module: str, caplog: pytest.LogCaptureFixture
) -> None:
    messages = log_of_a_client(caplog, preload_imports=[library], child_main=f"{module}.main")
    assert f"importing '{module}' started " in messages[-1]


def test_the_log_counts_and_names_the_threads(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = log_of_a_client(caplog, preload_imports=["thread_started_at_import"])
    assert "started 1 thread(s) in the zygote: worker-of-mine;" in message


def test_the_log_is_silent_about_modules_that_start_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    assert log_of_a_client(caplog, preload_imports=["sqlite3", "asyncio"], child_main="json.loads") == []
