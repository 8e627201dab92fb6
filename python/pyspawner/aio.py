r"""The same for asyncio: nothing here blocks the event loop, and no child has a thread.

>>> import asyncio
>>> import pyspawner.aio
>>> async def main():
...     async with pyspawner.aio.Client(child_main="builtins.print") as client:
...         child = await client.spawn_child(["hello"], sandbox_config=pyspawner.SandboxConfig())
...         return (await child.communicate(timeout=10)).check().stdout
>>> asyncio.run(main())
b'hello\n'

A spawn takes some milliseconds in a thread of the Client. From then on the loop watches the child's pipes and its pidfd: there is no
handler of SIGCHLD and no child watcher. uvloop, and anyio on asyncio, work as they are.
"""

from pyspawner._aio_client import Client
from pyspawner._aio_process import ChildProcess

__all__ = ["ChildProcess", "Client"]
