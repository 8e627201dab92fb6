"""``Proc`` and ``Dev``: what a ``chroot_dir`` has of them, and only if asked to."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import support
from pyspawner import Dev, Proc, SandboxConfig
from support import visible_directory

# Alone: no optional layer, so that the child is root in its own namespaces, with every capability.
ALONE, ALL = frozenset({"none of the layers"}), frozenset()
each_sandbox = pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])


@pytest.fixture
def root():
    with visible_directory() as directory:
        (directory / "file").touch()
        yield directory


def run(client, code, *mounts, layers=ALL, chroot_dir=None, proc=True, **names):
    sandbox = SandboxConfig(chroot_dir=chroot_dir, mounts=mounts, skip_sandbox_except=layers, proc=proc)
    return support.run(client, code, sandbox=sandbox, **names).text


@each_sandbox
def test_without_them_a_root_has_neither(preloaded, root, layers):
    assert run(preloaded, "import os; print(os.listdir('/'))", chroot_dir=root, layers=layers) == "['file']\n"


# Proc. ----------------------------------------------------------------------------------------------------

PROCESSES = """
import os, sys
pids = sorted(int(name) for name in os.listdir(place) if name.isdigit())
print(pids, os.readlink(place + "/self"), os.getpid(), os.statvfs(place).f_flag & 1)
"""


@each_sandbox
@pytest.mark.parametrize("place", ["/proc", "/deep/down/processes"])
def test_a_proc_shows_the_childs_own_processes_and_is_read_only(preloaded, root, place, layers):
    text = run(preloaded, PROCESSES, Proc(place), chroot_dir=root, layers=layers, place=place)
    assert text == "[1] 1 1 1\n"


def test_control_the_hosts_shows_others():
    assert os.getppid() in (int(name) for name in os.listdir("/proc") if name.isdigit())


def test_a_proc_works(preloaded, root):
    code = """
    import os
    with open("/proc/self/status") as status:
        print(next(line for line in status if line.startswith("NSpid") or line.startswith("Pid")).split())
    print(sorted(map(int, os.listdir("/proc/self/fd")))[:3], len(open("/proc/self/maps").read()) > 0)
    print("MemTotal" in open("/proc/meminfo").read())
    """
    assert run(preloaded, code, Proc(), chroot_dir=root) == "['Pid:', '1']\n[0, 1, 2] True\nTrue\n"


SENSITIVE = ["kcore", "keys", "key-users", "timer_list", "sysrq-trigger", "acpi", "scsi"]
LOOK = """
import attacks, os
for name in names:
    path = f"/proc/{name}"
    try:
        found = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
    except OSError as error:
        found = error.strerror
    print(name, bool(found) and isinstance(found, (list, bytes)))
"""


@each_sandbox
def test_what_tells_of_the_host_is_masked(preloaded, root, layers):
    names = [name for name in SENSITIVE if Path("/proc", name).exists()]
    text = run(preloaded, LOOK, Proc(), chroot_dir=root, layers=layers, names=names)
    assert text.splitlines() == [f"{name} False" for name in names]


def test_control_outside_some_of_it_can_be_read():
    assert Path("/proc/timer_list").read_bytes() != b""


@each_sandbox
def test_no_setting_of_the_kernel_can_be_changed(preloaded, root, layers):
    code = """
    import attacks
    for path in ("/proc/sys/kernel/hostname", "/proc/self/oom_score_adj", "/proc/sys/vm/drop_caches"):
        attacks.attempt("open for writing", path)
    """
    answers = run(preloaded, code, Proc(), chroot_dir=root, layers=layers).split()
    assert set(map(int, answers)) <= {-errno.EROFS, -errno.EACCES}


@each_sandbox
def test_there_is_no_way_out_by_its_links(preloaded, root, layers):
    code = """
    import os
    print(sorted(os.listdir("/proc/1/root")), sorted(os.listdir("/proc/self/cwd")))
    print([os.path.exists(f"/proc/{pid}/root/etc/passwd") for pid in (1, "self", "thread-self")])
    """
    assert Path("/proc/self/root/etc/passwd").exists(), "the control"
    text = run(preloaded, code, Proc(), chroot_dir=root, layers=layers)
    assert text.splitlines()[1] == "[False, False, False]"
    assert "etc" not in text.splitlines()[0]


def test_without_proc_the_default_view_has_none(client):
    code = "import os; print(os.listdir('/proc'))"
    assert run(client, code, proc=False) == "[]\n"
    assert "1" in run(client, code), "the control"


# Dev. -----------------------------------------------------------------------------------------------------

DEVICES = ["full", "null", "random", "urandom", "zero"]
OTHERS = ["fd", "ptmx", "pts", "shm", "stderr", "stdin", "stdout"]
USE = """
import errno, os
print(sorted(os.listdir(place)))
with open(place + "/null", "r+b", buffering=0) as device:
    print(device.write(b"anything"), device.read(1))
with open(place + "/zero", "rb", buffering=0) as device:
    print(device.read(4))
for name in ("random", "urandom"):
    with open(f"{place}/{name}", "rb", buffering=0) as device:
        print(len(set(device.read(64))) > 8)
