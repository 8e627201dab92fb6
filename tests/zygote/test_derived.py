"""``Client.derive``: a zygote that is a clone of another one, with more imports."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from zygote_support import kill, watchdog

import pyspawner
from pyspawner import events
from support import (
    SANDBOX,
    children_of_this_process,
    communicate,
    is_alive,
    run,
    run_caller,
    spawn,
    wait_until,
)


def derive_fails(parent, **options) -> pyspawner.ZygoteStartError:
    before = children_of_this_process()
    with pytest.raises(pyspawner.ZygoteStartError) as caught:
        parent.derive(**options)
    assert children_of_this_process() == before, "a process is left"
    return caught.value


# What it has. -----------------------------------------------------------------------------------------------


def test_it_has_the_parents_imports_and_its_own_and_the_parent_does_not_have_those(make_module):
    make_module("once", "import os\nPID = os.getpid()")
    modules = "import sys; print(sys.modules['once'].PID, 'wave' in sys.modules)"
    with pyspawner.Client(child_main="support.run_source", preload_imports=["once"]) as parent:
        zygote = parent.zygote_pid
        with parent.derive(preload_imports=["wave"]) as derived:
            assert run(derived, modules).text == f"{zygote} True\n"
            assert run(parent, modules).text == f"{zygote} False\n"
            assert derived.zygote_pid != zygote


def test_a_tree_of_them_has_what_is_on_the_way_to_its_root(parent):
    source = "import sys; print([name for name in ('wave', 'mailbox') if name in sys.modules])"
    with (
        parent.derive(preload_imports=["wave"]) as child,
        child.derive(preload_imports=["mailbox"]) as grandchild,
        parent.derive() as sibling,
    ):
        assert run(grandchild, source).text == "['wave', 'mailbox']\n"
        assert run(child, source).text == "['wave']\n"
        assert run(sibling, source).text == "[]\n"


def test_child_main_is_the_parents_or_its_own(parent):
    with parent.derive(child_main="builtins.print") as derived:
        child = derived.spawn_child(["other"], sandbox_config=SANDBOX)
        assert child.communicate(timeout=60).check().stdout == b"other\n"
        with derived.derive() as like_it:
            child = like_it.spawn_child(["too"], sandbox_config=SANDBOX)
            assert child.communicate(timeout=60).check().stdout == b"too\n"


def test_environment_search_path_and_executable_are_the_parents(tmp_path):
    look = "import os, sys; print(dict(os.environ), sys.path, sys.executable, sys.argv, sys.orig_argv)"
    with (
        pyspawner.Client(child_main="support.run_source", environment={"A": "b"}) as parent,
        parent.derive() as derived,
    ):
        assert run(derived, look).text == run(parent, look).text


def test_imports_see_the_host_and_children_do_not(make_module, directory, monkeypatch):
    """The parent's zygote lives in the view that its children get, which is another one."""
    secret = Path("/root/pyspawner-test-secret")
    make_module(
        "reader",
        """
        import os, pathlib
        SEEN = pathlib.Path("/root/pyspawner-test-secret").read_text(), os.getcwd(), os.listdir("/run") != []
        """,
    )
    monkeypatch.chdir(directory)
    look = "import os, reader; print(reader.SEEN, os.path.exists('/root/pyspawner-test-secret'), os.listdir('/run'))"
    with pyspawner.Client(child_main="support.run_source") as parent:
        run(parent, "")
        secret.write_text("secret")
        try:
            with parent.derive(preload_imports=["reader"]) as derived:
                assert run(derived, look).text == f"{('secret', str(directory), True)} False []\n"
        finally:
            secret.unlink()


def test_a_child_sees_as_little_as_a_child_of_the_parent(parent):
    look = """
    import json, os
    mounts = [line.split()[4:6] for line in open("/proc/self/mountinfo")]
    status = [line for line in open("/proc/self/status") if line.startswith(("Cap", "NoNewPrivs", "Seccomp:", "Groups", "Uid"))]
    print(json.dumps([mounts, status, os.listdir("/proc/self/fd"), os.listdir("/"), os.getcwd()]))
    """
    with parent.derive(preload_imports=["wave"]) as derived:
        assert json.loads(run(derived, look).text) == json.loads(run(parent, look).text)


