"""``pyspawner.aio``: a child of an event loop gives the same outcome as any, its pipes are streams, and the loop never waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

import pyspawner
from aio_support import ECHO, HANG, in_every_loop, spawn, turns
from pyspawner import Cause
from support import LISTEN, run_caller

# What comes back. -----------------------------------------------------------------------------------------


@in_every_loop
async def test_outputs_exit_code_cause_and_usage(client):
    child = await spawn(client, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    completed = await child.communicate()
    assert (completed.stdout, completed.stderr) == (b"out\n", b"err\n")
    assert (completed.returncode, completed.cause, child.returncode) == (3, Cause.EXITED, 3)
    assert (completed.stdout_dropped, completed.stderr_dropped) == (0, 0)
    assert completed.usage.peak_memory_bytes > 1_000_000
    assert repr(child) == f"<ChildProcess: pid {child.pid}, returncode 3>"
    assert "seccomp" in child.layers


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 10_000_000])
@in_every_loop
async def test_input_comes_back_whole(client, size):
    data = os.urandom(size)
    assert (await (await spawn(client, ECHO)).communicate(data, max_output=size)).stdout == data


@in_every_loop
async def test_input_may_be_any_bytes_and_none(client):
    for data in (bytearray(b"text"), memoryview(b"text"), memoryview(b"t-e-x-t-")[::2]):
        assert (await (await spawn(client, ECHO)).communicate(data)).stdout == b"text"
    assert (await (await spawn(client, ECHO)).communicate(timeout=60)).cause is Cause.EXITED


@pytest.mark.parametrize("kept", [0, 1, 1000, 65_536])
@in_every_loop
async def test_a_flood_is_cut_and_counted(client, kept):
    written = 20_000_000
    source = "import os\nfor stream in (1, 2): os.write(stream, b'begin'); print(end='x' * amount, file=open(stream, 'w', closefd=False))"
    completed = await (await spawn(client, source, amount=written - 5)).communicate(max_output=kept)
    for output, dropped in (
        (completed.stdout, completed.stdout_dropped),
        (completed.stderr, completed.stderr_dropped),
    ):
        assert output == (b"begin" + b"x" * kept)[:kept]
        assert len(output) + dropped == written
    assert completed.returncode == 0


@in_every_loop
async def test_without_a_word_a_mebibyte_of_each_is_kept(client):
    completed = await (await spawn(client, "print(end='x' * 3_000_000)")).communicate()
    assert (len(completed.stdout), completed.stdout_dropped) == (1024**2, 3_000_000 - 1024**2)


@in_every_loop
async def test_an_amount_that_no_memory_holds(client):
    assert (await (await spawn(client, "print('x')")).communicate(max_output=2**70)).stdout == b"x\n"


@in_every_loop
async def test_a_child_that_never_reads_and_one_that_closes_its_input(client):
    for source in ("print('done')", "import os; os.close(0); print('done')"):
        completed = await (await spawn(client, source)).communicate(bytes(5_000_000), timeout=60)
        assert (completed.stdout, completed.cause) == (b"done\n", Cause.EXITED)


@in_every_loop
async def test_a_child_that_closes_its_outputs_is_waited_for(client):
    source = "import os, sys; os.close(1); os.close(2); sys.stdin.read(); os._exit(7)"
    assert (await (await spawn(client, source)).communicate(b"x")).returncode == 7


@in_every_loop
async def test_what_was_written_before_is_part_of_it_and_what_was_read_is_not(client):
    child = await spawn(client, "import sys; print('first\\nsecond', flush=True); print(sys.stdin.read())")
    child.stdin.write(b"before, ")
    assert await child.stdout.readline() == b"first\n"
    assert (await child.communicate(b"after")).stdout == b"second\nbefore, after\n"
    assert await child.stdout.read() == b"", "the stream has ended"


@in_every_loop
async def test_a_pipe_that_is_full_of_earlier_input_does_not_block(client):
    child = await spawn(client, "import sys; print('x' * 500_000); print(len(sys.stdin.read()))")
    child.stdin.write(bytes(200_000))
    assert (await child.communicate(b"more", timeout=60)).stdout.endswith(b"\n200004\n")


@in_every_loop
async def test_a_task_that_reads_meanwhile_sees_the_end_and_loses_nothing_of_the_outcome(client):
    child = await spawn(
        client, "import sys; print('half', end='', flush=True); sys.stdin.read(); print(' a line')"
    )
    reading = asyncio.ensure_future(child.stdout.readline())
    await turns()
    assert (await child.communicate()).stdout == b"half a line\n"
    assert await reading == b""


# Lines, and all that can be done with streams. ------------------------------------------------------------


@in_every_loop
async def test_a_dialogue_in_lines(client):
    child = await spawn(client, "for _ in range(3): print(input().upper(), flush=True)")
    child.stdin.write(b"one\n")
    assert await child.stdout.readline() == b"ONE\n"
    child.stdin.writelines([b"two\n", b"three\n"])
    await child.stdin.drain()
    assert [line async for line in child.stdout] == [b"TWO\n", b"THREE\n"]
    assert await child.stderr.read() == b""
    assert (await child.wait(), child.returncode) == (0, 0)


@in_every_loop
async def test_the_end_of_input(client):
    for end in ("write_eof", "close"):
        child = await spawn(client, ECHO)
        child.stdin.write(data := os.urandom(1_000_000))
        assert child.stdin.can_write_eof()
        getattr(child.stdin, end)()
        assert child.stdin.is_closing()
        assert await child.stdout.read() == data, "what was written before the end is still sent"
        await child.stdin.wait_closed()
        assert await child.wait() == 0


@in_every_loop
async def test_a_child_that_closes_its_input_is_told_of_at_the_next_write(client):
    async with await spawn(client, "import os; os.close(0);" + HANG) as child:
        assert await child.stdout.readline() == b"ready\n"
        child.stdin.write(b"x")
        with pytest.raises(ConnectionResetError):
            await child.stdin.drain()
        child.stdin.write(b"x")
        with pytest.raises(BrokenPipeError):
            await child.stdin.wait_closed()


CLOSES = "import signal; signal.signal(signal.SIGUSR1, lambda *_: os.close(0));" + LISTEN


@pytest.mark.parametrize("how", ["closes", "is killed"])
@in_every_loop
async def test_who_waits_for_a_full_pipe_is_told_that_the_child(client, how):
    async with await spawn(client, "import os;" + CLOSES) as child:
        assert await child.stdout.readline() == b"ready\n"
        child.stdin.write(bytes(1_000_000))
        drains = [asyncio.ensure_future(child.stdin.drain())]
        await turns()
        assert not drains[0].done()
        child.send_signal(signal.SIGUSR1 if how == "closes" else signal.SIGKILL)
        with pytest.raises(BrokenPipeError):
            await drains[0]
        with pytest.raises(ConnectionResetError):
            await child.stdin.drain()


@in_every_loop
async def test_streams_after_the_end_have_what_was_left(client):
    child = await spawn(client, "print('left')")
    assert await child.wait() == 0
    assert await child.stdout.read() == b"left\n"
    child.stdin.write(b"nobody is there")
    with pytest.raises(ConnectionResetError):
        await child.stdin.drain()


@in_every_loop
async def test_a_large_pipe_is_read_to_its_end_too(client):
    source = "import fcntl, os; fcntl.fcntl(1, 1031, 1 << 20); os.write(1, bytes(1 << 20))"
    child = await spawn(client, source)
    await child.wait()
    assert len(await child.stdout.read()) == 1 << 20


@in_every_loop
async def test_an_output_that_its_child_reads_itself_ends_nevertheless(client):
    source = """
