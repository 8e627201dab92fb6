"""The streams of ``pyspawner.aio`` keep little: who writes faster than the other reads has to wait."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from aio_support import LOOPS, run_main, turns
from pyspawner._aio_pipes import PipeReader, PipeWriter

TOTAL = 10_000_000


def in_a_loop(test):
    @pytest.mark.parametrize("loop", LOOPS)
    def run_test(loop):
        run_main(loop, test)

    return run_test


def pipe() -> tuple[int, int]:
    ours, theirs = os.pipe()
    for descriptor in (ours, theirs):
        os.set_blocking(descriptor, False)
    return ours, theirs


async def fill(descriptor: int, most: int) -> int:
    """Write as a child does that never tires, until nobody has taken anything for some turns of the loop."""
    written = failures = 0
    while failures < 20 and written < most:
        try:
            written += os.write(descriptor, bytes(min(65_536, most - written)))
            failures = 0
        except BlockingIOError:
            failures += 1
        await asyncio.sleep(0)
    return written


@in_a_loop
async def test_a_stream_that_nobody_reads_makes_its_writer_wait():
    ours, theirs = pipe()
    reader = PipeReader(os.fdopen(ours, "rb"), asyncio.get_running_loop())
    reader.resume_reading()
    written = await fill(theirs, TOTAL)
    assert written < 500_000
    # Who reads lets it go on.
    filling = asyncio.ensure_future(fill(theirs, TOTAL - written))
    await reader.stream.readexactly(TOTAL)
    assert written + await filling == TOTAL
    os.close(theirs)
    assert await reader.stream.read() == b""


@in_a_loop
async def test_what_is_diverted_never_waits_and_is_in_order():
    ours, theirs = pipe()
    reader = PipeReader(os.fdopen(ours, "rb"), asyncio.get_running_loop())
    reader.resume_reading()
    written = await fill(theirs, TOTAL)
    taken: list[bytes] = []
    await reader.divert(taken.append)
    assert sum(map(len, taken)) >= 65_536, "what the stream had comes at once"
    assert written + await fill(theirs, TOTAL) == written + TOTAL
    os.write(theirs, b"the end")
    # Not even seen by the loop.
    reader.read_the_rest()
    assert len(data := b"".join(taken)) == written + TOTAL + 7
    assert data.endswith(b"the end")
    os.close(theirs)


@in_a_loop
async def test_what_comes_after_the_childs_end_is_not_read():
    ours, theirs = pipe()
    reader = PipeReader(os.fdopen(ours, "rb"), asyncio.get_running_loop())
    taken: list[bytes] = []

    def take(data: bytes) -> None:
        taken.append(data)
        # As a daemon does that writes without end.
        os.write(theirs, bytes(len(data)))

    await reader.divert(take)
    os.write(theirs, b"the child's")
    reader.read_the_rest()
    assert b"".join(taken) == b"the child's"
    os.close(theirs)


@in_a_loop
async def test_a_writer_keeps_what_it_was_given_and_drain_waits_for_a_reader():
    theirs, ours = pipe()
    writer = PipeWriter(os.fdopen(ours, "wb"), asyncio.get_running_loop())
    stream = writer.stream
    stream.write(data := os.urandom(1_000_000))
    kept = writer.get_write_buffer_size()
    assert 0 < kept < len(data)
    drain = asyncio.ensure_future(stream.drain())
    await turns()
    assert not drain.done()
    assert writer.get_write_buffer_size() == kept
    low, high = writer.get_write_buffer_limits()
    received = b""
    while not drain.done():
        received += os.read(theirs, 4096)
        await turns(3)
    assert low - 65_536 <= writer.get_write_buffer_size() <= low < high, "and no longer than it has to"
    stream.write_eof()
    stream.write(b"too late")
    while received != data:
        received += os.read(theirs, 65_536)
        await turns(3)
    assert os.read(theirs, 1) == b""
    await stream.wait_closed()
    os.close(theirs)


@in_a_loop
async def test_the_limits_of_a_writer_can_be_set_as_those_of_asyncio():
    theirs, ours = pipe()
    writer = PipeWriter(os.fdopen(ours, "wb"), asyncio.get_running_loop())
    writer.set_write_buffer_limits(high=0)
    writer.write(bytes(100_000))
    await turns()
    drain = asyncio.ensure_future(writer.stream.drain())
    await turns()
    assert not drain.done()
    writer.set_write_buffer_limits(low=100_000)
    assert writer.get_write_buffer_limits() == (100_000, 400_000)
    await drain
    with pytest.raises(ValueError, match="must be >= low"):
        writer.set_write_buffer_limits(high=1, low=2)
    writer.abort()
    assert writer.get_write_buffer_size() == 0
    os.close(theirs)
    await writer.stream.wait_closed()


@in_a_loop
async def test_many_small_writes_are_one_for_the_pipe():
    theirs, ours = pipe()
    writer = PipeWriter(os.fdopen(ours, "wb"), asyncio.get_running_loop())
    for number in range(100_000):
        writer.write(b"%7d\n" % number)
    received = b""
    writer.close()
    while chunk := os.read(theirs, 65_536):
        received += chunk
        await turns(3)
    assert received == b"".join(b"%7d\n" % number for number in range(100_000))
    os.close(theirs)


@in_a_loop
async def test_who_waits_for_a_child_that_has_ended_is_told_whoever_holds_its_pipe():
    theirs, ours = pipe()
    writer = PipeWriter(os.fdopen(ours, "wb"), asyncio.get_running_loop())
    writer.write(bytes(1_000_000))
    drain = asyncio.ensure_future(writer.stream.drain())
    await turns()
    writer.end()
    with pytest.raises(BrokenPipeError):
        await drain
    with pytest.raises(BrokenPipeError):
        await writer.stream.wait_closed()
    os.close(theirs)


@in_a_loop
async def test_a_child_that_reads_its_own_output_is_nothing_to_complain_of():
    ours, theirs = pipe()
    loop = asyncio.get_running_loop()
    reader = PipeReader(os.fdopen(ours, "rb"), loop)
    reader.resume_reading()

    def steal() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 10)

    for _ in range(10):
        os.write(theirs, b"gone")
        # Before the loop reads, which knows already that there is something.
        loop.call_soon(steal)
        await turns(3)
    reader.close()
    os.close(theirs)


@in_a_loop
async def test_the_numbers_of_closed_pipes_can_be_used_again():
    loop, used = asyncio.get_running_loop(), set()
    for _ in range(3):
        ends = from_child, childs_output, childs_input, to_child = *pipe(), *pipe()
        used.add(ends)
        reader, writer = (
            PipeReader(os.fdopen(from_child, "rb"), loop),
            PipeWriter(os.fdopen(to_child, "wb"), loop),
        )
        reader.resume_reading()
        os.write(childs_output, b"line\n")
        assert await reader.stream.readline() == b"line\n"
        # It is being watched.
        writer.write(bytes(1_000_000))
        await turns()
        assert len(os.read(childs_input, 65_536)) == 65_536
        await turns()
        assert len(os.read(childs_input, 65_536)) == 65_536
        reader.close()
        writer.abort()
        os.close(childs_output)
        os.close(childs_input)
    assert len(used) == 1
