"""A child that reads all its memory finds nothing of earlier ones, and zygote and watchdog keep nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import memory_search
import pytest

import pyspawner
from support import SANDBOX, communicate, run, spawn

if TYPE_CHECKING:
    from collections.abc import Iterator

EARLIER_CHILDREN = 1000

# All markers begin with it. It never goes into a searching child in one piece: it would find its own copy.
PREFIX = "Xq7vKz"
HALVES = (PREFIX[:3], PREFIX[3:])


def marker(kind: str, number: int) -> str:
    """Distinct, and several times in a row: an allocator may overwrite the first bytes of what was freed."""
    return " ".join([f"{PREFIX}-{kind}-{number:04}"] * 3)


def first_copy(kind: str, number: int) -> bytes:
    return marker(kind, number).split()[0].encode()


def search_pattern(prefix: str) -> bytes:
    """Matches every marker, and not itself."""
    return rf"{prefix}-[a-z]+-\d\d\d\d".encode()


# Once it has joined the halves it has the bare prefix, which is no marker.
SEARCH = r"""
import memory_search, sys
received = sys.stdin.read()
for match in sorted(memory_search.search(rf"{''.join(halves)}-[a-z]+-\d\d\d\d".encode())):
    print(match.decode())
"""

ECHO = """
import os, sys
print(*sorted(os.listdir("/")), os.getcwd()[1:], sys.stdin.readline().strip(), of_args, sep="|")
"""


def run_one_earlier_child(client: pyspawner.Client, directory: Path, number: int) -> None:
    """Put a marker into everything that a child is given, and see that it got there."""

    def named(kind: str) -> Path:
        return directory / marker(kind, number)

    for kind in ("chroot", "source", "lower"):
        (named(kind) / marker("file", number)).mkdir(parents=True)
    target, overlaid, own = ("/" + marker(kind, number) for kind in ("target", "overlaid", "tmpfs"))
    sandbox = dataclasses.replace(
        SANDBOX,
        chroot_dir=named("chroot"),
        mounts=(
            pyspawner.Tmpfs(own),
            pyspawner.Bind(named("source"), target),
            pyspawner.Bind(named("source"), f"{own}/writable", writable=True),
            pyspawner.Overlay(overlaid, lower=named("lower")),
        ),
        working_dir=Path(target),
    )
    child = spawn(
        client, ECHO, sandbox=sandbox, process_name=marker("name", number), of_args=marker("args", number)
    )
    # It cannot have ended: it waits for its input.
    title = Path(f"/proc/{child.pid}/cmdline").read_bytes()
    outcome = communicate(child, marker("stdin", number).encode() + b"\n")
    assert title == marker("name", number).encode() + b"\0"
    in_root = [marker(kind, number) for kind in ("file", "overlaid", "target", "tmpfs")]
    others = [marker(kind, number) for kind in ("target", "stdin", "args")]
    assert outcome.text == "|".join([*in_root, *others]) + "\n"


@pytest.fixture(scope="module")
def experienced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyspawner.Client]:
    """A client that has had a thousand children, and some that failed."""
    directory = tmp_path_factory.mktemp("roots")
    with pyspawner.Client(child_main="support.run_source", preload_imports=["memory_search"]) as client:
        for number in range(EARLIER_CHILDREN):
            run_one_earlier_child(client, directory, number)
        missing = dataclasses.replace(SANDBOX, chroot_dir=directory / marker("missing", 0))
        with pytest.raises(pyspawner.SandboxError):
            spawn(client, ECHO, sandbox=missing, process_name=marker("name", 0), of_args=marker("args", 0))
        yield client


def markers_that_a_child_finds(client: pyspawner.Client, *, stdin: bytes = b"", **options: str) -> set[bytes]:
    return set(run(client, SEARCH, stdin=stdin, halves=HALVES, **options).text.encode().splitlines())


def test_a_child_finds_nothing_of_a_thousand_earlier_children(experienced: pyspawner.Client) -> None:
    assert markers_that_a_child_finds(experienced) == set()


def test_the_zygote_keeps_nothing_of_them(experienced: pyspawner.Client) -> None:
    assert memory_search.search(search_pattern(PREFIX), str(experienced.zygote_pid)) == set()


def test_the_watchdog_keeps_nothing_of_them(experienced: pyspawner.Client) -> None:
    assert memory_search.search(search_pattern(PREFIX), str(watchdog_pid(experienced))) == set()


def watchdog_pid(client: pyspawner.Client) -> int:
    assert client._zygotes is not None
    return client._zygotes.current.watchdog_pid


def test_a_child_of_a_zygote_that_is_a_clone_of_theirs_finds_nothing_of_them(
    experienced: pyspawner.Client,
) -> None:
    with experienced.derive(preload_imports=["wave"]) as derived:
        assert markers_that_a_child_finds(derived) == set()
        for pid in (derived.zygote_pid, watchdog_pid(derived)):
            assert memory_search.search(search_pattern(PREFIX), str(pid)) == set()


FILES = ["cmdline", "comm", "environ", "maps", "mountinfo", "mounts", "stat", "status"]


@pytest.mark.parametrize("file", FILES)
def test_proc_shows_a_child_nothing_of_them(file: str, experienced: pyspawner.Client) -> None:
    shown = run(experienced, f"print(open('/proc/self/{file}').read())").text
    assert PREFIX not in shown


class TestControl:
    """The search finds what is there."""

    def test_a_child_finds_its_own_args_name_and_stdin(self, experienced: pyspawner.Client) -> None:
        found = markers_that_a_child_finds(
            experienced,
            stdin=marker("stdin", 9999).encode(),
            process_name=marker("name", 9999),
            of_args=marker("args", 9999),
        )
        assert found == {first_copy(kind, 9999) for kind in ("stdin", "name", "args")}

    def test_a_child_finds_what_a_module_of_the_zygote_holds(self) -> None:
        with pyspawner.Client(
            child_main="support.run_source", preload_imports=["memory_search", "marker_in_the_zygote"]
        ) as client:
            assert markers_that_a_child_finds(client) == {first_copy("module", 0)}

    def test_zygote_and_watchdog_are_searched(self) -> None:
        with pyspawner.Client(
            child_main="support.run_source", environment={"KEY": marker("environ", 0)}
        ) as client:
            for pid in (client.zygote_pid, watchdog_pid(client)):
                assert memory_search.search(search_pattern(PREFIX), str(pid)) == {first_copy("environ", 0)}

    @pytest.mark.parametrize("file", ["cmdline", "comm", "stat", "status"])
    def test_proc_shows_a_child_its_own_name(self, file: str, experienced: pyspawner.Client) -> None:
        own = marker("name", 9999)
        assert PREFIX in run(experienced, f"print(open('/proc/self/{file}').read())", process_name=own).text

    @pytest.mark.parametrize("file", ["mountinfo", "mounts"])
    def test_proc_shows_a_child_its_own_mounts(self, file: str, experienced: pyspawner.Client) -> None:
        mounts = (pyspawner.Tmpfs(f"/tmp/{marker('target', 9999)}"),)
        shown = run(
            experienced,
            f"print(open('/proc/self/{file}').read())",
            sandbox=dataclasses.replace(SANDBOX, mounts=mounts),
        )
        assert PREFIX in shown.text