import os
own = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
for _ in range(1000):
    os.write(1, bytes(10))
    try: os.read(own, 3)
    except BlockingIOError: pass
"""
    completed = await (await spawn(client, source)).communicate(timeout=60)
    assert completed.returncode == 0
    assert len(completed.stdout) <= 10_000


# More than once, and other ways to the end. ---------------------------------------------------------------


@in_every_loop
async def test_a_second_call_returns_the_same_and_so_does_another_tasks(client):
    child = await spawn(client, ECHO)
    first, second = await asyncio.gather(child.communicate(b"once"), child.communicate())
    assert first is second is await child.communicate()
    assert first.stdout == b"once"
    with pytest.raises(ValueError, match="too late"):
        await child.communicate(b"more")


@in_every_loop
async def test_after_wait_it_returns_what_is_left(client):
    child = await spawn(client, "print('left in the pipe'); raise SystemExit(2)")
    assert await child.wait() == await child.wait() == 2
    completed = await child.communicate(b"too late, but no error: it may have ended at any time")
    assert (completed.stdout, completed.returncode) == (b"left in the pipe\n", 2)


@in_every_loop
async def test_a_child_that_was_reaped_by_other_means(client):
    for outcome in ("communicate", "wait"):
        child = await spawn(client, HANG)
        assert await child.stdout.readline() == b"ready\n"
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        for _ in range(2):
            with pytest.raises(ChildProcessError):
                await getattr(child, outcome)()
        with pytest.raises(ProcessLookupError):
            child.kill()
        async with child:
            pass
    # It may also be that nobody waits.
    child = await spawn(client, HANG)
    child.kill()
    os.waitpid(child.pid, 0)
    assert await child.stdout.read() in (b"ready\n", b"")


@in_every_loop
async def test_signals(client):
    child = await spawn(client, "import signal, sys; signal.signal(15, lambda *_: sys.exit(5));" + LISTEN)
    assert await child.stdout.readline() == b"ready\n"
    with pytest.raises(ValueError, match="not the number of a standard signal"):
        child.send_signal(1000)
    child.terminate()
    assert ((completed := await child.communicate()).returncode, completed.cause) == (5, Cause.EXITED)
    child = await spawn(client, HANG)
    child.kill()
    assert ((completed := await child.communicate()).returncode, completed.cause) == (-9, Cause.KILLED)
    for signal_a_child_that_is_gone in (child.kill, child.terminate):
        with pytest.raises(ProcessLookupError):
            signal_a_child_that_is_gone()


@in_every_loop
async def test_wrong_arguments_change_nothing(client):
    child = await spawn(client, ECHO)
    wrong: Any
    for wrong in ("text", 7.5, 3, ["list"]):
        with pytest.raises(TypeError):
            await child.communicate(wrong)
    for wrong in ("1", [1]):
        with pytest.raises(TypeError):
            await child.communicate(timeout=wrong)
    for wrong in ("1", 1.5, None):
        with pytest.raises(TypeError):
            await child.communicate(max_output=wrong)
    with pytest.raises(ValueError, match="must not be negative: -1"):
        await child.communicate(max_output=-1)
    for wrong in ("text", 3, None):
        with pytest.raises(TypeError):
            child.stdin.write(wrong)
    assert (await child.communicate(b"still here")).stdout == b"still here"
    child = await spawn(client, ECHO)
    child.stdin.close()
    with pytest.raises(ValueError, match="stdin is closed"):
        await child.communicate(b"x")
    assert (await child.communicate()).returncode == 0


@in_every_loop
async def test_after_a_spawn_that_fails_nothing_is_left(client):
    with pytest.raises(pyspawner.SandboxError):
        await spawn(client, "", sandbox=pyspawner.SandboxConfig(mounts=(pyspawner.Bind("/missing", "/x"),)))
    with pytest.raises(TypeError, match="sandbox_config"):
        await client.spawn_child(sandbox_config=None)
    with pytest.raises(AttributeError):
        await client.spawn_child([lambda: None], sandbox_config=pyspawner.SandboxConfig())


DAEMONS = {
    "waits": "time.sleep(20)",
    "floods": "\n  while True: os.write(1, bytes(65_536))",
}


@pytest.mark.parametrize("daemon", DAEMONS)
@in_every_loop
async def test_without_namespaces_a_daemon_that_holds_the_pipes_is_not_waited_for(client, daemon):
    source = (
        "import os, time\nif not os.fork():\n  os.setsid(); os.write(1, b'daemon'); "
        + DAEMONS[daemon]
        + "\nos.write(1, b'done\\n')"
    )
    child = await spawn(client, source, sandbox=pyspawner.SandboxConfig.without_namespaces())
    completed = await child.communicate(bytes(1_000_000), max_output=100_000_000)
    assert b"done\n" in completed.stdout
    assert completed.returncode == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_child_that_does_not_read_cannot_end_a_caller_that_lets_sigpipe_end_it(loop):
    source = f"""
import asyncio, signal, uvloop
from pyspawner import aio
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
async def main():
    async with aio.Client(child_main="support.run_source") as client:
        for blocked in (False, True):
            if blocked:
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
            child = await client.spawn_child(["import os; os.close(0); os.write(1, b'x'); os._exit(3)", {{}}], sandbox_config=SANDBOX)
            await child.stdout.read(1)
            print((await child.communicate(bytes(5_000_000))).returncode, signal.sigpending())
{loop}.run(main())
"""
    assert run_caller(source) == "3 set()\n" * 2