@pytest.mark.parametrize("place", ["/root", "/run", "/sys", "/tmp"])
def test_nothing_leads_a_child_back_to_the_hosts_tree(parent, place):
    attack = f"""
    import ctypes, os
    libc = ctypes.CDLL(None)
    # With every capability of its own, and without seccomp.
    libc.unshare(0x20000)
    for _ in range(50):
        libc.umount2({place.encode()!r}, 2)
    os.chdir("/")
    for _ in range(50):
        os.chdir("..")
    print(sorted(os.listdir({place!r})))
    """
    unlocked = pyspawner.SandboxConfig(skip_sandbox_except=frozenset({"none of the layers"}))
    with parent.derive() as derived:
        with pytest.warns(pyspawner.InsecureSandboxWarning):
            seen, by_parent = (run(client, attack, sandbox=unlocked).text for client in (derived, parent))
        assert seen == by_parent
    assert seen != f"{sorted(os.listdir(place))}\n", "the control"


def test_two_children_of_it_differ_in_their_random_numbers_and_from_the_parents():
    look = "import numpy, random; print(numpy.random.random(), random.random())"
    with (
        pyspawner.Client(child_main="support.run_source", preload_imports=["numpy"]) as parent,
        parent.derive() as derived,
    ):
        seen = [run(client, look).text for client in (parent, parent, derived, derived)]
    numbers = [number for text in seen for number in text.split()]
    assert len(set(numbers)) == len(numbers)


def test_a_blocked_call_names_itself(parent):
    with parent.derive(preload_imports=["ctypes"]) as derived:
        child = spawn(derived, "import ctypes; ctypes.CDLL(None).unshare(0)")
        completed = child.communicate(timeout=60)
    assert (completed.cause, completed.blocked_syscall) == (pyspawner.Cause.BLOCKED_SYSCALL, "unshare")
    assert b'File "<child>", line 1' in completed.stderr


@pytest.mark.parametrize("sandbox", [pyspawner.SandboxConfig.without_namespaces()])
def test_children_without_namespaces_have_the_hosts_view(parent, sandbox, directory):
    (directory / "file").write_text("content")
    look = f"print(open('{directory}/file').read())"
    with parent.derive() as derived, derived.derive() as again:
        assert run(again, look, sandbox=sandbox).text == "content\n"


# How it starts. ---------------------------------------------------------------------------------------------


def test_threads_of_its_imports_are_left_behind_and_told(parent, caplog):
    with (
        caplog.at_level("INFO", logger="pyspawner"),
        parent.derive(preload_imports=["thread_started_here"]) as derived,
    ):
        assert run(derived, "import threading, os; print(len(os.listdir('/proc/self/task')))").text == "1\n"
        with derived.derive() as again:
            assert run(again, "print('works')").text == "works\n"
    assert "importing 'thread_started_here' started 1 thread(s)" in caplog.text


def test_a_missing_module_is_named_with_the_zygotes_traceback_and_the_parent_goes_on(parent):
    error = derive_fails(parent, preload_imports=["wave", "no_such_module"])
    assert "cannot import 'no_such_module' of preload_imports" in str(error)
    assert error.traceback is not None
    assert "Traceback (most recent call last)" in error.traceback
    assert "no_such_module" in str(pickle.loads(pickle.dumps(error)))
    assert run(parent, "import sys; print('wave' in sys.modules)").text == "False\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('the reason')", "RuntimeError: the reason"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("import os, threading; os.closerange(3, 1000); threading.Event().wait()", '"broken"'),
    ],
)
def test_a_module_that_breaks_the_start_is_named(make_module, source, said):
    make_module("broken", source)
    with pyspawner.Client(child_main="support.run_source") as parent:
        assert said in str(derive_fails(parent, preload_imports=["broken"]))
        assert run(parent, "print('works')").text == "works\n"


def test_a_child_main_that_is_no_function_is_said(parent):
    assert "has no attribute 'no_such_function'" in str(
        derive_fails(parent, child_main="support.no_such_function")
    )


def test_bad_input_is_said_as_by_the_constructor(parent):
    with pytest.raises(TypeError, match="list of module names"):
        parent.derive(preload_imports="pandas")
    with pytest.raises(ValueError, match=r"package\.module\.function"):
        parent.derive(child_main="main")
    with pytest.raises(ValueError, match="zygotes must be at least 1"):
        parent.derive(zygotes=0)
    with pytest.raises(ValueError, match="max_spawns_per_zygote must be at least 1"):
        parent.derive(max_spawns_per_zygote=0)


def test_what_a_module_prints_goes_to_the_callers_output(make_module, capfd):
    make_module("talker", "import sys; print('to stdout'); print('to stderr', file=sys.stderr)")
    with (
        pyspawner.Client(child_main="support.run_source") as parent,
        parent.derive(preload_imports=["talker"]),
    ):
        pass
    assert capfd.readouterr() == ("to stdout\n", "to stderr\n")


