r"""Run untrusted Python in milliseconds.

A *zygote* process imports the slow modules once; each :meth:`Client.spawn_child` clones it into a fresh, locked-down Linux sandbox and
hands back a pid and three pipes.

>>> import pyspawner
>>> with pyspawner.Client(child_main="builtins.print") as client:
...     child = client.spawn_child(["hello"], sandbox_config=pyspawner.SandboxConfig())
...     child.communicate(timeout=10).check().stdout
b'hello\n'
"""

from pyspawner import _platform

_platform.check()

from pyspawner._client import Client
from pyspawner._config import SandboxConfig
from pyspawner._errors import (
    ChildFailed,
    ChildTimeoutError,
    InsecureSandboxWarning,
    NetlinkError,
    RemoteError,
    ResultError,
    SandboxError,
    WarmUpError,
    ZygoteDiedError,
    ZygoteStartError,
)
from pyspawner._executor import SandboxExecutor, SandboxFuture
from pyspawner._limits import Limits
from pyspawner._mounts import Bind, Dev, Mount, Overlay, Proc, Tmpfs
from pyspawner._native import __version__
from pyspawner._network import LoopbackNetwork, ManagedNetwork, NetworkConfig
from pyspawner._process import Cause, ChildProcess, Completed, Usage
from pyspawner._results import open_beneath

__all__ = [
    "Bind",
    "Cause",
    "ChildFailed",
    "ChildProcess",
    "ChildTimeoutError",
    "Client",
    "Completed",
    "Dev",
    "InsecureSandboxWarning",
    "Limits",
    "LoopbackNetwork",
    "ManagedNetwork",
    "Mount",
    "NetlinkError",
    "NetworkConfig",
    "Overlay",
    "Proc",
    "RemoteError",
    "ResultError",
    "SandboxConfig",
    "SandboxError",
    "SandboxExecutor",
    "SandboxFuture",
    "Tmpfs",
    "Usage",
    "WarmUpError",
    "ZygoteDiedError",
    "ZygoteStartError",
    "__version__",
    "open_beneath",
]
