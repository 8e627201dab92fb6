"""Run untrusted Python in milliseconds.

A *zygote* process imports the slow modules once; each :meth:`Client.spawn_child` clones it into a fresh, locked-down Linux sandbox and
hands back a pid and three pipes.

>>> import pyspawner
>>> with pyspawner.Client(child_main="builtins.print") as client:
...     child = client.spawn_child(["hello"], sandbox_config=pyspawner.SandboxConfig())
...     child.stdout.read()
...     child.wait()[1]
b'hello\\n'
0
"""

import sys as _sys

if not _sys.platform.startswith("linux"):
    raise ImportError(
        f"pyspawner needs Linux 5.10 or later on x86_64 or aarch64: its sandbox is made of Linux namespaces and seccomp, "
        f"and this is {_sys.platform}"
    )

from pyspawner._client import ChildProcess, Client
from pyspawner._config import NetworkConfig, SandboxConfig
from pyspawner._errors import (
    InsecureSandboxWarning,
    NetlinkError,
    SandboxError,
    ZygoteDiedError,
    ZygoteStartError,
)
from pyspawner._native import __version__

__all__ = [
    "ChildProcess",
    "Client",
    "InsecureSandboxWarning",
    "NetlinkError",
    "NetworkConfig",
    "SandboxConfig",
    "SandboxError",
    "ZygoteDiedError",
    "ZygoteStartError",
    "__version__",
]
