"""stdin, stdout and stderr are pipes, descriptors 0, 1 and 2, and the only open ones."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

import pyspawner
from support import communicate, run, spawn


def test_the_streams_are_descriptors_0_1_2_and_so_are_their_twins(client):
    source = """
        import os, sys
        streams = [sys.stdin, sys.stdout, sys.stderr]
        twins = [sys.__stdin__, sys.__stdout__, sys.__stderr__]
        print([stream.fileno() for stream in streams], streams == twins)
        print([os.stat(number).st_mode >> 12 == 0o01 for number in range(3)])
        print([sys.stdin.readable(), sys.stdout.writable(), sys.stderr.writable()])
        """
    assert run(client, source).text == "[0, 1, 2] True\n[True, True, True]\n[True, True, True]\n"


def test_stdin_arrives_and_ends(client):
    source = "import sys; print(repr(sys.stdin.read()), sys.stdin.buffer.read(), __import__('os').read(0, 1))"
    assert run(client, source, stdin="ä\nb".encode()).text == "'ä\\nb' b'' b''\n"


def test_input_reads_a_line(client):
    assert run(client, "print(input() + input())", stdin=b"a\nb\n").text == "ab\n"


def test_output_is_unbuffered_as_with_python_u(client):
    child = spawn(
        client, "import sys; sys.stdout.write('no newline'); sys.stderr.write('nor here'); sys.stdin.read()"
    )
    # The child still runs, and has flushed nothing by itself.
    assert child.stdout.read(10) == b"no newline"
    assert child.stderr.read(8) == b"nor here"
    assert communicate(child).exitcode == 0


@pytest.mark.parametrize("replacement", ["open('/dev/null', 'w')", "__import__('io').StringIO()", "None"])
def test_a_module_that_replaces_the_streams_does_not_replace_the_childs(tmp_path, monkeypatch, replacement):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "replacer.py").write_text(
        f"import sys\nsys.stdout = sys.stderr = {replacement}\nsys.__stdout__ = sys.__stderr__ = sys.stdin = None"
    )
    with pyspawner.Client(child_main="support.run_source", preload_imports=["replacer"]) as client:
        outcome = run(client, "import sys; print(sys.stdin.read()); sys.__stderr__.write('err')", stdin=b"in")
    assert (outcome.stdout, outcome.stderr) == (b"in\n", b"err")


def test_no_other_descriptor_is_open_to_the_last_number(client):
    with open(os.devnull) as inheritable:
        os.set_inheritable(inheritable.fileno(), True)
        high = fcntl.fcntl(inheritable, fcntl.F_DUPFD, 900)
        try:
            source = """
                import os, resource
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
                def is_open(number):
                    try:
                        os.fstat(number)
                        return True
                    except OSError:
                        return False
                print([number for number in range(min(limit, 1 << 20)) if is_open(number)])
                print(sorted(set(map(int, os.listdir("/proc/self/fd"))) - {3}))
                """
            assert run(client, source).text == "[0, 1, 2]\n[0, 1, 2]\n"
            with pyspawner.Client(child_main="support.run_source") as late:
                assert run(late, source).text == "[0, 1, 2]\n[0, 1, 2]\n"
        finally:
            os.close(high)


def test_the_callers_ends_are_close_on_exec(client):
    child = spawn(client, "")
    assert not any(os.get_inheritable(pipe.fileno()) for pipe in (child.stdin, child.stdout, child.stderr))
    # As a program that the caller starts meanwhile sees it.
    listing = [
        sys.executable,
        "-c",
        "import os, json; print(json.dumps([*map(os.readlink, ['/proc/self/fd/%s' % n for n in (0, 1, 2)])]))",
    ]
    inherited = json.loads(
        subprocess.run(listing, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    )
    assert os.readlink(f"/proc/self/fd/{child.stdout.fileno()}") not in inherited
    communicate(child)


def test_no_child_holds_another_childs_pipes(client):
    """Else the end of file would come only when both have ended."""
    first = spawn(client, "")
    second = spawn(client, "import sys; sys.stdin.read()")
    assert (first.stdout.read(), first.stderr.read()) == (b"", b"")  # Returns while the second runs.
    communicate(second)
    communicate(first)


@pytest.mark.parametrize("names", [(), ("none of the layers",)], ids=["all layers", "no optional layer"])
def test_the_streams_can_be_opened_by_name(client, names):
    source = """
        open("/dev/stdout", "w").write(open("/dev/stdin").read())
        open("/proc/self/fd/2", "w").write("err")
        """
    config = pyspawner.SandboxConfig(skip_sandbox_except=frozenset(names))
    outcome = run(client, source, stdin=b"in", sandbox=config)
    assert (outcome.stdout, outcome.stderr, outcome.exitcode) == (b"in", b"err", 0)


def test_a_closed_stdout_gives_the_reader_its_end_before_the_child_ends(client):
    child = spawn(client, "import os, sys; os.close(1); sys.stdin.read()")
    assert child.stdout.read() == b""
    assert child.wait(os.WNOHANG) == (0, 0)
    communicate(child)


def test_a_reader_that_is_gone_is_a_broken_pipe_in_the_child(client):
    child = spawn(client, "import sys; sys.stdin.read(); print('x')")
    child.stdout.close()
    child.stdin.close()
    with child.stderr:
        assert b"BrokenPipeError" in child.stderr.read()
    assert os.waitstatus_to_exitcode(child.wait()[1]) == 1


def test_two_megabytes_both_ways_at_once(client):
    source = "import sys; sys.stderr.write('e' * 2**21); sys.stdout.write(sys.stdin.read())"
    outcome = run(client, source, stdin=b"x" * 2**21)
    assert (len(outcome.stdout), len(outcome.stderr)) == (2**21, 2**21)


def test_a_caller_without_standard_streams_can_spawn():
    """A daemon that has closed 0, 1 and 2: the child's pipes may then get these very numbers in the caller."""
    script = """
import os, sys, pyspawner
sys.path.insert(0, sys.argv[1])
report = os.dup(1)
for number in range(3):
    os.close(number)
with pyspawner.Client(child_main="support.run_source") as client:
    child = client.spawn_child(["import sys; print('out'); print('err', file=sys.stderr)", {}], sandbox_config=pyspawner.SandboxConfig())
    child.stdin.close()
    os.write(report, child.stdout.read() + child.stderr.read() + str(child.wait()[1]).encode())
"""
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", script, tests], capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (b"out\nerr\n0", b"")


def test_threads_of_the_caller_may_read_the_pipes_while_others_spawn(client):
    results = []

    def work(number: int) -> None:
        results.append(run(client, f"print({number} * 2)").text == f"{number * 2}\n")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
