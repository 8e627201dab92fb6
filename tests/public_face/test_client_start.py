"""The constructor: what the zygote imports, with which interpreter, and what a person is told when it cannot."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import pyspawner
from support import children_of_this_process, run


def start_fails(**options) -> pyspawner.ZygoteStartError:
    before = children_of_this_process()
    with pytest.raises(pyspawner.ZygoteStartError) as caught:
        pyspawner.Client(**{"child_main": "support.run_source", **options})
    assert children_of_this_process() == before, "a process is left"
    return caught.value


def test_preloaded_modules_are_in_every_child_and_their_code_runs_once(make_module):
    make_module("preloaded", "import os\nPID = os.getpid()")
    with pyspawner.Client(child_main="support.run_source", preload_imports=["preloaded", "wave"]) as client:
        source = "import sys; print('wave' in sys.modules, sys.modules['preloaded'].PID)"
        first, second = run(client, source).text, run(client, source).text
    assert first == second
    assert first.startswith("True ")


def test_child_main_is_called_with_the_args(make_module):
    make_module("mains", "def add(a, b=0): print(a + b)")
    with pyspawner.Client(child_main="mains.add") as client:
        child = client.spawn_child([40, 2], sandbox_config=pyspawner.SandboxConfig())
        with child.stdin, child.stdout, child.stderr:
            assert (child.stdout.read(), child.stderr.read()) == (b"42\n", b"")
        child.wait()


def test_child_main_may_live_in_a_package(make_module, tmp_path):
    package = tmp_path / "outer" / "inner"
    package.mkdir(parents=True)
    for directory in (package, package.parent):
        (directory / "__init__.py").touch()
    (package / "deep.py").write_text("def main(): print(__name__)")
    with pyspawner.Client(child_main="outer.inner.deep.main") as client:
        child = client.spawn_child(sandbox_config=pyspawner.SandboxConfig())
        with child.stdin, child.stdout, child.stderr:
            assert child.stdout.read() == b"outer.inner.deep\n"
        child.wait()


def test_with_the_callers_interpreter_the_zygote_has_the_callers_search_path(client):
    assert run(client, "import sys; print(sys.path)").text == f"{sys.path}\n"


def test_a_missing_module_is_named_with_the_zygotes_traceback():
    error = start_fails(preload_imports=["json", "no_such_module"])
    assert "cannot import 'no_such_module' of preload_imports" in str(error)
    assert "ModuleNotFoundError: No module named 'no_such_module'" in str(error)
    assert error.traceback is not None
    assert "Traceback (most recent call last)" in error.traceback


def test_a_module_that_raises_is_named_with_its_own_line(make_module):
    make_module("broken", "def f():\n    raise RuntimeError('the reason')\nf()")
    error = start_fails(preload_imports=["broken"])
    assert "RuntimeError: the reason" in str(error)
    assert error.traceback is not None
    assert "broken.py" in error.traceback


@pytest.mark.parametrize("error", ["ValueError(chr(0xdc80))", "type('E', (Exception,), {'__str__': None})()"])
def test_a_message_that_is_no_text_is_no_obstacle(make_module, error):
    make_module("odd", f"raise {error}")
    assert "cannot import 'odd'" in str(start_fails(preload_imports=["odd"]))


def test_a_long_message_keeps_its_beginning_and_a_long_traceback_its_end(make_module):
    make_module("long", "raise ValueError('ä' * 200_000 + 'end')")
    error = start_fails(preload_imports=["long"])
    assert str(error).startswith("cannot import 'long' of preload_imports: ValueError: ä")
    assert error.traceback is not None
    assert error.traceback.rstrip().endswith("end")


def test_a_module_that_closes_every_descriptor_and_lives_on_is_ended(make_module):
    make_module("closer", "import os, threading; os.closerange(3, 1000); threading.Event().wait()")
    assert '"closer"' in str(start_fails(preload_imports=["closer"]))


def test_a_module_beside_the_package_does_not_shadow_the_standard_library(tmp_path, monkeypatch):
    """The zygote finds what the caller finds, from its first line on."""
    (tmp_path / "pyspawner").symlink_to(Path(pyspawner.__file__).parent)
    (tmp_path / "dataclasses.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.setattr(
        sys.modules["pyspawner._client"], "__file__", str(tmp_path / "pyspawner" / "_client.py")
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    pyspawner.Client(child_main="support.run_source").close()


def test_a_fork_hook_that_starts_a_thread_in_the_serving_zygote_stops_the_next_spawn(make_module):
    make_module(
        "restarter",
        """
        import os, threading
        def start():
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        os.register_at_fork(after_in_parent=start)
        """,
    )
    with pyspawner.Client(child_main="support.run_source", preload_imports=["restarter"]) as client:
        assert run(client, "print('first')").text == "first\n"
        with pytest.raises(pyspawner.SandboxError, match="fork hook"):
            run(client, "print('second')")


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt()"])
def test_a_module_that_ends_the_interpreter_is_named_too(make_module, error):
    make_module("leaver", f"raise {error}")
    assert "cannot import 'leaver'" in str(start_fails(preload_imports=["leaver"]))


def test_a_module_that_kills_the_zygote_is_named_with_the_signal(make_module):
    make_module("killer", "import os; os.kill(os.getpid(), 9)")
    message = str(start_fails(preload_imports=["killer"]))
    assert '"killer"' in message
    assert "signal 9" in message


def test_a_module_that_leaves_by_the_back_door_is_named_with_the_exit_code(make_module):
    make_module("quitter", "import os; os._exit(7)")
    message = str(start_fails(preload_imports=["quitter"]))
    assert '"quitter"' in message
    assert "exit code 7" in message


@pytest.mark.parametrize(
    ("child_main", "reason"),
    [
        ("no_such_module.main", "No module named 'no_such_module'"),
        ("support.no_such_function", "has no attribute 'no_such_function'"),
        ("support.SANDBOX", "SandboxConfig, which cannot be called"),
    ],
)
def test_a_child_main_that_is_no_function_is_said(child_main, reason):
    message = str(start_fails(child_main=child_main))
    assert f"child_main {child_main!r} is not usable" in message
    assert reason in message


@pytest.mark.parametrize("child_main", ["main", "", ".main", "main."])
def test_a_child_main_without_a_module_is_bad_input(child_main):
    with pytest.raises(ValueError, match=r"package\.module\.function"):
        pyspawner.Client(child_main=child_main)


def test_a_string_in_place_of_a_list_of_modules_is_bad_input():
    with pytest.raises(TypeError, match="list of module names"):
        pyspawner.Client(child_main="support.run_source", preload_imports="pandas")


@pytest.mark.parametrize("executable", ["/no/such/python", "no-such-python", "/", "/etc/passwd"])
def test_an_executable_that_cannot_run_is_said(executable):
    error = start_fails(executable=executable)
    assert "cannot run the executable" in str(error)
    assert executable in str(error)


@pytest.mark.parametrize("executable", ["/bin/true", "/bin/false"])
def test_an_executable_that_is_no_python_is_said(executable):
    assert "is it a Python, and is pyspawner installed in it?" in str(start_fails(executable=executable))


def make_virtual_environment(directory: Path, *, with_pyspawner: bool) -> str:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    if with_pyspawner:
        site_packages = next(directory.glob("lib/python*/site-packages"))
        (site_packages / "pyspawner.pth").write_text(str(Path(pyspawner.__file__).parent.parent))
    return str(directory / "bin" / "python")


def test_a_python_without_pyspawner_is_said_in_its_own_words(tmp_path):
    error = start_fails(executable=make_virtual_environment(tmp_path / "bare", with_pyspawner=False))
    assert "is pyspawner installed in it?" in str(error)
    assert "No module named 'pyspawner'" in str(error)


def test_another_interpreter_has_its_own_search_path_and_the_working_directory(tmp_path, monkeypatch):
    executable = make_virtual_environment(tmp_path / "other", with_pyspawner=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_here.py").write_text(
        "import sys\ndef main(): print(sys.prefix, '', *sys.path, sep='\\n')"
    )
    with pyspawner.Client(child_main="only_here.main", executable=executable) as client:
        child = client.spawn_child(sandbox_config=pyspawner.SandboxConfig())
        with child.stdin, child.stdout, child.stderr:
            prefix, _, *path = child.stdout.read().decode().splitlines()
            assert child.stderr.read() == b""
        child.wait()
    assert prefix == str(tmp_path / "other")
    assert str(tmp_path) in path
    assert not set(sys.path[1:]) & {entry for entry in path if "site-packages" in entry}


def test_the_zygote_does_not_see_the_working_directory_with_the_callers_interpreter(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with pyspawner.Client(child_main="support.run_source", preload_imports=["json"]) as client:
        assert run(client, "print(1)").text == "1\n"


def test_what_a_module_prints_at_import_goes_to_the_callers_output(make_module, capfd):
    make_module("talker", "import sys; print('to stdout'); print('to stderr', file=sys.stderr)")
    with pyspawner.Client(child_main="support.run_source", preload_imports=["talker"]):
        pass
    assert capfd.readouterr() == ("to stdout\n", "to stderr\n")


def test_a_signal_handler_that_raises_ends_a_start_that_hangs(make_module):
    make_module("sleeper", "import threading; threading.Event().wait()")
    before = children_of_this_process()

    def interrupt_when_it_runs() -> None:
        while len(children_of_this_process()) < len(before) + 2:  # The zygote and its watchdog.
            time.sleep(0.01)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt_when_it_runs)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pyspawner.Client(child_main="support.run_source", preload_imports=["sleeper"])
    thread.join()
    assert children_of_this_process() == before


def test_start_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(start_fails(preload_imports=["no_such_module"])))
    assert "no_such_module" in str(error)
    assert "Traceback" in error.traceback


def test_a_closed_client_says_so_and_closes_twice():
    client = pyspawner.Client(child_main="support.run_source")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.spawn_child(sandbox_config=pyspawner.SandboxConfig())


def test_a_client_that_is_forgotten_closes_itself_and_warns():
    before = children_of_this_process()
    client = pyspawner.Client(child_main="support.run_source")
    with pytest.warns(ResourceWarning, match="unclosed"):
        del client
    assert children_of_this_process() == before


def test_the_repr_names_the_zygote(client):
    assert repr(client) == f"<Client: zygote pid {client.zygote_pid}>"


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("after_in_child=lambda: os._exit(7)", "exit code 7"),
        ("after_in_child=lambda: os.kill(os.getpid(), 9)", "signal 9"),
        ("before=lambda: os._exit(5)", "exit code 5"),
        (
            "after_in_child=lambda: threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "threads",
        ),
    ],
)
def test_a_module_whose_fork_hook_breaks_the_hand_over_is_a_clear_error(make_module, hook, said):
    """The zygote forks when imports have left threads behind; see the page on threads."""
    make_module(
        "hooked",
        f"""
        import os, threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        os.register_at_fork({hook})
        """,
    )
    assert said in str(start_fails(preload_imports=["hooked"]))
