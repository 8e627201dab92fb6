"""The interpreters of the contestants: ours, and a virtual environment for those that cannot live in it."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHES = ROOT / "benches"

# `import pandas` loads more if it is there, pyarrow for example. A contestant without it would have less to
# clone, and the figures could not be compared.
_PRINT_PANDAS_VERSIONS = """
import importlib.metadata, json, sys
before = set(sys.modules)
import pandas
top_levels = {name.partition(".")[0] for name in set(sys.modules) - before}
owners = importlib.metadata.packages_distributions()
distributions = {owner for name in top_levels for owner in owners.get(name, ())}
print(json.dumps({name: importlib.metadata.version(name) for name in sorted(distributions)}))
"""


class UnavailableError(Exception):
    """A contestant cannot take part; the message says why."""


def own_python() -> Path:
    """Return the interpreter that runs the benchmark."""
    return Path(sys.executable)


def pandas_versions(python: Path) -> dict[str, str]:
    """Name and version of every distribution that ``import pandas`` loads in an environment."""
    try:
        return json.loads(_run(python, "-c", _PRINT_PANDAS_VERSIONS))
    except UnavailableError as error:
        raise UnavailableError(f"pandas is not usable in {python}: {error}") from None


def pyspawner_1_python() -> Path:
    """Return the interpreter of an environment with pyspawner 1.0.0 and our pandas; make it if need be."""
    try:
        ctypes.CDLL("libcap.so.2")
    except OSError as error:
        raise UnavailableError(f"{error}; the Debian package is libcap2") from None
    directory = ROOT / ".venv-bench-1.0"
    python = directory / "bin" / "python"
    wanted = {"pyspawner": "1.0.0", **pandas_versions(own_python())}
    if not _has(python, wanted):
        print(f"making {directory} ...", file=sys.stderr, flush=True)
        _run(own_python(), "-m", "venv", "--clear", str(directory))
        (directory / ".gitignore").write_text("*\n")
        requirements = [f"{name}=={version}" for name, version in wanted.items()]
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return python


def _has(python: Path, wanted: dict[str, str]) -> bool:
    """Whether an environment has exactly these versions."""
    source = f"import importlib.metadata as m; print(all(m.version(n) == v for n, v in {wanted!r}.items()))"
    try:
        return _run(python, "-c", source).strip() == "True"
    except UnavailableError:
        return False


def _run(python: Path, *arguments: str) -> str:
    try:
        ended = subprocess.run([python, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnavailableError(str(error)) from None
    if ended.returncode != 0:
        raise UnavailableError(
            f"{python} {arguments[0]} {arguments[1]} failed: {ended.stderr.strip()[-1000:]}"
        )
    return ended.stdout
