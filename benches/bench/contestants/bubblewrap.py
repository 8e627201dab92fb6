"""bubblewrap around a new interpreter that imports pandas: what there is without a zygote."""

from __future__ import annotations

import shutil

from ..environments import UnavailableError
from .new_interpreter import NewInterpreter

SANDBOX = (
    *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all"),
    *("--cap-drop", "ALL", "--new-session", "--die-with-parent"),
)


def start() -> NewInterpreter:
    """The program bwrap, started anew for every child."""
    program = shutil.which("bwrap")
    if program is None:
        raise UnavailableError("there is no program bwrap; the Debian package is bubblewrap")
    return NewInterpreter((program, *SANDBOX))
