"""``Tmpfs``: an empty directory in memory that belongs to the child, and its limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import support
from pyspawner import Bind, Limits, SandboxConfig, Tmpfs
from support import visible_directory

# Alone: no optional layer, so that the child is root in its own namespaces, with every capability.
ALONE, ALL = frozenset({"none of the layers"}), frozenset()
each_sandbox = pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])

PAGE = 4096
MIB = 1024 * 1024


def run(client, code, *mounts, layers=ALL, chroot_dir=None, **names):
    limits = Limits(file_bytes=None)
    sandbox = SandboxConfig(chroot_dir=chroot_dir, mounts=mounts, skip_sandbox_except=layers, limits=limits)
    return support.run(client, code, sandbox=sandbox, **names).text


@each_sandbox
def test_it_is_empty_and_belongs_to_the_child_and_is_nosuid_nodev(client, layers):
    code = """
    import os
    stat = os.stat("/data")
    mine = (stat.st_uid, stat.st_gid) == (os.getuid(), os.getgid())
    print(os.listdir("/data"), oct(stat.st_mode), mine, os.statvfs("/data").f_flag & 7)
    """
    seen = run(client, code, Tmpfs("/data"), layers=layers)
    assert seen == f"[] 0o40755 True {os.ST_NOSUID | os.ST_NODEV}\n"


@each_sandbox
def test_the_child_can_do_there_what_it_likes(client, layers):
    code = """
    import os
    os.makedirs("/data/deep/directory")
    with open("/data/deep/file", "w") as file:
        file.write("content")
    os.symlink("deep/file", "/data/link")
    os.link("/data/link", "/data/deep/second")
    os.mkfifo("/data/pipe")
    os.chmod("/data/deep/file", 0o700)
    os.rename("/data/deep", "/data/renamed")
    print(open("/data/renamed/file").read(), sorted(os.listdir("/data")))
    """
    assert run(client, code, Tmpfs("/data"), layers=layers) == "content ['link', 'pipe', 'renamed']\n"


def test_it_hides_what_was_at_its_target(client):
    assert os.listdir("/etc") != [], "the control"
    assert run(client, "import os; print(os.listdir('/etc'))", Tmpfs("/etc")) == "[]\n"


# Limits. --------------------------------------------------------------------------------------------------

FILL = """
import errno, os
def fill(write):
    # How many calls succeed before there is no space.
    for number in range(100_000):
        try:
            write(number)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return number
    return "no end"
"""


@each_sandbox
@pytest.mark.parametrize("pages", [1, 16, 256])
def test_it_holds_as_many_bytes_as_it_says_and_no_more(client, pages, layers):
    code = f"""{FILL}
descriptor = os.open("/data/file", os.O_CREAT | os.O_WRONLY)
print(fill(lambda number: os.write(descriptor, bytes(4096))), os.statvfs("/data").f_blocks)
"""
    assert run(client, code, Tmpfs("/data", size_bytes=pages * PAGE), layers=layers) == f"{pages} {pages}\n"


def test_many_small_files_take_a_page_each(client):
    code = f"""{FILL}
def write(number):
    with open(f"/data/{{number}}", "wb", buffering=0) as file:
        file.write(b"x")
print(fill(write))
"""
    assert run(client, code, Tmpfs("/data", size_bytes=32 * PAGE)) == "32\n"


def test_a_hole_takes_no_space_and_filling_it_does(client):
    code = f"""{FILL}
descriptor = os.open("/data/sparse", os.O_CREAT | os.O_RDWR)
os.ftruncate(descriptor, 1 << 40)
print(os.fstat(descriptor).st_size, os.fstat(descriptor).st_blocks)
print(fill(lambda number: os.pwrite(descriptor, b"x", number << 20)))
"""
    assert run(client, code, Tmpfs("/data", size_bytes=8 * PAGE)) == f"{1 << 40} 0\n8\n"


def test_space_cannot_be_reserved_beyond_the_limit(client):
    code = """
    import os
    descriptor = os.open("/data/file", os.O_CREAT | os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, 2 * 1024 * 1024)
    except OSError as error:
        print(error.strerror)
    os.posix_fallocate(descriptor, 0, 1024 * 1024)
    print(os.fstat(descriptor).st_blocks * 512)
    """
    assert run(client, code, Tmpfs("/data", size_bytes=MIB)) == f"{os.strerror(28)}\n{MIB}\n"


def test_a_mapping_of_more_than_there_is_ends_the_child_and_nobody_else(client):
    """With SIGBUS: there is no call that could fail."""
    code = """
    import mmap, os
    descriptor = os.open("/data/file", os.O_CREAT | os.O_RDWR)
    os.ftruncate(descriptor, 1024 * 1024)
    with mmap.mmap(descriptor, 1024 * 1024) as memory:
        for page in range(256):
            memory[page * 4096] = 1
    print("it went on")
    """
    sandbox = SandboxConfig(mounts=(Tmpfs("/data", size_bytes=8 * PAGE),))
    outcome = support.run(client, code, sandbox=sandbox)
    assert (outcome.exitcode, outcome.stdout) == (-7, b"")
    assert support.run(client, "print('still works')").text == "still works\n"


def test_space_that_is_given_back_can_be_used_again(client):
    code = f"""{FILL}
for _ in range(3):
    descriptor = os.open("/data/file", os.O_CREAT | os.O_WRONLY)
    print(fill(lambda number: os.write(descriptor, bytes(4096))))
    os.close(descriptor)
    os.unlink("/data/file")
