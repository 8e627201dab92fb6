"""``Client(zygotes=N)``: clones of one zygote that take turns."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from zygote_support import kill, pids

import pyspawner
from pyspawner import events
from support import children_of_this_process, communicate, is_alive, open_descriptors, run, spawn


@pytest.fixture
def made_by(make_module):
    """A module that lets a child say which zygote has made it: fork hooks run there too."""
    return make_module(
        "maker",
        """
        import os
        def note():
            global PID
            PID = os.getpid()
        os.register_at_fork(before=note)
        """,
    )


MAKER = "import maker; print(maker.PID)"


def kinds(seen):
    return [type(event).__name__ for event in seen]


def test_they_are_clones_of_one_and_take_turns(made_by, make_module):
    make_module("once", "import os\nPID = os.getpid()")
    with pyspawner.Client(
        child_main="support.run_source", preload_imports=["once", made_by], zygotes=3
    ) as client:
        zygotes = pids(client)
        assert len(set(zygotes)) == 3
        makers = Counter(int(run(client, MAKER).text) for _ in range(9))
        assert makers == dict.fromkeys(zygotes, 3)
        assert {int(run(client, "import once; print(once.PID)").text) for _ in range(3)} == {zygotes[0]}


def test_they_spawn_for_many_threads(made_by):
    with (
        pyspawner.Client(child_main="support.run_source", preload_imports=[made_by], zygotes=2) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        makers = Counter(pool.map(lambda _: int(run(client, MAKER).text), range(60)))
        assert set(makers) == set(pids(client))


def test_nothing_of_them_is_left_when_the_client_is_closed():
    processes, descriptors = children_of_this_process(), open_descriptors()
    with pyspawner.Client(child_main="support.run_source", zygotes=4) as client:
        assert len(children_of_this_process() - processes) == 8, "four zygotes and their watchdogs"
        run(client, "")
    assert children_of_this_process() == processes
    assert open_descriptors() == descriptors


def test_an_import_that_fails_is_an_error_once():
    before = children_of_this_process()
    with pytest.raises(pyspawner.ZygoteStartError, match="no_such_module"):
        pyspawner.Client(child_main="support.run_source", preload_imports=["no_such_module"], zygotes=3)
    assert children_of_this_process() == before


def test_a_clone_that_fails_leaves_nothing_of_those_before_it(make_module):
    make_module(
        "second_clone_fails",
        """
        import os
        CLONES = []
        os.register_at_fork(before=lambda: CLONES.append(1))
        os.register_at_fork(after_in_child=lambda: len(CLONES) == 2 and os._exit(7))
        """,
    )
    before = children_of_this_process()
    with pytest.raises(pyspawner.ZygoteStartError, match="exit code 7"):
        pyspawner.Client(child_main="support.run_source", preload_imports=["second_clone_fails"], zygotes=4)
    assert children_of_this_process() == before


def test_of_zygotes_that_die_the_others_go_on_and_the_death_is_told():
    seen: list[events.Event] = []
    with pyspawner.Client(child_main="support.run_source", zygotes=3, on_event=seen.append) as client:
        first, second, third = pids(client)
        kill(second)
        assert [run(client, "print('works')").text for _ in range(6)] == ["works\n"] * 6
        assert pids(client) == [first, third]
        kill(first)
        assert [run(client, "print('works')").text for _ in range(6)] == ["works\n"] * 6
        kill(third)
        for _ in range(2):
            with pytest.raises(pyspawner.ZygoteDiedError, match="make a new Client"):
                run(client, "")
    assert [event.pid for event in seen if isinstance(event, events.ZygoteDied)] == [second, first, third]
    assert kinds(seen).count("SpawnFailed") == 2
    seen.clear()


def test_children_of_one_that_has_died_go_on(made_by):
    with pyspawner.Client(child_main="support.run_source", preload_imports=[made_by], zygotes=2) as client:
        children = {zygote: [] for zygote in pids(client)}
        for _ in range(2):
            child = spawn(client, "import maker; print(maker.PID, flush=True); print(input())")
            children[int(child.stdout.readline())].append(child)
        dead = pids(client)[0]
        kill(dead)
        run(client, "")
        run(client, "")
        for (child,) in children.values():
            assert communicate(child, b"still here\n").text == "still here\n"


def test_with_restart_only_the_dead_one_is_replaced():
    seen: list[events.Event] = []
    with pyspawner.Client(
        child_main="support.run_source", zygotes=3, restart=True, on_event=seen.append
    ) as client:
        before = pids(client)
        kill(before[1])
        for _ in range(6):
            assert run(client, "print('works')").text == "works\n"
        after = pids(client)
        assert len(after) == 3
        assert set(after) & set(before) == {before[0], before[2]}
    started = [event for event in seen if isinstance(event, events.ZygoteStarted)]
    assert [(event.cause, event.restarts) for event in started] == [("start", 0)] * 3 + [("restart", 1)]
    assert kinds(seen).count("ZygoteDied") == 1


def test_with_restart_the_end_of_all_is_a_start_of_all():
    with pyspawner.Client(child_main="support.run_source", zygotes=2, restart=True) as client:
        before = pids(client)
        for zygote in before:
            kill(zygote)
        for _ in range(4):
            assert run(client, "print('works')").text == "works\n"
        assert len(pids(client)) == 2
        assert not set(pids(client)) & set(before)


def test_a_clone_that_cannot_be_made_in_place_of_a_dead_one_harms_no_request(make_module, tmp_path):
    make_module(
        "breakable",
        f"""
        import os
        def fail():
            # In a zygote, and not in a child.
            if os.getsid(0) == os.getpid() and os.path.exists({str(tmp_path / "break")!r}):
                os._exit(7)
        os.register_at_fork(after_in_child=fail)
        """,
    )
    seen: list[events.Event] = []
    with pyspawner.Client(
        child_main="support.run_source",
        preload_imports=["breakable"],
        zygotes=2,
        restart=True,
        on_event=seen.append,
    ) as client:
        (tmp_path / "break").touch()
        kill(pids(client)[0])
        for _ in range(4):
            assert run(client, "print('works')").text == "works\n"
        assert len(pids(client)) == 1
        failed = [event for event in seen if isinstance(event, events.ZygoteStartFailed)]
        assert failed
        assert "exit code 7" in str(failed[0].error)
    seen.clear()
    failed.clear()


def test_a_derived_client_may_have_many_too(parent):
    with parent.derive(preload_imports=["wave"], zygotes=2) as derived:
        assert len(set(pids(derived))) == 2
        for _ in range(4):
            assert run(derived, "import sys; print('wave' in sys.modules)").text == "True\n"


def test_one_is_not_enough_of_none():
    with pytest.raises(ValueError, match="zygotes must be at least 1, not 0"):
        pyspawner.Client(child_main="support.run_source", zygotes=0)
    with pytest.raises(TypeError):
        pyspawner.Client(child_main="support.run_source", zygotes=1.5)  # pyright: ignore[reportArgumentType]


def test_a_fork_of_the_caller_that_closes_it_harms_nobody():
    with pyspawner.Client(child_main="support.run_source", zygotes=2) as client:
        pid = os.fork()
        if pid == 0:
            client.close()
            os._exit(0)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert all(map(is_alive, pids(client)))
        assert run(client, "print('works')").text == "works\n"


@pytest.mark.parametrize("zygotes", [1, 2])
def test_a_handler_that_spawns_while_a_dead_zygote_is_replaced_gets_an_answer(zygotes):
    answers: list[object] = []

    def spawn_too(event: events.Event) -> None:
        if isinstance(event, events.ZygoteStarted) and event.cause == "restart":
            try:
                answers.append(run(client, "print('works')").text)
            except pyspawner.ZygoteDiedError:
                answers.append("not yet")

    with pyspawner.Client(
        child_main="support.run_source", zygotes=zygotes, restart=True, on_event=spawn_too
    ) as client:
        for zygote in pids(client):
            kill(zygote)
        assert run(client, "print('works')").text == "works\n"
        assert answers == ["not yet"] * zygotes
        assert len(pids(client)) == zygotes
