"""``working_dir``: where the child is when it begins."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import pyspawner
import support
from pyspawner import Bind, Overlay, Proc, SandboxConfig, Tmpfs
from support import run_caller, visible_directory

# Alone: no optional layer, so that the child is root in its own namespaces, with every capability.
ALONE, ALL = frozenset({"none of the layers"}), frozenset()
each_sandbox = pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])

WHERE = "import os; print(os.getcwd(), sorted(os.listdir('.')))"


@pytest.fixture
def root():
    """A root in a directory with a secret."""
    with visible_directory() as directory:
        (directory / "secret").mkdir()
        (directory / "secret" / "file").touch()
        root = directory / "root"
        (root / "work").mkdir(parents=True)
        (root / "work" / "here").touch()
        (root / "file").touch()
        (root / "link").symlink_to("work")
        (root / "out").symlink_to(directory / "secret")
        (root / "up").symlink_to("../secret")
        yield root


def where(client, code=WHERE, **config):
    return support.run(client, code, sandbox=SandboxConfig(**config)).text


@each_sandbox
@pytest.mark.parametrize("directory", ["/work", Path("/work"), "/work/", "//work/.", "/link"])
def test_the_child_begins_there_in_its_own_root(preloaded, root, directory, layers):
    text = where(preloaded, chroot_dir=root, working_dir=directory, skip_sandbox_except=layers)
    assert text == "/work ['here']\n"


@each_sandbox
def test_in_the_default_view_it_is_a_directory_of_the_hosts(client, root, layers):
    text = where(client, working_dir=root / "work", skip_sandbox_except=layers)
    assert text == f"{root}/work ['here']\n"


def test_it_may_be_a_directory_that_mounts_make(client, root):
    mounts = (Bind(root, "/data"), Tmpfs("/scratch/deep"), Overlay("/copy", lower=root))
    for directory, listing in (("/data/work", ["here"]), ("/scratch/deep", []), ("/copy/work", ["here"])):
        assert where(client, mounts=mounts, working_dir=directory) == f"{directory} {listing}\n"


def test_relative_paths_mean_there(client, root):
    code = "open('new', 'w').write('written'); print(open('../scratch/new').read())"
    assert where(client, code, mounts=(Tmpfs("/scratch"),), working_dir="/scratch") == "written\n"


def test_a_program_that_the_child_starts_begins_there_too(client, root):
    code = "import subprocess; print(subprocess.run(['pwd'], stdout=subprocess.PIPE).stdout.decode(), end='')"
    assert where(client, code, working_dir=root / "work") == f"{root}/work\n"


@pytest.mark.parametrize("directory", ["/out", "/up"])
def test_a_link_that_leads_out_of_the_root_leads_nowhere(preloaded, root, directory):
    assert (root / directory[1:]).is_dir(), "the control"
    with pytest.raises(pyspawner.SandboxError, match="working_dir") as caught:
        where(preloaded, chroot_dir=root, working_dir=directory)
    assert (caught.value.layer, caught.value.errno) == ("mounts", errno.ENOENT)


BAD = {"missing": ("/missing", errno.ENOENT), "a file": ("/file", errno.ENOTDIR)}


@pytest.mark.parametrize(("directory", "expected"), BAD.values(), ids=BAD)
def test_a_bad_one_is_an_error_that_says_what_to_do(preloaded, root, directory, expected):
    with pytest.raises(pyspawner.SandboxError) as caught:
        where(preloaded, chroot_dir=root, working_dir=directory)
    assert (caught.value.layer, caught.value.errno) == ("mounts", expected)
    assert "working_dir" in str(caught.value)
    assert "working_dir" in caught.value.hint
    assert where(preloaded, chroot_dir=root).startswith("/ [")


def test_one_that_a_stranger_may_not_enter_is_an_error_too(preloaded, root):
    """Whoever sets the child up has no more rights on the host's files than the child."""
    (root / "work").chmod(0o700)
    with pytest.raises(pyspawner.SandboxError) as caught:
        where(preloaded, chroot_dir=root, working_dir="/work")
    assert caught.value.errno == errno.EACCES
    assert "working_dir" in caught.value.hint


