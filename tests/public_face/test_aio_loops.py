"""``pyspawner.aio``: a thousand children of one loop, what else its program does, and other loops."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

import pyspawner
from aio_support import ECHO, HANG, LOOPS, held, in_every_loop, run_main, spawn, turns
from pyspawner import Cause, aio, events
from support import run_caller


@pytest.fixture
def many_descriptors():
    """Each child has four of the caller's."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 5000), max(before[1], 5000)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_descriptors")
@in_every_loop
async def test_a_thousand_children_at_once_without_a_thread_each(client):
    children = await asyncio.gather(*(spawn(client, ECHO) for _ in range(1000)))
    threads = threading.active_count()
    outcomes = await asyncio.gather(
        *(child.communicate(b"%d" % number) for number, child in enumerate(children))
    )
    assert [int(outcome.stdout) for outcome in outcomes] == list(range(1000))
    assert threading.active_count() == threads < 30


@in_every_loop
async def test_other_tasks_run_while_one_waits(client):
    for wait in ("communicate", "wait"):
        child = await spawn(client, HANG)
        waiting = asyncio.ensure_future(getattr(child, wait)())
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not waiting.done()
        child.kill()
        await waiting


@in_every_loop
async def test_a_spawn_does_not_wait_for_what_blocks_in_the_default_executor(client):
    loop, let_go = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    blocked = [loop.run_in_executor(None, let_go.wait) for _ in range(10)]
    try:
        child = await asyncio.wait_for(spawn(client, "print('done')"), 60)
        assert (await child.communicate()).stdout == b"done\n"
    finally:
        let_go.set()
        await asyncio.gather(*blocked)