try:
    open(place + "/full", "wb", buffering=0).write(b"x")
except OSError as error:
    print(error.errno == errno.ENOSPC)
"""


@each_sandbox
@pytest.mark.parametrize("place", ["/dev", "/deep/down/devices"])
def test_a_dev_has_what_every_program_needs_and_nothing_else(preloaded, root, place, layers):
    text = run(preloaded, USE, Dev(place), chroot_dir=root, layers=layers, place=place)
    assert text.splitlines() == [
        str(sorted(DEVICES + OTHERS)),
        "8 b''",
        repr(bytes(4)),
        "True",
        "True",
        "True",
    ]


def test_control_the_hosts_has_more():
    assert set(os.listdir("/dev")) - set(DEVICES + OTHERS)


@each_sandbox
def test_nothing_can_be_put_into_a_dev(preloaded, root, layers):
    code = """
    import os
    for change in (
        lambda: open("/dev/new", "w"),
        lambda: os.unlink("/dev/null"),
        lambda: os.chmod("/dev/null", 0o600),
        lambda: os.mkdir("/dev/pts/new"),
    ):
        try:
            change()
            print("done")
        except OSError as error:
            print(error.errno)
    """
    answers = run(preloaded, code, Dev(), chroot_dir=root, layers=layers).split()
    assert set(map(int, answers)) <= {errno.EROFS, errno.EACCES, errno.EPERM}
    assert Path("/dev/null").stat().st_mode & 0o777 == 0o666


SHARED_MEMORY = """
import os, sys
print(os.listdir("/dev/shm"), oct(os.stat("/dev/shm").st_mode))
with open("/dev/shm/file", "x") as file:
    file.write("content")
s = os.statvfs("/dev/shm")
print(s.f_blocks * s.f_frsize, s.f_files, flush=True)
sys.stdin.read()
"""


@each_sandbox
def test_its_shared_memory_is_the_childs_own_and_bounded(preloaded, root, layers):
    sandbox = SandboxConfig(chroot_dir=root, mounts=(Dev(),), skip_sandbox_except=layers)
    children = [support.spawn(preloaded, SHARED_MEMORY, sandbox=sandbox) for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == b"[] 0o41777\n"
        assert child.stdout.readline() == b"%d 65536\n" % (256 * 1024 * 1024)
    assert [support.communicate(child).text for child in children] == ["", ""]
    assert not Path("/dev/shm/file").exists()


def test_the_standard_streams_can_be_opened_by_name_if_there_is_a_proc_too(preloaded, root):
    code = """
    print(open("/dev/stdin").read(), file=open("/dev/stdout", "w"), flush=True)
    """
    sandbox = SandboxConfig(chroot_dir=root, mounts=(Proc(), Dev()))
    assert support.run(preloaded, code, stdin=b"through", sandbox=sandbox).text == "through\n"


# Pseudoterminals. -----------------------------------------------------------------------------------------

OPEN_TERMINAL = """
import os, sys
master, slave = os.openpty()
print(os.ttyname(slave), os.isatty(master), sorted(os.listdir("/dev/pts")))
os.write(slave, b"hello\\n")
print(os.read(master, 16), flush=True)
sys.stdin.read()
"""


@each_sandbox
def test_with_ptmx_there_are_pseudoterminals_of_the_childs_own(preloaded, root, layers):
    """Also when another child has one: each counts from 0."""
    sandbox = SandboxConfig(chroot_dir=root, mounts=(Dev(ptmx=True),), skip_sandbox_except=layers)
    children = [support.spawn(preloaded, OPEN_TERMINAL, sandbox=sandbox) for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == b"/dev/pts/0 True ['0', 'ptmx']\n"
        assert child.stdout.readline() == b"b'hello\\r\\n'\n"
    assert [support.communicate(child).text for child in children] == ["", ""]


@each_sandbox
def test_so_it_is_in_the_default_view(client, layers):
    text = run(client, OPEN_TERMINAL, Dev(ptmx=True), layers=layers)
    assert text == "/dev/pts/0 True ['0', 'ptmx']\nb'hello\\r\\n'\n"


TERMINAL_ERROR = """
import os
try:
    os.openpty()
except OSError as error:
    print(error.errno, os.listdir("/dev/pts"), os.path.islink("/dev/ptmx"), os.path.exists("/dev/ptmx"))
"""


@each_sandbox
def test_without_ptmx_there_are_none(preloaded, client, root, layers):
    expected = f"{errno.ENOENT} [] True False\n"
    assert run(preloaded, TERMINAL_ERROR, Dev(), chroot_dir=root, layers=layers) == expected
    assert run(client, TERMINAL_ERROR, layers=layers) == expected


def test_a_terminal_of_the_hosts_is_not_among_them(preloaded, root):
    master, slave = os.openpty()
    try:
        code = "import os; print(os.listdir('/dev/pts'))"
        assert run(preloaded, code, Dev(ptmx=True), chroot_dir=root) == "['ptmx']\n"
    finally:
        os.close(master)
        os.close(slave)
