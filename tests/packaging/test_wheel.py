"""``pip install .`` gives a package that works by itself, and an sdist has what it takes to build one."""

from __future__ import annotations

import email.parser
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from email.message import Message

CHECKOUT = Path(__file__).parents[2]
# Kept from run to run, so that only what has changed is compiled again. Apart from what the editable
# installation is made of.
BUILDS = CHECKOUT / "target" / "packaging"
TAG = f"cp310-abi3-linux_{platform.machine()}"

MODULES = {path.name for path in (CHECKOUT / "python" / "pyspawner").glob("*.py")}
PACKAGE = {f"pyspawner/{name}" for name in {*MODULES, "_native.abi3.so", "_native.pyi", "py.typed"}}
LICENCES = {"LICENSE-APACHE", "LICENSE-MIT"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program of the test environment, without what pytest has put into this process's variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    return run(sys.executable, "-m", "pip", *arguments, cwd=cwd, **environment)


def build_wheel(source: Path, into: Path, target: Path, **environment: str) -> Path:
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", into]
    pip("wheel", *options, source, cwd=into, CARGO_TARGET_DIR=str(target), **environment)
    (wheel,) = into.glob("*.whl")
    return wheel


def state_of_the_checkout() -> tuple[set[Path], dict[Path, int]]:
    """The files that a build might add, and when those that it might replace were written."""
    places = [CHECKOUT, *(path for path in CHECKOUT.glob("python/**/") if path.name != "__pycache__")]
    names = {entry for place in places for entry in place.iterdir()}
    replaceable = [CHECKOUT / "Cargo.lock", *CHECKOUT.glob("python/pyspawner/*.so")]
    return names, {path: path.stat().st_mtime_ns for path in replaceable}


@dataclass(frozen=True)
class Build:
    wheel: Path
    before: object
    after: object


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The one build of the checkout. A fresh machine compiles everything here."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    before = state_of_the_checkout()
    wheel = build_wheel(CHECKOUT, tmp_path_factory.mktemp("wheel"), BUILDS / "checkout")
    return Build(wheel, before, state_of_the_checkout())


@pytest.fixture(scope="module")
def wheel(build: Build) -> Path:
    return build.wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("sdist")
    run("maturin", "sdist", "--out", into, cwd=CHECKOUT, CARGO_TARGET_DIR=str(BUILDS / "checkout"))
    (sdist,) = into.glob("*")
    return sdist


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def read(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"pyspawner-2.0.0.dist-info/{name}")


def metadata_of(wheel: Path) -> Message:
    return email.parser.BytesParser().parsebytes(read(wheel, "METADATA"))


# The wheel. -----------------------------------------------------------------------------------------------


def test_building_leaves_the_checkout_and_its_editable_installation_alone(build):
    assert build.after == build.before


def test_the_wheel_is_for_every_supported_python_and_this_machine(wheel):
    assert wheel.name == f"pyspawner-2.0.0-{TAG}.whl"
    assert f"Tag: {TAG}\n" in read(wheel, "WHEEL").decode()


def test_the_metadata(wheel):
    metadata = metadata_of(wheel)
    assert (metadata["Name"], metadata["Version"]) == ("pyspawner", "2.0.0")
    assert metadata["License-Expression"] == "MIT OR Apache-2.0"
    assert set(metadata.get_all("License-File", [])) == LICENCES
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Summary"]
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert str(metadata.get_payload()).strip() == readme.strip()


def test_nothing_is_required(wheel):
    requirements = metadata_of(wheel).get_all("Requires-Dist", [])
    assert [one for one in requirements if "extra ==" not in one] == []


def test_the_wheel_has_the_package_its_types_and_its_licences_and_nothing_else(wheel):
    names = names_in(wheel)
    information = {name for name in names if name.startswith("pyspawner-2.0.0.dist-info/")}
    assert names - information == PACKAGE
    assert {f"pyspawner-2.0.0.dist-info/licenses/{name}" for name in LICENCES} <= information


def test_the_wheel_says_nothing_of_the_machine_that_built_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        telling = [name for name in archive.namelist() if str(CHECKOUT).encode() in archive.read(name)]
    assert telling == []


# Installed. -----------------------------------------------------------------------------------------------

HELLO = """
import pyspawner


def greet(name):
    print(f"Hello, {name}.")


if __name__ == "__main__":
    print(pyspawner.__file__)
    with pyspawner.Client(child_main="hello.greet", preload_imports=["decimal"]) as client:
        child = client.spawn_child(["world"], sandbox_config=pyspawner.SandboxConfig())
        child.stdin.close()
        print(child.stdout.read().decode() + child.stderr.read().decode(), end="")
        print(child.wait()[1], "seccomp" in child.layers)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it, not even pip."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    return environment


def say_hello(environment: Path, directory: Path) -> list[str]:
    (directory / "hello.py").write_text(HELLO)
    return run(environment / "bin" / "python", "hello.py", cwd=directory).splitlines()


def test_installed_into_a_new_environment_it_says_hello_from_a_sandbox(wheel, environment, tmp_path):
    python = environment / "bin" / "python"
    with pytest.raises(AssertionError, match="No module named 'pyspawner'"):
        say_hello(environment, tmp_path)
    pip("--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    try:
        where, *said = say_hello(environment, tmp_path)
        assert where.startswith(f"{environment}/")
        assert said == ["Hello, world.", "0 True"]
        assert "No broken requirements" in pip("--python", python, "check", cwd=tmp_path)
    finally:
        pip("--python", python, "uninstall", "--yes", "pyspawner", cwd=tmp_path)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    assert list(site_packages.iterdir()) == [], "it can be uninstalled without a trace"


def test_another_client_may_use_it_as_the_executable(wheel, environment, tmp_path):
    """The zygote is the environment's interpreter, with the environment's package."""
    import pyspawner

    python = environment / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    try:
        with pyspawner.Client(child_main="builtins.exec", executable=str(python)) as client:
            source = "import pyspawner; print(pyspawner.__file__)"
            child = client.spawn_child([source], sandbox_config=pyspawner.SandboxConfig())
            with child.stdin, child.stdout, child.stderr:
                printed = child.stdout.read().decode(), child.stderr.read().decode()
            child.wait()
    finally:
        pip("--python", python, "uninstall", "--yes", "pyspawner", cwd=tmp_path)
    assert printed[1] == ""
    assert printed[0].startswith(f"{environment}/")


# The sdist. -----------------------------------------------------------------------------------------------


def files_in(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive.getmembers() if not member.isdir()}
    assert {name.partition("/")[0] for name in names} == {"pyspawner-2.0.0"}
    return {name.partition("/")[2] for name in names}


def sources(directory: str, pattern: str) -> Iterable[str]:
    return {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / directory).glob(pattern)}


def test_the_sdist_has_what_building_needs(sdist):
    assert sdist.name == "pyspawner-2.0.0.tar.gz"
    needed = {
        *("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "PKG-INFO", *LICENCES),
        *sources("crates", "*/Cargo.toml"),
        *sources("crates", "*/src/**/*.rs"),
        *sources("python", "**/*.py"),
        *sources("python", "**/*.pyi"),
        "python/pyspawner/py.typed",
    }
    assert needed - files_in(sdist) == set()


def test_the_sdist_has_no_junk(sdist):
    suffixes = {".rs", ".py", ".pyi", ".toml", ".lock", ".md", ".typed", ""}
    # Rust's unit tests lie beside what they test, and these are the cases that they once failed on.
    files = {name for name in files_in(sdist) if "proptest-regressions" not in Path(name).parts}
    junk = {
        name
        for name in files
        if Path(name).suffix not in suffixes
        or Path(name).parts[0] in {"target", "tests", "fuzz", "benches", ".venv", ".git"}
        or "__pycache__" in Path(name).parts
    }
    assert junk == set()


def test_the_sdist_builds_the_same_package(wheel, sdist, tmp_path):
    source = BUILDS / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    # As of now and not of long ago: by their times Cargo tells what it has to compile again.
    run("tar", "--extract", "--touch", "--file", sdist, cwd=source)
    # That it compiles is the question, not how fast it runs.
    quick = {"CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0"}
    rebuilt = build_wheel(source / "pyspawner-2.0.0", tmp_path, BUILDS / "sdist", **quick)
    assert rebuilt.name == wheel.name
    assert names_in(rebuilt) == names_in(wheel)
    for name in ("Name", "Version", "License-Expression", "Requires-Python", "Requires-Dist"):
        assert metadata_of(rebuilt).get_all(name) == metadata_of(wheel).get_all(name)
