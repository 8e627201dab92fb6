"""A caller with threads, an event loop, a SIGCHLD handler, several Clients."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import pyspawner
from support import communicate, run, spawn


def test_many_threads_may_spawn_at_once(client):
    def work(number: int) -> bool:
        return run(client, f"print({number})").text == f"{number}\n"

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(64)))


def test_several_clients_live_in_one_process():
    environments = [{"NAME": str(number)} for number in range(4)]
    clients = [pyspawner.Client(child_main="support.run_source", environment=each) for each in environments]
    source = "import os; print(os.environ['NAME'])"
    children = [spawn(client, source) for client in clients + clients[::-1]]
    assert [communicate(child).text for child in children] == [f"{n}\n" for n in (0, 1, 2, 3, 3, 2, 1, 0)]
    clients[1].close()
    assert run(clients[2], source).text == "2\n"
    for client in clients:
        client.close()


def test_clients_may_start_at_once_from_many_threads():
    """Two of them with threads to leave behind: being a child subreaper is a property of the whole process."""

    def start(module: str) -> str:
        with pyspawner.Client(child_main="support.run_source", preload_imports=[module]) as client:
            return run(client, "import os; print(os.getpid())").text

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, ["pandas", "json", "pandas", "json"])) == ["1\n"] * 4


def test_being_a_child_subreaper_is_undone_and_an_earlier_setting_kept(client):
    import ctypes

    libc, get, put = ctypes.CDLL(None), 37, 36
    flag = ctypes.c_int()
    for before in (0, 1, 0):
        libc.prctl(put, before, 0, 0, 0)
        with pyspawner.Client(child_main="support.run_source", preload_imports=["pandas"]):
            libc.prctl(get, ctypes.byref(flag), 0, 0, 0)
        assert flag.value == before


def test_under_asyncio_with_subprocesses_of_its_own(client):
    async def child(number: int) -> bytes:
        child = await asyncio.to_thread(spawn, client, f"print({number})")
        return (await asyncio.to_thread(communicate, child)).stdout

    async def program() -> bytes:
        process = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0]

    async def main() -> list[bytes]:
        return await asyncio.gather(*[work for number in range(8) for work in (child(number), program())])

    assert asyncio.run(main()) == [text for number in range(8) for text in (b"%d\n" % number, b"hi\n")]


def test_a_pipe_works_with_the_event_loops_own_readers(client):
    async def main() -> bytes:
        child = spawn(client, "print('line'); print('more')")
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), child.stdout
        )
        output = await reader.read()
        transport.close()
        child.stdin.close()
        child.stderr.close()
        child.wait()
        return output

    assert asyncio.run(main()) == b"line\nmore\n"


def test_a_sigchld_handler_of_the_callers_hears_of_each_child(client):
    heard = threading.Event()
    previous = signal.signal(signal.SIGCHLD, lambda *_: heard.set())
    try:
        child = spawn(client, "raise SystemExit(5)")
        assert heard.wait(30)
        assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
        assert communicate(child).exitcode == 5
    finally:
        signal.signal(signal.SIGCHLD, previous)


def test_a_sigchld_handler_that_reaps_everything_breaks_nothing_but_its_own_wait():
    reaped: set[int] = set()

    def reap(*_: object) -> None:
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                reaped.add(pid)
        except ChildProcessError:
            pass

    previous = signal.signal(signal.SIGCHLD, reap)
    try:
        with pyspawner.Client(child_main="support.run_source", preload_imports=["pandas"]) as client:
            child = spawn(client, "print('output')")
            with child.stdin, child.stdout, child.stderr:
                assert child.stdout.read() == b"output\n"
            while child.pid not in reaped:
                signal.sigtimedwait([], 0.01)
            with pytest.raises(ChildProcessError):
                child.wait()
    finally:
        signal.signal(signal.SIGCHLD, previous)


def test_an_ignored_sigchld_breaks_nothing_but_the_callers_wait():
    """The kernel then reaps by itself; signal(7)."""
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pyspawner.Client(child_main="support.run_source") as client:
            child = spawn(client, "print('output')")
            with child.stdin, child.stdout, child.stderr:
                assert child.stdout.read() == b"output\n"
            with pytest.raises(ChildProcessError):
                child.wait()
    finally:
        signal.signal(signal.SIGCHLD, previous)


def test_what_the_caller_ignores_or_blocks_is_not_inherited():
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGALRM})
    try:
        client = pyspawner.Client(child_main="support.run_source")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, previous)
    source = """
        import signal, subprocess
        print(subprocess.run(["/bin/sh", "-c", "exit 7"]).returncode)
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGCHLD))
        """
    with client:
        assert run(client, source).text == "7\nset() 0\n"


def test_a_signal_handler_that_raises_gives_a_spawn_up_and_leaves_nothing(client):
    class Alarm(Exception):
        pass

    def raise_alarm(*_: object) -> None:
        raise Alarm

    os.kill(client.zygote_pid, signal.SIGSTOP)
    previous = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            spawn(client, "print('never')")
    finally:
        signal.signal(signal.SIGALRM, previous)
        os.kill(client.zygote_pid, signal.SIGCONT)
    # The zygote clones the child that nobody waits for; the next request ends and reaps it.
    assert run(client, "print('next')").text == "next\n"


def test_close_while_others_spawn_answers_each_with_a_child_or_an_error():
    client = pyspawner.Client(child_main="support.run_source")
    started = threading.Barrier(5)
    outcomes: list[str] = []

    def work() -> None:
        started.wait()
        try:
            while True:
                outcomes.append(run(client, "print('x')").text)
        except (RuntimeError, pyspawner.ZygoteDiedError) as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    while not outcomes:
        pass
    client.close()
    for thread in threads:
        thread.join()
    errors = [outcome for outcome in outcomes if outcome != "x\n"]
    assert len(errors) == 4
    assert all("closed" in error for error in errors), errors
