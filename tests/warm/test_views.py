"""A warm child sees what the paths of its sandbox lead to at the moment of the spawn, not what they led to when it was parked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pyspawner import Bind, Overlay, SandboxConfig, SandboxError, Tmpfs
from support import communicate, run, run_caller, spawn
from warm_support import await_parked, cool, spawn_warm, waiting

READ = "print(open('/mnt/file').read())"


def make(directory: Path, content: str) -> Path:
    directory.mkdir()
    (directory / "file").write_text(content)
    return directory


def replace_by_removal(source: Path) -> None:
    shutil.rmtree(source)
    make(source, "new")


def replace_by_rename(source: Path) -> None:
    make(source.with_name("next"), "new")
    source.rename(source.with_name("last"))
    source.with_name("next").rename(source)


def replace_a_parent(source: Path) -> None:
    parent = source.parent
    parent.rename(parent.with_name("last"))
    parent.mkdir()
    make(source, "new")


KINDS = {
    "read-only": lambda source: SandboxConfig(mounts=(Bind(source, "/mnt"),)),
    "writable": lambda source: SandboxConfig(mounts=(Bind(source, "/mnt", writable=True),)),
    "an overlay": lambda source: SandboxConfig(mounts=(Overlay("/mnt", lower=source),)),
    "a root": lambda source: SandboxConfig(chroot_dir=source, mounts=(Bind(source, "/mnt"),)),
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture
def source(directory):
    (directory / "parent").mkdir()
    source = make(directory / "parent" / "source", "old")
    (source / "mnt").mkdir()
    return source


@pytest.mark.parametrize("replace", [replace_by_removal, replace_by_rename, replace_a_parent])
def test_a_source_that_is_replaced_is_seen_by_the_next_child(replace, kind, source, preloaded):
    sandbox = kind(source)
    preloaded.prewarm(sandbox, 2)
    before = waiting()
    replace(source)
    (source / "mnt").mkdir()
    for _ in range(3):
        child = spawn(preloaded, READ, sandbox=sandbox)
        assert child.pid not in before
        assert communicate(child).text == "new\n"
    preloaded.prewarm(sandbox, 2)
    assert communicate(spawn_warm(preloaded, READ, sandbox=sandbox)).text == "new\n"
    cool(preloaded, sandbox)


def test_a_source_that_is_gone_is_the_error_that_a_cold_spawn_has(kind, source, preloaded):
    sandbox = kind(source)
    preloaded.prewarm(sandbox, 1)
    shutil.rmtree(source)
    with pytest.raises(SandboxError) as warm:
        spawn(preloaded, READ, sandbox=sandbox)
    cool(preloaded, sandbox)
    with pytest.raises(SandboxError) as cold:
        spawn(preloaded, READ, sandbox=sandbox)
    assert (warm.value.errno, warm.value.layer, str(warm.value)) == (
        cold.value.errno,
        cold.value.layer,
        str(cold.value),
    )
    assert waiting() == set()


def test_a_source_that_comes_back_is_found_again(kind, source, preloaded):
    sandbox = kind(source)
    preloaded.prewarm(sandbox, 1)
    source.rename(source.with_name("away"))
    with pytest.raises(SandboxError):
        spawn(preloaded, READ, sandbox=sandbox)
    source.with_name("away").rename(source)
    await_parked(preloaded, 1)
    assert communicate(spawn_warm(preloaded, READ, sandbox=sandbox)).text == "old\n"
    cool(preloaded, sandbox)


def test_what_changes_in_a_source_is_seen(kind, source, preloaded):
    sandbox = kind(source)
    preloaded.prewarm(sandbox, 1)
    (source / "file").unlink()
    (source / "file").write_text("new")
    assert communicate(spawn_warm(preloaded, READ, sandbox=sandbox)).text == "new\n"
    cool(preloaded, sandbox)


def test_what_changes_on_the_host_is_seen(directory, preloaded):
    sandbox = SandboxConfig()
    make(directory / "host", "old")
    preloaded.prewarm(sandbox, 1)
    os.replace(make(directory / "next", "new") / "file", directory / "host" / "file")
    outcome = communicate(
        spawn_warm(preloaded, "print(open(path).read())", sandbox=sandbox, path=str(directory / "host/file"))
    )
    cool(preloaded, sandbox)
    assert outcome.text == "new\n"


class TestAMissingTarget:
    """It is made in a mirror of the directory where it is missing."""

    @pytest.fixture
    def mirrored(self, directory):
        return make(directory / "mirrored", "old")

    @pytest.fixture(params=["of the host", "of a root"])
    def sandbox(self, request, directory, mirrored):
        if request.param == "of the host":
            return SandboxConfig(mounts=(Tmpfs(mirrored / "target"),))
        return SandboxConfig(chroot_dir=directory, mounts=(Tmpfs("/mirrored/target"),))

    def path(self, sandbox: SandboxConfig, file: Path) -> str:
        return str(Path("/") / file.relative_to(sandbox.chroot_dir or "/"))

    LIST = "import os; print(sorted(os.listdir(path)), open(path + '/file').read())"

    def test_what_is_made_beside_it_is_seen(self, sandbox, mirrored, preloaded):
        path = self.path(sandbox, mirrored)
        preloaded.prewarm(sandbox, 1)
        (mirrored / "made").touch()
        seen = run(preloaded, self.LIST, sandbox=sandbox, path=path).text
        cool(preloaded, sandbox)
        assert seen == "['file', 'made', 'target'] old\n"

    def test_what_is_replaced_beside_it_is_seen(self, sandbox, mirrored, directory, preloaded):
        path = self.path(sandbox, mirrored)
        preloaded.prewarm(sandbox, 1)
        os.replace(make(directory / "next", "new") / "file", mirrored / "file")
        seen = run(preloaded, self.LIST, sandbox=sandbox, path=path).text
        cool(preloaded, sandbox)
        assert seen == "['file', 'target'] new\n"


class TestATargetThatIsReplaced:
    """The kernel takes away what is mounted on a directory that is removed."""

    @pytest.fixture(params=["of the host", "of a root"])
    def sandbox(self, request, directory):
        (directory / "target").mkdir()
        if request.param == "of the host":
            return SandboxConfig(mounts=(Tmpfs(directory / "target"),))
        return SandboxConfig(chroot_dir=directory, mounts=(Tmpfs("/target"),))

    def test_it_is_mounted_all_the_same(self, sandbox, directory, preloaded):
        preloaded.prewarm(sandbox, 1)
        (directory / "target").rmdir()
        make(directory / "target", "of the host")
        path = "/target" if sandbox.chroot_dir else str(directory / "target")
        seen = run(preloaded, "import os; print(os.listdir(path))", sandbox=sandbox, path=path).text
        cool(preloaded, sandbox)
        assert seen == "[]\n"


@pytest.mark.parametrize("place", ["", "inner"])
def test_what_is_mounted_on_a_source_or_below_it_is_seen(place, source):
    (source / "inner").mkdir()
    (source / "inner" / "file").write_text("old")
    said = run_caller(
        f"""
        import sys
        sandbox = pyspawner.SandboxConfig(mounts=(pyspawner.Bind({str(source)!r}, "/mnt"),))
        client.prewarm(sandbox, 1)
        subprocess.run(["mount", "-t", "tmpfs", "none", {str(source / place)!r}], check=True)
        Path({str(source / place / "file")!r}).write_text("new")
        for _ in range(2):
            print(run(client, "print(open('/mnt/{place}/file').read())", sandbox=sandbox).text)
            client.prewarm(sandbox, 1)
        """,
        wrapper=["unshare", "--mount"],
    )
    assert said.split() == ["new", "new"]