def test_exit_handlers_of_the_parents_modules_do_not_run_when_a_derived_zygote_fails_or_ends(
    make_module, tmp_path
):
    make_module(
        "tidy",
        f"""
        import atexit, os, pathlib
        PLACE = pathlib.Path({str(tmp_path)!r}, "file")
        PLACE.touch()
        atexit.register(PLACE.unlink)
        """,
    )
    make_module(
        "restless",
        "import os, threading\n"
        "os.register_at_fork(after_in_child=lambda: threading.Thread(target=threading.Event().wait, daemon=True).start())\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    )
    with pyspawner.Client(child_main="support.run_source", preload_imports=["tidy"]) as parent:
        assert "threads" in str(derive_fails(parent, preload_imports=["restless"]))
        parent.derive().close()
        assert (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("after_in_child=lambda: os._exit(7)", "exit code 7"),
        ("after_in_child=lambda: os.kill(os.getpid(), 9)", "signal 9"),
    ],
)
def test_a_fork_hook_of_the_parents_that_ends_the_clone_is_a_clear_error(make_module, hook, said):
    make_module("hooked", f"import os\nos.register_at_fork({hook})")
    with pyspawner.Client(child_main="support.run_source", preload_imports=["hooked"]) as parent:
        assert said in str(derive_fails(parent))


def test_a_fork_hook_of_the_parents_that_starts_a_thread_in_the_clone_is_left_behind_or_named(make_module):
    make_module(
        "starter",
        """
        import os, threading
        def start():
            if len(STARTED) < 1:
                STARTED.append(1)
                threading.Thread(target=threading.Event().wait, daemon=True).start()
        STARTED = []
        os.register_at_fork(after_in_child=start)
        """,
    )
    with (
        pyspawner.Client(child_main="support.run_source", preload_imports=["starter"]) as parent,
        parent.derive() as derived,
    ):
        assert run(derived, "import os; print(len(os.listdir('/proc/self/task')))").text == "1\n"


def test_a_signal_handler_that_raises_ends_a_derivation_that_hangs(make_module):
    make_module("sleeper", "import threading; threading.Event().wait()")
    with pyspawner.Client(child_main="support.run_source") as parent:
        before = children_of_this_process()

        def interrupt_when_it_runs() -> None:
            wait_until(
                lambda: len(children_of_this_process()) == len(before) + 2, "the clone and its watchdog"
            )
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt_when_it_runs)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            parent.derive(preload_imports=["sleeper"])
        thread.join()
        assert children_of_this_process() == before
        assert run(parent, "print('works')").text == "works\n"


@pytest.mark.parametrize("then", ["spawn", "derive", "close"])
def test_a_clone_that_was_given_up_before_it_was_there_is_gone_later(then):
    with pyspawner.Client(child_main="support.run_source") as parent:
        before = children_of_this_process()
        os.kill(parent.zygote_pid, signal.SIGSTOP)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            parent.derive()
        timer.join()
        os.kill(parent.zygote_pid, signal.SIGCONT)
        if then == "spawn":
            run(parent, "")
        if then == "derive":
            parent.derive().close()
        if then != "close":
            assert children_of_this_process() == before


def test_the_death_of_the_parent_before_a_derivation_is_its_own_error():
    with pyspawner.Client(child_main="support.run_source") as parent:
        kill(parent.zygote_pid)
        with pytest.raises(pyspawner.ZygoteDiedError):
            parent.derive()