@pytest.mark.parametrize("loop", LOOPS)
def test_beside_programs_of_asyncio(loop):
    async def program() -> bytes:
        process = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0]

    async def child(client: aio.Client) -> bytes:
        return (await (await spawn(client, "print('hi')")).communicate()).stdout

    async def main() -> None:
        async with aio.Client(child_main="support.run_source") as client:
            outputs = await asyncio.gather(*[work for _ in range(8) for work in (program(), child(client))])
        assert outputs == [b"hi\n"] * 16

    run_main(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_one_client_in_one_loop_after_the_other(loop):
    client = aio.Client(child_main="support.run_source")

    async def use() -> None:
        await client.start()
        assert (await (await spawn(client, "print('done')")).communicate()).stdout == b"done\n"

    async def main() -> None:
        await use()
        await client.close()

    LOOPS[loop](use())
    LOOPS[loop](main())


@pytest.mark.parametrize("loop", LOOPS)
def test_start_and_close(loop):
    async def main() -> None:
        client = aio.Client(child_main="support.run_source")
        assert repr(client) == "<Client: not started, or closed>"
        with pytest.raises(RuntimeError, match="not started"):
            await spawn(client, "")
        await client.close()
        starting = asyncio.ensure_future(client.start())
        await turns()
        with pytest.raises(RuntimeError, match="another task"):
            await client.start()
        await starting
        await client.start()
        assert repr(client) == f"<Client: zygote pid {client.zygote_pid}>"
        child = await spawn(client, ECHO)
        await client.close()
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await spawn(client, "")
        with pytest.raises(RuntimeError, match="closed"):
            _ = client.zygote_pid
        assert (await child.communicate(b"goes on")).stdout == b"goes on"
        with pytest.raises(pyspawner.ZygoteStartError):
            await aio.Client(child_main="no.such").start()
        with pytest.raises(ValueError, match="child_main"):
            await aio.Client(child_main="nonsense").start()
        # A close that is cancelled closes.
        async with aio.Client(child_main="support.run_source") as client:
            closing = asyncio.ensure_future(client.close())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing

    run_main(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_zygote_that_dies_leaves_its_children(loop):
    async def main() -> None:
        async with aio.Client(child_main="support.run_source") as client:
            child = await spawn(client, ECHO)
            os.kill(client.zygote_pid, signal.SIGKILL)
            with pytest.raises(pyspawner.ZygoteDiedError):
                await spawn(client, "")
            assert (await child.communicate(b"here")).stdout == b"here"

    run_main(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_operators_are_told_of_each_end_once(loop):
    ends: list[Cause] = []

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.ChildEnded):
            ends.append(event.cause)

    async def main() -> None:
        async with aio.Client(child_main="support.run_source", on_event=on_event) as client:
            await (await spawn(client, "")).communicate()
            child = await spawn(client, HANG)
            assert (await child.communicate(timeout=0.1)).cause is Cause.TIMED_OUT
            async with await spawn(client, HANG):
                pass
            child = await spawn(client, "1 / 0")
            await child.wait()
            await child.communicate()
            # It ends with the loop.
            await spawn(client, HANG)

    run_main(loop, main)
    assert ends == [Cause.EXITED, Cause.TIMED_OUT, Cause.KILLED, Cause.EXCEPTION, Cause.KILLED]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_new_zygote_is_started_while_the_loop_goes_on(loop):
    async def main() -> None:
        async with aio.Client(child_main="support.run_source", restart=True) as client:
            first = client.zygote_pid
            os.kill(first, signal.SIGKILL)
            children = await asyncio.gather(*(spawn(client, ECHO) for _ in range(5)))
            assert client.zygote_pid != first
            for child in children:
                assert (await child.communicate(b"here")).stdout == b"here"

    run_main(loop, main)


@in_every_loop
async def test_a_child_that_a_debugger_holds_is_waited_for(client):
    child = await spawn(client, HANG)
    debugger = f"""
import ctypes, os
assert ctypes.CDLL(None).ptrace(0x4206, {child.pid}, None, None) == 0  # PTRACE_SEIZE
print("it is mine", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", debugger], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tracer:
        assert tracer.stdin
        assert tracer.stdout
        assert tracer.stdout.readline() == b"it is mine\n"
        child.kill()
        while "Z" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2]:
            await asyncio.sleep(0.001)
        await turns(100)
        assert child.returncode is None
        tracer.stdin.close()
    assert await child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("loop", LOOPS)
def test_a_forked_process_has_neither_client_nor_children(loop):
    source = f"""
import asyncio, os, uvloop
from pyspawner import aio
async def main():
    async with aio.Client(child_main="support.run_source") as client:
        child = await client.spawn_child(["input()", {{}}], sandbox_config=SANDBOX)
        pid = os.fork()
        if pid == 0:
            try:
                await client.spawn_child(["", {{}}], sandbox_config=SANDBOX)
            except RuntimeError as error:
                os.write(1, str(error).replace(str(os.getppid()), "parent").replace(str(os.getpid()), "here").encode() + b"\\n")
            # As the garbage collector does.
            child.__del__()
            os._exit(0)
        os.waitpid(pid, 0)
        child.stdin.write(b"line\\n")
        print(await child.wait())
{loop}.run(main())
"""
    assert run_caller(source) == "the Client belongs to the process parent; this is here\n0\n"


def test_anyio_on_asyncio_cancels_and_leaves_nothing():
    async def main() -> None:
        async with aio.Client(child_main="support.run_source") as client:
            await (await spawn(client, "")).communicate()
            before = held()
            for deadline in range(20):
                with anyio.move_on_after(deadline / 1000):
                    await (await spawn(client, HANG)).communicate()
                assert held() == before
            with anyio.move_on_after(0.1):
                async with await spawn(client, HANG) as child, anyio.create_task_group() as group:
                    group.start_soon(child.wait)
                    async for _ in child.stdout:
                        pass
            assert held() == before
            with anyio.fail_after(60):
                child = await spawn(client, ECHO)
                assert (await child.communicate(b"as it is")).stdout == b"as it is"
            child = await spawn(client, HANG)
            with anyio.move_on_after(0.1):
                await child.communicate()
            assert (await child.communicate()).cause is Cause.KILLED

    before = held()
    for options in ({}, {"use_uvloop": True}):
        anyio.run(main, backend="asyncio", backend_options=options)
        assert held() == before


def test_the_module_is_imported_only_by_who_wants_it():
    source = "import pyspawner, sys; print('asyncio' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", source]) == b"False\n"
