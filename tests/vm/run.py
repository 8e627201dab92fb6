"""Run tests in a virtual machine, as root, on a kernel of their own with cgroup v2: ``run.py PYTEST_ARGUMENTS``.

What the machine shows of the host's files is read-only below, and changes are forgotten. The host needs Debian's packages and no rights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import kernel
import machine

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Return pytest's exit code; 1 if there is none."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--deadline", type=float, default=600, help="end the machine after so many seconds")
    parser.add_argument("--kernel", default=kernel.DEFAULT, help="a meta-package of Debian's")
    options, arguments = parser.parse_known_args()
    try:
        return _run(options.kernel, arguments, options.deadline)
    except (kernel.UnavailableError, machine.MachineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(package: str, arguments: list[str], deadline: float) -> int:
    columns, _ = shutil.get_terminal_size()
    color = "yes" if sys.stdout.isatty() else "no"
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "COLUMNS": str(columns),
        # Each takes seconds to import, and no test needs one.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        # This repository's package, whatever is installed.
        "PYTHONPATH": str(ROOT / "python"),
        "PYSPAWNER_TEST_MACHINE": "1",
    }
    return machine.run(
        kernel.get(package),
        [sys.executable, "-m", "pytest", "--forbid-skips", f"--color={color}", *arguments],
        directory=ROOT,
        environment=environment,
        output=sys.stdout.buffer,
        deadline=deadline,
    )


if __name__ == "__main__":
    sys.exit(main())
