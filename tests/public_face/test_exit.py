"""How a child ends: exit codes, tracebacks, threads, exit handlers, and output that is not lost."""

from __future__ import annotations

import re
import signal
import textwrap

import pytest

import pyspawner
import support
from support import Outcome, communicate, run, spawn


def ended(code: int, stdout: bytes = b"", stderr: bytes = b"") -> Outcome:
    return Outcome(stdout, stderr, code << 8)


def test_return_gives_0(client):
    assert run(client, "pass").exitcode == 0


def test_an_exception_gives_1_and_a_traceback_that_begins_with_the_users_code(client):
    outcome = run(client, "def f():\n    raise ValueError('no')\nf()")
    assert outcome.exitcode == 1
    lines = outcome.stderr.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: no"
    # Whatever the directory is called that this lies in.
    files = re.findall(r'^  File "(.*)", line', outcome.stderr.decode(), re.MULTILINE)
    assert files == [support.__file__, "<child>", "<child>"], "the traceback shows our own frames"


def test_a_custom_excepthook_is_used(client):
    source = "import sys; sys.excepthook = lambda *error: print('hook:', error[1]); 1 / 0"
    assert run(client, source) == ended(1, b"hook: division by zero\n")


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        ("SystemExit", 0, b""),
        ("SystemExit(None)", 0, b""),
        ("SystemExit(0)", 0, b""),
        ("SystemExit(3)", 3, b""),
        ("SystemExit(True)", 1, b""),
        ("SystemExit(256 + 7)", 7, b""),
        ("SystemExit(-1)", 255, b""),
        ("SystemExit('a reason')", 1, b"a reason\n"),
        ("SystemExit((1, 2))", 1, b"(1, 2)\n"),
        ("SystemExit(1.5)", 1, b"1.5\n"),
        ("SystemExit([])", 1, b"[]\n"),
    ],
)
def test_system_exit_gives_its_code_as_python_does(client, error, code, stderr):
    outcome = run(client, f"raise {error}")
    assert (outcome.exitcode, outcome.stderr) == (code, stderr)


@pytest.mark.parametrize("error", ["KeyboardInterrupt()", "BaseException('base')", "GeneratorExit()"])
def test_other_base_exceptions_give_1(client, error):
    outcome = run(client, f"raise {error}")
    assert outcome.exitcode == 1
    assert error.partition("(")[0].encode() in outcome.stderr


def test_os_exit_gives_its_code_at_once(client):
    assert run(client, "import atexit, os; atexit.register(print, 'no'); os._exit(9)") == ended(9)


def test_non_daemon_threads_are_joined_first(client):
    source = """
        import threading
        def work():
            gate.wait()
            print("thread")
        gate = threading.Event()
        threading.Thread(target=work).start()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        print("main")
        gate.set()
        """
    assert run(client, source).text == "main\nthread\n"


def test_exit_handlers_of_the_child_run_after_its_threads(client):
    source = """
        import atexit, threading
        atexit.register(print, "handler")
        threading.Thread(target=print, args=("thread",)).start()
        """
    assert run(client, source).text == "thread\nhandler\n"


def test_an_executors_workers_finish_their_work(client):
    source = """
        from concurrent.futures import ThreadPoolExecutor
        import threading
        gate = threading.Event()
        ThreadPoolExecutor().submit(lambda: (gate.wait(), print("done")))
        gate.set()
        """
    assert run(client, source).text == "done\n"


def test_exit_handlers_of_the_zygotes_modules_do_not_run_in_a_child(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registrar.py").write_text("import atexit; atexit.register(print, 'handler of the zygote')")
    with pyspawner.Client(child_main="support.run_source", preload_imports=["registrar"]) as client:
        assert run(client, "print('child')").text == "child\n"
    capfd.readouterr()


def test_handlers_of_logging_are_flushed_though_logging_was_preloaded():
    source = """
        import logging, logging.handlers, sys
        target = logging.StreamHandler(sys.stdout)
        logging.getLogger().addHandler(logging.handlers.MemoryHandler(100, target=target))
        logging.warning("kept until the end")
        """
    with pyspawner.Client(child_main="support.run_source", preload_imports=["logging.handlers"]) as client:
        assert run(client, source).text == "kept until the end\n"


def test_processes_of_multiprocessing_are_joined_though_it_was_preloaded():
    source = """
        import multiprocessing, os
        reader, writer = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=lambda: (os.read(reader, 1), print("process")))
        process.start()
        os.write(writer, b"x")
        """
    with pyspawner.Client(
        child_main="support.run_source", preload_imports=["multiprocessing.process", "multiprocessing.util"]
    ) as client:
        assert run(client, source).text == "process\n"


def test_finalizers_of_the_child_run_and_those_of_the_zygote_do_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "finalizing.py").write_text(
        "import weakref\nclass C: pass\nkept = C()\nweakref.finalize(kept, print, 'the zygote')"
    )
    source = "import weakref, finalizing; weakref.finalize(finalizing.kept, print, 'the child')"
    with pyspawner.Client(child_main="support.run_source", preload_imports=["finalizing"]) as client:
        assert run(client, source).text == "the child\n"


def test_an_exit_handler_that_raises_is_shown(client):
    outcome = run(client, "import atexit; atexit.register(lambda: 1 / 0)")
    assert b"ZeroDivisionError" in outcome.stderr


def test_a_buffered_stream_of_the_users_own_is_flushed(client):
    source = """
        import io, sys
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False), 1 << 16))
        print("buffered")
        """
    assert run(client, source).text == "buffered\n"


@pytest.mark.parametrize(
    "stream", ["sys.stdout.close()", "sys.stdout = None", "del sys.stdout", "os.close(1)"]
)
def test_a_child_that_breaks_its_streams_still_ends_well(client, stream):
    assert run(client, f"import os, sys; print('before'); {stream}") == ended(0, b"before\n")


@pytest.mark.parametrize(
    ("crash", "signals"),
    [
        ("ctypes.string_at(0)", {signal.SIGSEGV}),
        ("os.kill(os.getpid(), signal.SIGKILL) or os.abort()", {signal.SIGABRT, signal.SIGSEGV}),
        ("os._exit(5)", set()),
    ],
)
def test_output_written_before_a_crash_is_not_lost(client, crash, signals):
    outcome = run(
        client,
        f"import ctypes, os, signal; print('before'); print(1, file=__import__('sys').stderr); {crash}",
    )
    assert (outcome.stdout, outcome.stderr) == (b"before\n", b"1\n")
    assert outcome.exitcode == 5 if not signals else -outcome.exitcode in signals


def test_a_stuck_exit_handler_can_be_killed(client):
    child = spawn(client, "import atexit, threading; atexit.register(threading.Event().wait); print('ready')")
    assert child.stdout.readline() == b"ready\n"
    child.kill()
    assert communicate(child).exitcode == -signal.SIGKILL


def test_daemons_of_the_child_die_with_it(client):
    """It is pid 1 of its namespace: the pipes' end of file comes although a daemon still holds them."""
    source = textwrap.dedent("""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(3600)
            os._exit(0)
        os.wait()
        print("parent")
        """)
    assert run(client, source).text == "parent\n"
