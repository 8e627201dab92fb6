"""Kernels from Linux 5.10 on: what they do not have yet is made up for, and nothing is weaker.

Each kernel is a caller of its own whose processes get the answers that such a kernel would give.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import obstacles
import pytest

import support
from support import run_caller

THIS_KERNEL = ""
KERNELS = {
    "without mount_setattr": f"obstacles.refuse({errno.ENOSYS}, 'mount_setattr')",
    "without close_range": f"obstacles.refuse({errno.ENOSYS}, {obstacles.CLOSE_RANGE})",
    "without CLOSE_RANGE_CLOEXEC": (
        f"obstacles.refuse_flag({errno.EINVAL}, {obstacles.CLOSE_RANGE}, 2, {obstacles.CLOSE_RANGE_CLOEXEC})"
    ),
    "Linux 5.10": f"obstacles.be_linux_5_10({errno.ENOSYS}, {errno.EINVAL})",
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
each_kernel_and_this = pytest.mark.parametrize(
    "kernel", [THIS_KERNEL, *KERNELS.values()], ids=["this kernel", *KERNELS]
)

LOCKED = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
MS_NOEXEC, MS_NOSYMFOLLOW, ST_NOEXEC, ST_NOSYMFOLLOW = 8, 256, 8, 0x2000


def on(kernel: str, source: str, **names: object) -> Any:
    """Run a caller there, and read what it prints as JSON. It has a mount namespace of its own."""
    setting = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    prelude = f"import attacks, json, obstacles, sys\n{setting}\n{kernel}\n"
    return json.loads(run_caller(prelude + source, wrapper=["unshare", "--mount"]))


# The answers themselves, so that the tests below are about what they say. ---------------------------------

ANSWERS = """
print(json.dumps([
    attacks.call("mount_setattr", -1, b"/", 0, bytes(32), 32),
    attacks.call(obstacles.CLOSE_RANGE, 2**30, 2**30, 0),
    attacks.call(obstacles.CLOSE_RANGE, 2**30, 2**30, obstacles.CLOSE_RANGE_CLOEXEC),
]))
"""
ENOSYS, EINVAL = -errno.ENOSYS, -errno.EINVAL


@pytest.mark.parametrize(
    ("kernel", "answers"),
    [
        (THIS_KERNEL, [0, 0, 0]),
        (KERNELS["without mount_setattr"], [ENOSYS, 0, 0]),
        (KERNELS["without close_range"], [0, ENOSYS, ENOSYS]),
        (KERNELS["without CLOSE_RANGE_CLOEXEC"], [0, 0, EINVAL]),
        (KERNELS["Linux 5.10"], [ENOSYS, 0, EINVAL]),
    ],
    ids=["this kernel", *KERNELS],
)
def test_control_the_kernel_answers_so(kernel, answers):
    assert on(kernel, ANSWERS) == answers


# What is read-only there. ---------------------------------------------------------------------------------

LOOK = """
import attacks, json, os
def writing(path):
    try:
        os.close(os.open(path + "/new", os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        return error.errno
def remounting(path):
    MS_REMOUNT, MS_BIND = 0x20, 0x1000
    return attacks.call("mount", 0, path.encode(), 0, MS_REMOUNT | MS_BIND, 0)
def seen(path):
    return [os.statvfs(path).f_flag, writing(path), remounting(path), attacks.call("umount2", path.encode(), 2)]
print(json.dumps([sorted(os.listdir(paths[1])), *map(seen, paths)]))
"""

# The child is root in its own namespaces and has every capability there: the locks are the host's.
MOUNT = f"""
def mount(path, flags):
    assert attacks.call("mount", b"none", path.encode(), b"tmpfs", flags, b"mode=0777") == 0
mount(below, 0)
(Path(below) / "__init__.py").touch()
(Path(below) / "a name\\\\with\\nall").mkdir()
mount(below + "/a name\\\\with\\nall", {MS_NOEXEC | MS_NOSYMFOLLOW})
def look(paths, *imports, **config):
    sandbox = pyspawner.SandboxConfig(skip_sandbox_except=frozenset(["none of the layers"]), **config)
    with pyspawner.Client(child_main="support.run_source", preload_imports=imports) as client:
        paths = [*paths, paths[1] + "/a name\\\\with\\nall"]
        return run(client, {LOOK!r}, sandbox=sandbox, paths=paths).text
"""


def assert_locked(told: list[Any]) -> None:
    listing, *mounts = told
    assert listing == ["__init__.py", "a name\\with\nall"], "the submount itself, not what it covers"
    assert len(mounts) == 3
    for flags, written, remounted, _ in mounts:
        assert flags & LOCKED == LOCKED
        assert (written, remounted) == (errno.EROFS, -errno.EPERM)
    kept = ST_NOEXEC | ST_NOSYMFOLLOW
    assert mounts[2][0] & kept == kept, "what was forbidden there stays forbidden"
    assert [unmounted for *_, unmounted in mounts] == [-errno.EINVAL] * 3


@each_kernel_and_this
def test_the_root_and_a_mount_in_it_are_read_only_nosuid_nodev_for_good(directory, kernel):
    (directory / "inner").mkdir()
    source = f"{MOUNT}\nprint(look(['/', '/inner'], 'attacks', 'json', chroot_dir=directory))"
    assert_locked(on(kernel, source, directory=str(directory), below=str(directory / "inner")))


@each_kernel_and_this
def test_a_closed_home_and_a_mount_in_it_are_read_only_nosuid_nodev_for_good(directory, kernel):
    modules = directory / "home" / "modules"
    (modules / "inner").mkdir(parents=True)
    (directory / "home").chmod(0o700)
    source = f"{MOUNT}\nsys.path.append(modules)\nprint(look([home, below]))"
    paths = {"home": modules.parent, "modules": modules, "below": modules / "inner"}
    assert_locked(on(kernel, source, **{name: str(path) for name, path in paths.items()}))


@each_kernel_and_this
def test_the_hosts_tree_and_a_mount_in_it_are_read_only_nosuid_nodev_for_good(directory, kernel):
    (directory / "inner").mkdir()
    source = f"{MOUNT}\nprint(look(['/', below]))"
    assert_locked(on(kernel, source, below=str(directory / "inner")))


def test_control_to_the_caller_the_same_mounts_are_open(directory):
    (directory / "inner").mkdir()
    below = str(directory / "inner")
    paths = [f"{below}/a name\\with\nall", below]
    listing, *mounts = on(THIS_KERNEL, f"{MOUNT}\nexec({LOOK!r})", below=below, paths=paths)
    assert listing == ["__init__.py", "a name\\with\nall"]
    for flags, *answers in mounts:
        assert (flags & LOCKED, *answers) == (0, None, 0, 0)


def test_nothing_is_left_mounted_in_the_caller(directory):
    source = """
before = Path("/proc/self/mountinfo").read_text()
with pyspawner.Client(child_main="support.run_source", preload_imports=["attacks"]) as client:
    run(client, "", sandbox=pyspawner.SandboxConfig(chroot_dir=directory))
print(json.dumps(Path("/proc/self/mountinfo").read_text() == before))
"""
    assert on(KERNELS["Linux 5.10"], source, directory=str(directory)) is True


# What is closed there. ------------------------------------------------------------------------------------

# Two in the caller, inheritable and high; two more are opened by a module in the zygote.
LEAK = """
import os, resource
highest = 4000
resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
descriptor = os.open("/dev/null", os.O_RDONLY)
for number in (300, highest):
    os.dup2(descriptor, number, inheritable=True)
"""
# By number, for there may be no /proc.
OPEN = """
import fcntl
def is_open(number):
    try:
        return fcntl.fcntl(number, fcntl.F_GETFD) >= 0
    except OSError:
        return False
print([number for number in range(5000) if is_open(number)])
"""
CLOSED = f"""
{LEAK}
config = {{"sandbox": pyspawner.SandboxConfig(chroot_dir=root)}} if root else {{}}
modules = ["descriptors_left_open", "fcntl"]
with pyspawner.Client(child_main="support.run_source", preload_imports=modules) as client:
    zygote = sorted(int(name) for name in os.listdir(f"/proc/{{client.zygote_pid}}/fd"))
    child = json.loads(run(client, {OPEN!r}, **config).text)
    # A program inherits all that a caller does not close, and a fork all that the zygote does not.
    program = subprocess.run([sys.executable, "-c", {OPEN!r}], close_fds=False, capture_output=True, check=True)
print(json.dumps([zygote, child, json.loads(program.stdout)]))
"""


def assert_closed(told: list[Any]) -> None:
    zygote, child, program = told
    assert {300, 4000} <= set(program), "the control"
    assert not {300, 4000} & set(zygote)
    assert {301, 3999} <= set(zygote), "the control: the zygote's own"
    assert child == [0, 1, 2]


@each_kernel_and_this
def test_children_inherit_no_descriptor_from_caller_or_zygote(kernel):
    assert_closed(on(kernel, CLOSED, root=None))


@each_kernel_and_this
@pytest.mark.parametrize("content", ["", "self/fd"], ids=["empty", "with directories like those of /proc"])
def test_children_in_a_root_inherit_no_descriptor_either(directory, kernel, content):
    """Whatever the root has where others have /proc."""
    (directory / content).mkdir(parents=True, exist_ok=True)
    assert_closed(on(kernel, CLOSED, root=str(directory)))


# What works there. ----------------------------------------------------------------------------------------

WORK = """
import asyncio, subprocess, threading
results = []
thread = threading.Thread(target=lambda: results.append("thread"))
thread.start()
thread.join()
results.append(subprocess.run(["/bin/echo", "program"], capture_output=True, text=True).stdout.strip())
results.append(asyncio.run(asyncio.sleep(0, "asyncio")))
print(results)
"""


@each_kernel
def test_children_can_start_threads_and_programs(kernel):
    source = """
with pyspawner.Client(child_main="support.run_source") as client:
    print(json.dumps([run(client, work).text for _ in range(2)]))
"""
    assert on(kernel, source, work=WORK) == ["['thread', 'program', 'asyncio']\n"] * 2


WRITE = """
import os
for path in paths:
    try:
        open(os.path.join(path, "new"), "w").close()
        print("written")
    except OSError as error:
        print(error.strerror)
print(os.listdir(paths[0]))
"""


@each_kernel_and_this
def test_a_child_gets_its_mounts_and_can_write_to_just_its_own(directory, kernel):
    """A target is missing, so its parent is made anew, which is another place that must be closed."""
    (directory / "source").mkdir()
    (directory / "source" / "file").touch()
    source = """
mounts = (pyspawner.Bind(bound, target), pyspawner.Tmpfs(own))
with pyspawner.Client(child_main="support.run_source") as client:
    sandbox = pyspawner.SandboxConfig(mounts=mounts)
    print(json.dumps(run(client, write, sandbox=sandbox, paths=[target, parent, own, "/tmp"]).text))
"""
    names = {
        "bound": str(directory / "source"),
        "target": str(directory / "missing" / "bound"),
        "parent": str(directory / "missing"),
        "own": str(directory / "own"),
    }
    *answers, listing = on(kernel, source, write=WRITE, **names).splitlines()
    refusals = {os.strerror(errno.EROFS), os.strerror(errno.EACCES)}
    assert set(answers[:2]) <= refusals
    assert answers[2:] == ["written", "written"]
    assert listing == "['file']"


@each_kernel
def test_a_zygote_with_threads_is_handed_over(kernel, monkeypatch):
    monkeypatch.syspath_prepend(Path(support.__file__).parent / "libraries")
    source = """
modules = ["thread_started_at_import"]
with pyspawner.Client(child_main="support.run_source", preload_imports=modules) as client:
    print(json.dumps(run(client, "print('it ran')").text))
"""
    assert on(kernel, source) == "it ran\n"
