"""Where pyspawner can run."""

from __future__ import annotations

import os
import re
import sys

_OLDEST_KERNEL = (5, 10)
_MACHINES = ("x86_64", "aarch64")


def check() -> None:
    """Refuse to be imported where nothing could work.

    :raises ImportError: not Linux, an older kernel than 5.10, or a machine that is neither x86_64 nor aarch64.
    """
    needs = "pyspawner needs Linux 5.10 or later on x86_64 or aarch64: its sandbox is made of Linux namespaces and seccomp"
    if not sys.platform.startswith("linux"):
        raise ImportError(f"{needs}, and this is {sys.platform}")
    system = os.uname()
    if system.machine not in _MACHINES:
        raise ImportError(f"{needs}, and this machine is {system.machine}")
    release = re.match(r"(\d+)\.(\d+)", system.release)
    if release and tuple(map(int, release.groups())) < _OLDEST_KERNEL:
        raise ImportError(f"{needs}, and this kernel is {system.release}")
