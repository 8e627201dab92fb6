"""What ``warm_up`` does, and where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyspawner
from support import SANDBOX, communicate, run, run_caller, spawn
from warm_support import await_parked, run_warm


def client(warm_up: str, **options) -> pyspawner.Client:
    return pyspawner.Client(child_main="support.run_source", warm_up=f"warm_ups.{warm_up}", **options)


def test_it_runs_once_in_each_parked_child_as_its_user_and_nowhere_else():
    source = "import warm_ups; print(warm_ups.RUNS)"
    expected = str([{"pid": 1, "uid": 1000, "cwd": os.getcwd()}])
    with client("remember") as warmed:
        assert run(warmed, source).text == "[]\n", "in the zygote"
        for _ in range(3):
            assert run_warm(warmed, source).text == f"{expected}\n"


def test_what_it_imports_a_cold_child_has_too():
    source = "import sys; print('colorsys' in sys.modules)"
    with client("import_something") as warmed:
        assert run(warmed, source).text == "True\n"
    with client("remember") as control:
        assert run(control, source).text == "False\n"


def test_what_it_says_is_not_in_the_output_of_a_child():
    said = run_caller(
        """
        client.close()
        with pyspawner.Client(child_main="support.run_source", warm_up="warm_ups.speak") as client:
            client.prewarm(SANDBOX, 1)
            outcome = run(client, "import sys; print('said by the child'); print('of it', file=sys.stderr)")
        assert (outcome.stdout, outcome.stderr) == (b"said by the child\\n", b"of it\\n"), outcome
        """
    )
    # To the caller's output goes what the zygote says.
    assert "said by warm_up" in said


def test_each_child_has_a_random_state_of_its_own():
    source = """
        import random, secrets, tempfile, uuid, warm_ups
        print(*warm_ups.DRAWN, random.random(), uuid.uuid4(), secrets.token_hex(), next(tempfile._get_candidate_names()))
    """
    with client("draw", preload_imports=["tempfile", "secrets"]) as warmed:
        drawn = [run_warm(warmed, source).text.split() for _ in range(4)]
        drawn += [run(warmed, source, sandbox=pyspawner.SandboxConfig(proc=False)).text.split()]
    every = [word for words in drawn for word in words]
    assert len(every) == 4 * 6 + 4
    assert len(set(every)) == len(every)


LIBRARIES = {
    "numpy": "numpy_random_state",
    "sklearn": "kmeans",
    "numba": "numba_parallel",
    "polars": "polars_query",
    "pandas": "pandas_groupby",
    "pyarrow": "arrow_compute",
}


@pytest.mark.parametrize(("library", "function"), LIBRARIES.items())
def test_a_library_with_threads_is_used_in_it_and_again_in_the_child(library, function):
    warm_up = f"warm_up_libraries.{function}"
    with pyspawner.Client(
        child_main="support.run_source", preload_imports=[library], warm_up=warm_up
    ) as warmed:
        source = f"import warm_up_libraries; print(warm_up_libraries.{function}())"
        warm = [run_warm(warmed, source).text for _ in range(3)]
        # A cold one beside them: nothing has run in the zygote.
        cold = run(warmed, source, sandbox=pyspawner.SandboxConfig(working_dir=Path("/"))).text
    if "random" in function:
        assert len({*warm, cold}) == 4
    else:
        assert {*warm, cold} == {cold}


def test_threads_that_it_has_started_go_on_in_the_child():
    source = "import warm_ups; print(warm_ups.ask('question'))"
    with client("start_a_thread") as warmed:
        for _ in range(2):
            assert run_warm(warmed, source).text == "answer to question\n"


def test_it_needs_no_request_and_no_prewarm():
    with client("remember", warm_children=1) as warmed:
        run(warmed, "")
        await_parked(warmed, 1)
        child = spawn(warmed, "import warm_ups; print(len(warm_ups.RUNS))")
        assert communicate(child).text == "1\n"


def test_without_children_that_park_it_is_for_the_imports_only():
    with client("import_something") as warmed:
        for _ in range(3):
            assert run(warmed, "import sys; print('colorsys' in sys.modules)").text == "True\n"
        assert warmed._zygotes is not None
        assert warmed._zygotes.current.parked == 0


def test_a_prewarmed_sandbox_without_warm_up_works(by_request):
    assert run_warm(by_request, "print('ran')", sandbox=SANDBOX).text == "ran\n"
