"""Many zygotes and derived ones for asyncio."""

from __future__ import annotations

import asyncio

import pytest

import pyspawner
from pyspawner import aio
from support import SANDBOX, children_of_this_process, wait_until


async def said(client: aio.Client, *args: object) -> bytes:
    child = await client.spawn_child(list(args), sandbox_config=SANDBOX)
    return (await child.communicate(timeout=60)).check().stdout


def test_a_derived_client_is_started_and_closed_for_itself():
    async def main() -> None:
        async with aio.Client(child_main="builtins.print", zygotes=2) as parent:
            derived = await parent.derive(preload_imports=["wave"], child_main="builtins.exec")
            try:
                assert await said(derived, "import sys; print('wave' in sys.modules)") == b"True\n"
                assert await said(parent, "works") == b"works\n"
            finally:
                await parent.close()
            assert await said(derived, "print('works')") == b"works\n"
            await derived.close()

    asyncio.run(main())


def test_an_import_that_fails_is_raised():
    async def main() -> None:
        async with aio.Client(child_main="builtins.print") as parent:
            before = children_of_this_process()
            with pytest.raises(pyspawner.ZygoteStartError, match="no_such_module"):
                await parent.derive(preload_imports=["no_such_module"])
            assert children_of_this_process() == before
            assert await said(parent, "works") == b"works\n"

    asyncio.run(main())


def test_a_derivation_that_is_cancelled_leaves_nothing(make_module, tmp_path):
    make_module(
        "slow_module",
        f"import pathlib, time; pathlib.Path({str(tmp_path / 'is_here')!r}).touch(); time.sleep(0.2)",
    )

    async def main() -> None:
        async with aio.Client(child_main="builtins.print") as parent:
            before = children_of_this_process()
            task = asyncio.create_task(parent.derive(preload_imports=["slow_module"]))
            while not (tmp_path / "is_here").exists():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            wait_until(lambda: children_of_this_process() == before, "the end of the clone")
            assert await said(parent, "works") == b"works\n"

    asyncio.run(main())


def test_a_client_that_is_not_started_derives_none():
    async def main() -> None:
        with pytest.raises(RuntimeError, match="not started"):
            await aio.Client(child_main="builtins.print").derive()

    asyncio.run(main())