def test_the_death_of_the_parent_in_the_middle_of_a_derivation_is_noticed():
    with pyspawner.Client(child_main="support.run_source") as parent:
        os.kill(parent.zygote_pid, signal.SIGSTOP)
        killer = threading.Timer(0.1, os.kill, (parent.zygote_pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(pyspawner.ZygoteDiedError):
            parent.derive()
        killer.join()


def test_a_parent_that_restarts_is_started_for_a_derivation_too():
    with pyspawner.Client(child_main="support.run_source", restart=True) as parent:
        kill(parent.zygote_pid)
        with parent.derive() as derived:
            assert run(derived, "print('works')").text == "works\n"


def test_many_threads_derive_and_spawn_at_once(parent):
    def derive(number: int) -> str:
        with parent.derive(preload_imports=["wave"]) as derived:
            return (
                run(derived, "print(number)", number=number).text
                + run(parent, "print(number)", number=number).text
            )

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(derive, range(18))) == [f"{number}\n{number}\n" for number in range(18)]


def test_a_closed_client_derives_none():
    client = pyspawner.Client(child_main="support.run_source")
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.derive()


def test_its_start_is_told(parent):
    seen: list[events.Event] = []
    with parent.derive(on_event=seen.append) as derived:
        [started] = seen
        assert isinstance(started, events.ZygoteStarted)
        assert (started.pid, started.restarts, started.cause) == (derived.zygote_pid, 0, "start")


# How it lives and ends. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["parent", "derived"])
def test_the_end_of_one_is_not_the_end_of_the_other(first):
    parent = pyspawner.Client(child_main="support.run_source")
    derived = parent.derive()
    closed, open_one = (parent, derived) if first == "parent" else (derived, parent)
    child = spawn(closed, "print(input())")
    closed.close()
    assert run(open_one, "print('works')").text == "works\n"
    with open_one.derive() as another:
        assert run(another, "print('works')").text == "works\n"
    open_one.close()
    assert communicate(child, b"still here\n").text == "still here\n"


@pytest.mark.parametrize("which", ["zygote", "watchdog"])
def test_the_death_of_the_parents_processes_harms_no_derived_zygote(which):
    with pyspawner.Client(child_main="support.run_source") as parent, parent.derive() as derived:
        kill(parent.zygote_pid if which == "zygote" else watchdog(parent))
        assert run(derived, "print('works')").text == "works\n"


def test_the_death_of_a_derived_zygote_harms_no_parent(parent):
    with parent.derive() as derived:
        kill(derived.zygote_pid)
        with pytest.raises(pyspawner.ZygoteDiedError):
            run(derived, "")
        assert run(parent, "print('works')").text == "works\n"


@pytest.mark.parametrize("parent_is_closed", [False, True])
def test_a_new_one_in_its_place_imports_all_that_both_have(make_module, parent_is_closed):
    make_module("first_module", "")
    with pyspawner.Client(child_main="support.run_source", preload_imports=["first_module"]) as parent:
        derived = parent.derive(child_main="builtins.exec", preload_imports=["wave"], restart=True)
        if parent_is_closed:
            parent.close()
        kill(derived.zygote_pid)
        look = "import sys; print([name in sys.modules for name in ('first_module', 'support', 'wave')])"
        child = derived.spawn_child([look], sandbox_config=SANDBOX)
        assert child.communicate(timeout=60).check().stdout == b"[True, True, True]\n"
        derived.close()


def test_the_processes_are_children_of_the_caller_and_lead_sessions_of_their_own(parent):
    with parent.derive() as derived:
        assert {derived.zygote_pid, watchdog(derived)} <= children_of_this_process()
        assert os.getsid(derived.zygote_pid) == derived.zygote_pid
        line = Path(f"/proc/{derived.zygote_pid}/cmdline").read_bytes()
        assert line == b"pyspawner: zygote\0"
        assert Path(f"/proc/{watchdog(derived)}/cmdline").read_bytes() == b"pyspawner: watchdog\0"


def test_it_holds_no_descriptor_of_the_parents(parent):
    def held(pid: int) -> list[str]:
        kinds = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
        # What the kernel tells of a process's own memory is named by its pid.
        return sorted(kind.partition(":")[0].replace(f"/{pid}/", "/PID/") for kind in kinds)

    with parent.derive() as derived, derived.derive() as again:
        for look in (lambda client: client.zygote_pid, watchdog):
            # A watchdog that has not run yet has what its zygote had.
            wait_until(
                lambda look=look: held(look(again)) == held(look(derived)) == held(look(parent)),
                "the same descriptors",
            )


CALLER = """
import pyspawner, sys
from support import *
with pyspawner.Client(child_main="support.run_source") as parent:
    derived = parent.derive()
child = spawn(derived, "import threading; threading.Event().wait()")
print(derived.zygote_pid, derived._zygotes.current.watchdog_pid, child.pid, flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_children_of_a_derived_zygote_die_with_their_caller():
    program = f"import sys; sys.path[:] = {sys.path!r}\n{CALLER}"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as caller:
        assert caller.stdout is not None
        pids = [int(pid) for pid in caller.stdout.readline().split()]
        assert len(pids) == 3
        caller.communicate()
    wait_until(lambda: not any(map(is_alive, pids)), "the end of all")


def test_a_cpu_budget_is_enforced_in_children_of_a_derived_zygote(parent):
    limited = pyspawner.SandboxConfig(limits=pyspawner.Limits(cpu_seconds=0.2))
    with parent.derive() as derived:
        completed = spawn(derived, "while True: pass", sandbox=limited).communicate(timeout=60)
    assert completed.cause is pyspawner.Cause.CPU_TIME


def test_where_no_sandbox_is_possible_a_derived_zygote_says_the_same_as_its_parent():
    """Without CAP_SYS_ADMIN the zygote has never left the host's view."""
    source = """
    with client.derive(preload_imports=["wave"]) as derived:
        for each in (client, derived):
            try:
                run(each, "")
            except pyspawner.SandboxError as error:
                print(error)
    """
    said = run_caller(
        source, wrapper=["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"]
    ).splitlines()
    assert len(said) == 2
    assert said[0] == said[1]