"""
    assert run(client, code, Tmpfs("/data", size_bytes=4 * PAGE)) == "4\n" * 3


KINDS = {
    "files": "open(f'/data/{number}', 'x').close()",
    "directories": "os.mkdir(f'/data/{number}')",
    "symbolic links": "os.symlink('x' * 200, f'/data/{number}')",
    "pipes": "os.mkfifo(f'/data/{number}')",
    "files without a name": "kept.append(os.open('/data', os.O_TMPFILE | os.O_WRONLY))",
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_holds_as_many_inodes_as_it_says_and_no_more(client, kind):
    """Its own directory is one of them."""
    code = f"{FILL}\nkept = []\ndef make(number):\n    {kind}\nprint(fill(make))\n"
    assert run(client, code, Tmpfs("/data", max_inodes=100)) == "99\n"


def test_one_inode_is_for_its_own_directory(client):
    code = f"{FILL}\nprint(fill(lambda number: open(f'/data/{{number}}', 'x').close()))"
    assert run(client, code, Tmpfs("/data", max_inodes=1)) == "0\n"


def test_hard_links_count_too(client):
    """They take the kernel's memory as files do."""
    code = f"{FILL}\nopen('/data/file', 'x').close()\nprint(fill(lambda number: os.link('/data/file', f'/data/{{number}}')))"
    assert run(client, code, Tmpfs("/data", max_inodes=100)) == "98\n"


def test_without_a_word_it_is_64_mib_and_16384_inodes(client):
    code = "import os; s = os.statvfs('/data'); print(s.f_blocks * s.f_frsize, s.f_files)"
    assert run(client, code, Tmpfs("/data")) == f"{64 * MIB} 16384\n"


def test_two_of_one_child_have_limits_of_their_own(client):
    code = f"""{FILL}
for place in ("/a", "/b", "/tmp"):
    descriptor = os.open(f"{{place}}/file", os.O_CREAT | os.O_WRONLY)
    print(fill(lambda number: os.write(descriptor, bytes(4096))) if place != "/tmp" else os.write(descriptor, b"x"))
"""
    small, large = Tmpfs("/a", size_bytes=4 * PAGE), Tmpfs("/b", size_bytes=9 * PAGE)
    assert run(client, code, small, large) == "4\n9\n1\n"


def test_a_remount_does_not_raise_the_limit(client):
    """Under all layers; a child that keeps its capabilities may make as much memory as it likes its own."""
    code = """
    import attacks, os
    if (pid := os.fork()) == 0:
        attacks.call("mount", 0, b"/data", 0, 0x20, b"size=1g")
        os._exit(0)
    os.waitpid(pid, 0)
    print(os.statvfs("/data").f_blocks)
    """
    sandbox = SandboxConfig(mounts=(Tmpfs("/data", size_bytes=4 * PAGE),))
    assert support.run(client, code, sandbox=sandbox).stdout == b"4\n"


def test_control_a_root_that_mounted_it_can_raise_it():
    program = f"""
import sys; sys.path[:] = {sys.path!r}
import attacks, os
attacks.call("mount", b"tmpfs", b"/mnt", b"tmpfs", 0, b"size=16k")
attacks.call("mount", 0, b"/mnt", 0, 0x20, b"size=1g")
print(os.statvfs("/mnt").f_blocks)
"""
    command = ["unshare", "--mount", sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) == 2**30 / PAGE


# Nobody else's. -------------------------------------------------------------------------------------------

MEET = """
import os, sys
print(os.listdir("/data"), flush=True)
open(f"/data/{name}", "x").close()
print("written", flush=True)
sys.stdin.read()
print(os.listdir("/data"))
"""


@each_sandbox
def test_two_children_do_not_share_it(client, layers):
    sandbox = SandboxConfig(mounts=(Tmpfs("/data"),), skip_sandbox_except=layers)
    children = [support.spawn(client, MEET, sandbox=sandbox, name=name) for name in ("first", "second")]
    for child in children:
        assert [child.stdout.readline() for _ in range(2)] == [b"[]\n", b"written\n"]
    lists = [support.communicate(child).text for child in children]
    assert lists == ["['first']\n", "['second']\n"]


def test_two_children_do_share_a_writable_bind_which_is_the_control(client):
    with visible_directory() as directory:
        sandbox = SandboxConfig(mounts=(Bind(directory, "/data", writable=True),))
        children = [support.spawn(client, MEET, sandbox=sandbox, name=name) for name in ("first", "second")]
        for child in children:
            child.stdout.readline()
            assert child.stdout.readline() == b"written\n"
        lists = {support.communicate(child).text for child in children}
    assert lists <= {"['first', 'second']\n", "['second', 'first']\n"}


def test_nothing_of_it_is_on_the_host_while_the_child_lives_or_after(client):
    mounts = Path("/proc/self/mountinfo").read_text()
    zygotes = Path(f"/proc/{client.zygote_pid}/mountinfo").read_text()
    with visible_directory() as directory:
        name = f"/made-by-{directory.name}"
        code = f"import sys; open('{name}/file', 'w').close(); print('there', flush=True); sys.stdin.read()"
        child = support.spawn(client, code, sandbox=SandboxConfig(mounts=(Tmpfs(name),)))
        assert child.stdout.readline() == b"there\n"
        assert not Path(name).exists()
        assert Path("/proc/self/mountinfo").read_text() == mounts
        support.communicate(child)
    assert not Path(name).exists()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert Path(f"/proc/{client.zygote_pid}/mountinfo").read_text() == zygotes


def test_its_memory_is_given_back_when_the_child_has_ended(client):
    """Of each of many children, much more together than this one test may use."""

    def in_use() -> int:
        table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(table["Shmem"].split()[0]) * 1024

    code = "open('/data/file', 'wb').write(bytes(32 * 1024 * 1024))"
    before = in_use()
    for _ in range(16):
        run(client, code, Tmpfs("/data"))
    # Others use this machine too.
    assert in_use() - before < 256 * MIB