NONSENSE = {
    "relative": "work",
    "a dot": ".",
    "dots at its end": "/work/..",
    "dots in it": "/work/../work",
    "dots at its beginning": "/../work",
    "empty": "",
    "a NUL byte": "/work\0",
    "too long": "/" + "x" * 4095,
}


@pytest.mark.parametrize("directory", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_a_value_error_that_names_the_field(client, directory):
    with pytest.raises(ValueError, match="working_dir"):
        where(client, working_dir=directory)


def test_another_type_is_a_type_error(client):
    with pytest.raises(TypeError):
        where(client, working_dir=1)


def test_without_one_the_child_begins_where_the_client_was_made_if_it_sees_that(root):
    code = f"""
    import os
    look = {WHERE!r}
    print(run(client, look).text, end="")
    os.chdir("/")
    print(run(client, look).text, end="")
    """
    assert run_caller(code, cwd=root / "work") == f"{root}/work ['here']\n" * 2


@pytest.mark.parametrize("hidden", ["/root", "/run"])
def test_without_one_it_begins_in_a_directory_that_it_sees_or_in_the_root(hidden):
    code = f"print(run(client, {WHERE!r}).text, end='')"
    listing = run_caller(code, cwd=hidden).split(" ", 1)
    assert listing[0] in (hidden, "/")
    assert "secret" not in listing[1]


def test_without_one_in_a_directory_that_is_closed_to_strangers_it_begins_in_the_root(root):
    (root / "work").chmod(0o700)
    text = run_caller(f"print(run(client, {WHERE!r}).text, end='')", cwd=root / "work")
    assert text.startswith("/ [")


def test_with_a_chroot_dir_and_without_one_it_begins_in_the_root(preloaded, root):
    assert where(preloaded, chroot_dir=root) == "/ ['file', 'link', 'out', 'up', 'work']\n"


@pytest.mark.parametrize("link", ["/proc/self/root", "/proc/self/cwd", "/proc/self/fd/3", "/proc/1/cwd"])
@pytest.mark.parametrize("own_root", [True, False], ids=["in a chroot_dir", "in the host's tree"])
def test_a_link_of_proc_is_no_way_in_or_out(preloaded, root, link, own_root):
    """Before user code runs, some of them lead to where the child was put together."""
    config = {"chroot_dir": root, "mounts": (Proc(),)} if own_root else {}
    with pytest.raises(pyspawner.SandboxError) as caught:
        where(preloaded, working_dir=link, **config)
    assert caught.value.errno in (errno.ELOOP, errno.ENOENT, errno.EXDEV)
    assert "working_dir" in str(caught.value)


def test_a_link_that_an_earlier_child_has_left_leads_to_no_link_of_proc(client, root):
    """In a directory that it may write to, at the place where the next one is to begin."""
    outside = root.parent / "shared"
    outside.mkdir()
    mounts = (Bind(outside, str(outside), writable=True),)
    leave = f"import os; os.symlink('/proc/self/cwd', {str(outside / 'work')!r})"
    support.run(client, leave, sandbox=SandboxConfig(mounts=mounts)).text  # noqa: B018 (it checks how it ended)
    with pytest.raises(pyspawner.SandboxError) as caught:
        where(client, mounts=mounts, working_dir=outside / "work")
    assert caught.value.errno == errno.ELOOP


SWAPPED = """
os.rename(here, here + ".old")
os.symlink(target, here)
print(run(client, "import os; print(os.getcwd(), os.path.exists('mask'))").text.strip())
"""


@pytest.mark.parametrize("target", ["/proc/self/cwd", "/proc/1/cwd"])
def test_a_callers_directory_that_has_become_such_a_link_is_no_place_to_be(root, target):
    here = root.parent / "callers"
    here.mkdir()
    text = run_caller(f"here, target = {str(here)!r}, {target!r}\n{SWAPPED}", cwd=here)
    assert text.strip() == "/ False"
