"""Attacks on what a child sees by default: on the host's tree, on what hides parts of it, on what is the child's own.

Alone, the child is root in its own namespaces, with every capability there: nothing but the mounts stops it.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

import attacks
import pyspawner
import support
from support import SANDBOX, attack, attack_outside, only, run_caller, visible_directory

ALONE = only()
each_sandbox = pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])

LOCKED = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV


def in_a_namespace(*commands: str) -> list[str]:
    """A program that runs another in a mount namespace of its own, after these shell commands."""
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*commands, 'exec "$@"']), "sh"]


def outside(source: str, *commands: str, **names: object) -> str:
    """Run ``source`` without a sandbox, in a mount namespace of its own. Its standard output."""
    program = f"import sys; sys.path[:] = {sys.path!r}\nfor name, value in {names!r}.items(): globals()[name] = value\n"
    command = [*in_a_namespace(*commands), sys.executable, "-c", program + textwrap.dedent(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


# Changing the host's files: on its tree, and on a mount that the host has made in it. -----------------------

CHANGE = """
import json

def lay_out(top):
    for name in attacks.ON_FILES:
        (top / name / "inner").mkdir(parents=True)
        (top / name / "file").write_text("original")
        (top / name / "other").write_text("original")

def state(top):
    stats = {str(path): path.lstat() for path in [top, *top.rglob("*")]}
    return {
        path: (seen.st_mode, seen.st_uid, seen.st_size, seen.st_nlink, seen.st_mtime_ns, seen.st_ctime_ns)
        for path, seen in stats.items()
    }

def answer(outcome):
    return int(outcome.text) if outcome.exitcode == 0 else outcome.exitcode

def answers(top):
    inside, outside = top / "inside", top / "outside"
    for part in (inside, outside):
        lay_out(part)
    before = state(inside)
    told = {
        "alone": lambda name: answer(attack(client, name, inside / name, sandbox=only())),
        "all layers": lambda name: answer(attack(client, name, inside / name)),
        "outside": lambda name: attacks.answer(name, str(outside / name)),
    }
    found = {who: {name: ask(name) for name in attacks.ON_FILES} for who, ask in told.items()}
    return {**found, "unchanged": state(inside) == before}

os.umask(0)
with pyspawner.Client(child_main="support.run_source", preload_imports=["attacks"]) as client:
    print(json.dumps({place: answers(Path(top, place)) for place in places}))
"""
PLACES = {"on the tree": ".", "on a mount in it": "mount", "on a bind in it": "bind"}
each_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


@pytest.fixture(scope="module")
def changes():
    """What came of every change, in every place, by whom."""
    with visible_directory() as top:
        for name in ("mount", "bind", "bound"):
            (top / name).mkdir()
        mounts = [f"mount -t tmpfs none {top}/mount", f"mount --bind {top}/bound {top}/bind"]
        source = f"top, places = {str(top)!r}, {list(PLACES.values())!r}\n{CHANGE}"
        yield json.loads(run_caller(source, wrapper=in_a_namespace(*mounts)))


# What a kernel answers that does not have it yet: Linux 6.17; for tmpfs 6.0 and 6.6.
NEWER = {
    "set a flag by path": -errno.ENOSYS,
    "set a flag": -errno.ENOTTY,
    "set an extended attribute": -errno.EOPNOTSUPP,
}


@each_place
def test_control_outside_every_change_works(changes, place):
    failed = {name: answer for name, answer in changes[place]["outside"].items() if answer < 0}
    assert failed.items() <= NEWER.items()


@each_place
def test_a_child_with_all_its_own_capabilities_changes_nothing_of_the_hosts(changes, place):
    """Because of the mount: modes and owners would let it."""
    possible = [name for name, answer in changes[place]["outside"].items() if answer >= 0]
    # A file that is open for reading is not mapped for writing, whatever it lies on.
    expected = {**dict.fromkeys(possible, -errno.EROFS), "map a file for writing": -errno.EACCES}
    assert {name: changes[place]["alone"][name] for name in possible} == expected


@each_place
def test_a_child_under_all_layers_changes_nothing_of_the_hosts(changes, place):
    assert [name for name, answer in changes[place]["all layers"].items() if answer >= 0] == []


@each_place
def test_all_that_was_to_be_changed_is_as_it_was(changes, place):
    assert changes[place]["unchanged"]


# Ways to the same file, locks to be lifted, covers to be removed. ----------------------------------------------

TOOLS = """
import attacks, ctypes, errno, json, os, socket
from attacks import AT_FDCWD, NEWNS, NEWUSER, call

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 1, 2, 4, 0x20, 0x1000, 0x2000, 0x4000
MNT_DETACH, MNT_EXPIRE = 2, 4
EMPTY_PATH, RECURSIVE, CLONE = 0x1000, 0x8000, 1
os.makedirs(scratch)

def mount(source, target, flags, kind=None, options=None):
    encoded = [text and text.encode() for text in (source, target, kind)]
    return call("mount", *encoded, flags, options and options.encode())

def unmount(target, flags=MNT_DETACH):
    return call("umount2", target.encode(), flags)

def copy(path, flags=0):
    return call("open_tree", AT_FDCWD, path.encode(), CLONE | flags)

def by_descriptor(number):
    return f"/proc/self/fd/{number}"

def enter_user_namespace(more):
    # The child's own /proc is read-only, and nothing keeps it from changing that.
    mount(None, "/proc", MS_REMOUNT | MS_BIND)
    uid, gid = os.getuid(), os.getgid()
    assert call("unshare", NEWUSER | more) == 0
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        attacks._write(f"/proc/self/{name}", text)

def detached_with_descriptor(path):
    # What is mounted there is unmounted while it is open.
    descriptor = os.open(path, os.O_PATH)
    assert unmount(path) == 0
    return by_descriptor(descriptor)

def attributes(cleared):
    return (ctypes.c_uint64 * 4)(0, cleared, 0, 0)
"""

# Each sets `file`, another name of a file that all may write to, in the directory `top`.
WAYS = {
    "its path": """
        file = top + "/file"
    """,
    "the root of a process": """
        file = "/proc/self/root" + top + "/file"
    """,
    "the root of a process by its number": """
        file = f"/proc/{os.getpid()}/root" + top + "/file"
    """,
    "the root of a thread": """
        file = f"/proc/self/task/{os.getpid()}/root" + top + "/file"
    """,
    "the working directory of a process": """
        os.chdir(top)
        file = "/proc/self/cwd/file"
    """,
    "a kept directory": """
        file = by_descriptor(os.open(top, os.O_PATH)) + "/file"
    """,
    "dots from a kept directory": """
        os.fchdir(os.open(top + "/inner", os.O_RDONLY))
        file = "../file"
    """,
    "reopening what is open for reading": """
        file = by_descriptor(os.open(top + "/file", os.O_RDONLY))
    """,
    "reopening what is open as a path": """
        file = by_descriptor(os.open(top + "/file", os.O_PATH))
    """,
    "a second chroot": """
        os.chroot(top)
        file = "/file"
    """,
    "a bind": """
        assert mount(top, scratch, MS_BIND) == 0
        file = scratch + "/file"
    """,
    "a bind of the file": """
        open(scratch + "/here", "w").close()
        assert mount(top + "/file", scratch + "/here", MS_BIND) == 0
        file = scratch + "/here"
    """,
    "a bind of the root with all in it": """
        assert mount("/", scratch, MS_BIND | MS_REC) == 0
        file = scratch + top + "/file"
    """,
    "a bind that is moved": """
        os.mkdir(scratch + "/here")
        os.mkdir(scratch + "/there")
        assert mount(top, scratch + "/here", MS_BIND) == 0
        assert mount(scratch + "/here", scratch + "/there", MS_MOVE) == 0
        file = scratch + "/there/file"
    """,
    "a detached copy": """
        file = by_descriptor(copy(top)) + "/file"
    """,
    "a bind that is unmounted while it is open": """
        assert mount(top, scratch, MS_BIND) == 0
        file = detached_with_descriptor(scratch) + "/file"
    """,
    "another root": """
        assert mount("none", scratch, 0, "tmpfs") == 0
        os.mkdir(scratch + "/old")
        assert call("pivot_root", scratch.encode(), (scratch + "/old").encode()) == 0
        file = "/old" + top + "/file"
    """,
    "a mount namespace within": """
        assert call("unshare", NEWNS) == 0
        file = top + "/file"
    """,
    "a user namespace within": """
        enter_user_namespace(NEWNS)
        file = top + "/file"
    """,
}
# What takes no capability.
SIMPLE_WAYS = list(WAYS)[:9]

# Each tries to lift the locks of `target`, a mount, or makes another one, `there`.
LIFTS = {
    "remounting it": """
        mount(None, target, MS_REMOUNT | MS_BIND)
    """,
    "remounting it writable": """
        mount(None, target, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV)
    """,
    "remounting it with its devices": """
        mount(None, target, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_RDONLY)
    """,
    "remounting it with its setuid programs": """
        mount(None, target, MS_REMOUNT | MS_BIND | MS_NODEV | MS_RDONLY)
    """,
    "changing its attributes": """
        call("mount_setattr", AT_FDCWD, target.encode(), RECURSIVE, attributes(7), 32)
    """,
    "remounting a bind of it": """
        assert mount(target, scratch, MS_BIND) == 0
        mount(None, scratch, MS_REMOUNT | MS_BIND)
        there = scratch
    """,
    "changing a detached copy's attributes": """
        there = by_descriptor(descriptor := copy(target))
        call("mount_setattr", descriptor, b"", EMPTY_PATH, attributes(7), 32)
    """,
    "copying it with other attributes": """
        descriptor = call("open_tree_attr", AT_FDCWD, target.encode(), CLONE, attributes(7), 32)
        there = by_descriptor(descriptor) if descriptor >= 0 else target
    """,
    "remounting it in a mount namespace within": """
        assert call("unshare", NEWNS) == 0
        mount(None, target, MS_REMOUNT | MS_BIND)
    """,
    "remounting it in a user namespace within": """
        enter_user_namespace(NEWNS)
        mount(None, target, MS_REMOUNT | MS_BIND)
    """,
}

# Each tries to see what is below the cover `home`, in the directory `people`, at last at `there`.
UNCOVERS = {
    "unmounting it": """
        unmount(home)
    """,
    "letting it expire": """
        unmount(home, MNT_EXPIRE)
        unmount(home, MNT_EXPIRE)
    """,
    "moving it": """
        mount(home, scratch, MS_MOVE)
    """,
    "moving it by its descriptor": """
        call("move_mount", AT_FDCWD, home.encode(), AT_FDCWD, scratch.encode(), 0)
    """,
    "a bind of what it is in": """
        mount(people, scratch, MS_BIND)
        there = scratch + "/home"
    """,
    "a detached copy of what it is in": """
        there = by_descriptor(copy(people)) + "/home"
    """,
    "unmounting it in a bind": """
        assert mount(people, scratch, MS_BIND | MS_REC) == 0
        there = scratch + "/home"
        unmount(there)
    """,
    "a bind that is unmounted while it is open": """
        assert mount(people, scratch, MS_BIND | MS_REC) == 0
        there = detached_with_descriptor(scratch) + "/home"
    """,
    "an overlay of what it is in": """
        os.mkdir(scratch + "/upper")
        os.mkdir(scratch + "/work")
        options = f"lowerdir={people},upperdir={scratch}/upper,workdir={scratch}/work,userxattr"
        os.mkdir(scratch + "/here")
        mount("none", scratch + "/here", 0, "overlay", options)
        there = scratch + "/here/home"
    """,
    "unmounting it from another root": """
        assert mount("none", scratch, 0, "tmpfs") == 0
        os.mkdir(scratch + "/old")
        assert call("pivot_root", scratch.encode(), (scratch + "/old").encode()) == 0
        there = "/old" + home
        unmount(there)
    """,
    "unmounting it in a mount namespace within": """
        assert call("unshare", NEWNS) == 0
        unmount(home)
    """,
    "a mount namespace that has ended": """
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            assert call("unshare", NEWNS) == 0
            socket.send_fds(theirs, [b"x"], [os.open(people, os.O_PATH)])
            os._exit(0)
        _, [descriptor], _, _ = socket.recv_fds(ours, 1, 1)
        os.wait()
        there = by_descriptor(descriptor) + "/home"
    """,
    "a file handle": """
        above = os.open(people, os.O_RDONLY | os.O_DIRECTORY)
        there = by_descriptor(call("open_by_handle_at", above, handle, os.O_PATH))
    """,
    "unmounting it in a user namespace within": """
        enter_user_namespace(NEWNS)
        unmount(home)
    """,
    "the root in a user namespace within": """
        enter_user_namespace(NEWNS)
        there = by_descriptor(copy("/", RECURSIVE)) + home
        unmount(there)
    """,
}
# What is mounted in a more privileged namespace stays there for anybody, with a sandbox or without.
NEVER = {name for name in [*LIFTS, *UNCOVERS] if "user namespace" in name}

EPILOGUES = {
    "ways": "print(json.dumps(attacks.answer('write', file, 'x')))",
    "lifts": f"""
there = globals().get("there", target)
print(json.dumps([os.statvfs(there).f_flag & {LOCKED}, attacks.answer("create a file", there)]))
""",
    "uncovers": """
try:
    print(json.dumps(sorted(os.listdir(globals().get("there", home)))))
except OSError as error:
    print(json.dumps(-error.errno))
""",
}


def programs() -> dict[str, dict[str, str]]:
    """Every attempt, by its group and name."""
    groups = {"ways": WAYS, "lifts": LIFTS, "uncovers": UNCOVERS}
    return {
        group: {name: TOOLS + textwrap.dedent(source) + EPILOGUES[group] for name, source in sources.items()}
        for group, sources in groups.items()
    }


ATTEMPTS = """
import ctypes, json

def told(outcome):
    return json.loads(outcome.stdout) if outcome.exitcode == 0 else str(outcome)

def outside(source, prepare, names):
    # A fork of its own, in a mount namespace of its own.
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.dup2(writing, 1)
            os.umask(0)
            assert attacks.call("unshare", attacks.NEWNS) == 0
            assert prepare() == 0
            run_source(source, names)
            sys.stdout.flush()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    os.wait()
    return json.loads(text) if text else "it failed"

home, target = names["home"], names["target"]

def lock():
    return attacks.call("mount", 0, target.encode(), 0, 0x1027, 0)

def cover():
    return attacks.call("mount", b"none", home.encode(), b"tmpfs", 0, 0)

def handle_of(path):
    handle = ctypes.create_string_buffer((120).to_bytes(4, "little"), 128)
    mount = ctypes.create_string_buffer(8)
    assert attacks.call("name_to_handle_at", attacks.AT_FDCWD, path.encode(), handle, mount, 0) == 0
    return handle.raw

names |= {"handle": handle_of(home)}

def tell(group, name, source):
    inside = {**names, "scratch": "/tmp/scratch"}
    told_alone = told(run(client, source, sandbox=only(), **inside))
    told_by_cover = None
    if group == "lifts":
        told_by_cover = told(run(client, source, sandbox=only(), **{**inside, "target": home}))
    told_with_all = told(run(client, source, **inside)) if name in simple else None
    prepare = {"ways": int, "lifts": lock, "uncovers": cover}[group]
    told_outside = outside(source, prepare, {**names, "scratch": f"{scratch}/{group}/{name}"})
    return told_alone, told_by_cover, told_with_all, told_outside

print(json.dumps({
    group: {name: tell(group, name, source) for name, source in sources.items()}
    for group, sources in programs.items()
}))
"""


def fill(directory: Path, *more: str) -> None:
    """Make files and a directory that everybody may change."""
    for made in (directory, directory / "inner"):
        made.mkdir(parents=True, exist_ok=True)
        made.chmod(0o777)
    for name in ("file", *more):
        (directory / name).write_text("original")
        (directory / name).chmod(0o666)


@pytest.fixture(scope="module")
def attempts():
    """What came of every attempt: alone, on a cover, under all layers, and outside."""
    with visible_directory() as top:
        fill(top / "open")
        fill(top / "people" / "home", "secret")
        (top / "mount").mkdir()
        (top / "passwd").write_text(f"ann:x:1000:1000::{top}/people/home:/bin/sh\n")
        places = {"top": top / "open", "target": top / "mount", "people": top / "people"}
        places["home"] = places["people"] / "home"
        settings = {
            "names": {name: str(path) for name, path in places.items()},
            "scratch": str(top / "scratch"),
            "programs": programs(),
            "simple": SIMPLE_WAYS,
        }
        source = "".join(f"{name} = {value!r}\n" for name, value in settings.items()) + ATTEMPTS
        wrapper = in_a_namespace(
            f"mount -t tmpfs none {top}/mount",
            f"touch {top}/mount/file",
            f"chmod 666 {top}/mount/file",
            f"chmod 777 {top}/mount",
            f"mount --bind {top}/passwd /etc/passwd",
        )
        yield json.loads(run_caller(source, wrapper=wrapper))


def column(attempts, group, number):
    return {name: told[number] for name, told in attempts[group].items()}


IN, ON_COVER, UNDER_ALL, OUTSIDE = range(4)


def test_a_file_of_the_hosts_is_read_only_by_whichever_way(attempts):
    assert column(attempts, "ways", IN) == dict.fromkeys(WAYS, -errno.EROFS)


def test_a_file_of_the_hosts_is_read_only_under_all_layers_by_every_way_that_takes_no_capability(attempts):
    answers = column(attempts, "ways", UNDER_ALL)
    assert {name: answers[name] for name in SIMPLE_WAYS} == dict.fromkeys(SIMPLE_WAYS, -errno.EROFS)


def test_control_outside_every_way_leads_to_the_file(attempts):
    assert column(attempts, "ways", OUTSIDE) == dict.fromkeys(WAYS, 1)


def test_nothing_lifts_the_locks_of_a_mount(attempts):
    assert column(attempts, "lifts", IN) == {name: [LOCKED, -errno.EROFS] for name in LIFTS}


def test_nothing_lifts_the_locks_of_a_cover(attempts):
    assert column(attempts, "lifts", ON_COVER) == {name: [LOCKED, -errno.EROFS] for name in LIFTS}


def test_control_outside_every_lift_lifts_something(attempts):
    answers = column(attempts, "lifts", OUTSIDE)
    lifted = {name for name, (flags, _) in answers.items() if flags != LOCKED}
    # It came with Linux 6.15.
    assert set(LIFTS) - lifted - {"copying it with other attributes"} == NEVER & set(LIFTS)
    assert answers["remounting it"][1] > 0


def test_nothing_shows_what_is_below_a_cover(attempts):
    seen = column(attempts, "uncovers", IN)
    assert {name: what for name, what in seen.items() if what not in ([], -errno.ENOENT)} == {}


def test_control_outside_everything_shows_what_is_below_a_cover(attempts):
    seen = {name for name, what in column(attempts, "uncovers", OUTSIDE).items() if what and "secret" in what}
    assert set(UNCOVERS) - seen == NEVER & set(UNCOVERS)


REMOUNT_ALL = """
import attacks
paths = [line.split()[4] for line in open("/proc/self/mountinfo")]
print([path for path in paths if attacks.call("mount", 0, path.encode(), 0, 0x1020, 0) == 0])
"""


def test_of_all_mounts_a_child_can_remount_only_its_own(client):
    own = {"/tmp", "/var/tmp", "/dev/shm", "/proc"}
    assert set(ast.literal_eval(support.run(client, REMOUNT_ALL, sandbox=ALONE).text)) == own


# What the child does not have to be shown: other filesystems, devices, handles, mounts. ------------------------


@pytest.fixture
def left_on_host():
    """A file in each directory of which children have another, readable and writable for all."""
    name = f"pyspawner-test-{os.urandom(8).hex()}"
    paths = [Path(directory, name) for directory in ("/run", "/tmp", "/var/tmp", "/dev/shm")]
    for path in paths:
        path.write_text("of the host")
        path.chmod(0o666)
    yield paths
    for path in paths:
        path.unlink()


UNMOUNT_ALL = """
import attacks, json, os
places = ["/run", "/sys", "/mnt", "/media", "/home", "/root", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/proc"]
def seen():
    return {place: sorted(os.listdir(place)) for place in places if os.path.isdir(place)}
before, table = seen(), open("/proc/self/mountinfo")
unmounted = []
while True:
    table.seek(0)
    paths = [line.split()[4] for line in table]
    done = [path for path in reversed(paths) if attacks.call("umount2", path.encode(), 2) == 0]
    if not done:
        break
    unmounted += done
print(json.dumps([before, seen(), unmounted]))
"""


def test_a_child_that_unmounts_all_that_it_can_sees_less_and_not_more(client, left_on_host):
    before, after, unmounted = json.loads(support.run(client, UNMOUNT_ALL, sandbox=ALONE).text)
    assert {"/tmp", "/var/tmp", "/dev/shm", "/proc"} <= set(unmounted), "the control: it can unmount its own"
    assert [place for place in before if not set(after[place]) <= set(before[place])] == []
    assert after["/proc"] == []


def test_the_next_child_sees_nothing_of_what_one_did_to_its_mounts(client):
    look = """
    for line in open("/proc/self/mountinfo"):
        _, _, _, root, target, options, *_ = line.split()
        print(root, target, options)
    """
    before = support.run(client, look).text
    havoc = """
    import attacks
    for line in list(open("/proc/self/mountinfo")):
        print(attacks.answer("mount a filesystem", "tmpfs", line.split()[4]))
    """
    assert "0\n" in support.run(client, havoc, sandbox=ALONE).text, "the control: it can mount"
    support.run(client, UNMOUNT_ALL, sandbox=ALONE)
    assert support.run(client, look).text == before


PROPAGATION = """
# Before the client: whose view it is.
child = spawn(client, "import sys; sys.stdin.readline(); print(sorted(__import__('os').listdir(top)))", top=top)
before = Path("/proc/self/mountinfo").read_text()
mounting = "import attacks; print(attacks.answer('mount a filesystem', 'tmpfs', '/usr'))"
assert run(client, mounting, sandbox=only()).text == "0\\n"
print(Path("/proc/self/mountinfo").read_text() == before, "shared:" in before)
assert attacks.answer("mount a filesystem", "tmpfs", top) == 0
Path(top, "new").touch()
print(communicate(child, b"\\n").text.strip(), os.listdir(top))
print(run(client, "import os; print(os.listdir(top))", top=top).text.strip())
"""


def test_mounts_go_from_the_child_to_the_host_or_back_in_no_case(directory):
    """On a host whose mounts are shared, as systemd makes them."""
    (directory / "old").touch()
    wrapper = ["unshare", "--mount", "--propagation", "shared"]
    told = run_caller(f"top = {str(directory)!r}\n{PROPAGATION}", wrapper=wrapper).splitlines()
    assert told == ["True True", "['old'] ['new']", "['old']"]


MOUNT_EACH = """
import attacks, json, os
os.makedirs(scratch, exist_ok=True)
with open("/proc/filesystems") as table:
    kinds = [line.split()[-1] for line in table]
mounted = []
for kind in kinds:
    if attacks.answer("mount a filesystem", kind, scratch) == 0:
        mounted.append(kind)
        attacks.call("umount2", scratch.encode(), 2)
print(json.dumps(mounted))
"""
# All new and empty, or about the child's own namespaces. What cgroups show belongs to the host: see below.
OWN_FILESYSTEMS = {
    "tmpfs",
    "ramfs",
    "proc",
    "devpts",
    "mqueue",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "cpuset",
}


def test_a_child_with_all_its_own_capabilities_mounts_no_filesystem_of_the_hosts(client):
    mounted = json.loads(support.run(client, MOUNT_EACH, sandbox=ALONE, scratch="/tmp/scratch").text)
    assert "tmpfs" in mounted, "the control"
    assert set(mounted) - OWN_FILESYSTEMS == set()


def test_control_outside_filesystems_of_the_hosts_can_be_mounted(directory):
    mounted = json.loads(outside(MOUNT_EACH, scratch=str(directory)))
    assert {"sysfs", "devtmpfs"} <= set(mounted)


CHANGE_CGROUPS = """
import attacks, json, os
os.makedirs(scratch, exist_ok=True)
mounted, writable = [], []
for kind, options in (("cgroup2", None), ("cpuset", None), ("cgroup", b"memory"), ("cgroup", b"pids")):
    if attacks.call("mount", b"none", scratch.encode(), kind.encode(), 0, options) == 0:
        mounted.append(kind)
        for path, _, names in os.walk(scratch):
            opened = [name for name in names if attacks.answer("open for writing", os.path.join(path, name)) >= 0]
            writable += opened
        attacks.call("umount2", scratch.encode(), 2)
print(json.dumps([mounted, sorted(set(writable))]))
"""


def test_of_a_cgroup_that_a_child_mounts_it_changes_nothing(client):
    """Neither limits nor ``release_agent``, which the host's root would run."""
    mounted, writable = json.loads(support.run(client, CHANGE_CGROUPS, sandbox=ALONE, scratch="/tmp/x").text)
    # By this one processes ask to be told of events: it is writable for all on every host, and writes nothing.
    assert set(writable) - {"cgroup.event_control"} == set(), mounted


def test_control_outside_cgroups_can_be_changed(directory):
    _, writable = json.loads(outside(CHANGE_CGROUPS, scratch=str(directory)))
    assert "cgroup.procs" in writable


# Device nodes. -----------------------------------------------------------------------------------------------

NULL = (stat.S_IFCHR | 0o666, os.makedev(1, 3))
# Whatever it is here: what counts is that it can be made.
DISK = (stat.S_IFBLK | 0o666, os.makedev(8, 0))


@each_sandbox
@pytest.mark.parametrize("node", [NULL, DISK], ids=["character", "block"])
def test_no_device_node_can_be_made(client, directory, node, sandbox):
    outcome = attack(client, "make a device node", "/tmp/node", *node, sandbox=sandbox)
    assert attack_outside("make a device node", f"{directory}/node", *node) == 0, "the control"
    assert outcome.exitcode == -signal.SIGSYS or int(outcome.text) == -errno.EPERM


@pytest.fixture
def node(directory):
    """A device node of the host's in an open directory."""
    os.mknod(directory / "node", *NULL)
    (directory / "node").chmod(0o666)
    return directory / "node"


@each_sandbox
def test_a_device_node_of_the_hosts_is_dead(client, node, sandbox):
    assert int(attack(client, "open", node, sandbox=sandbox).text) == -errno.EACCES
    assert attack_outside("open", str(node)) >= 0, "the control"


OVERLAY = """
import attacks, os
for name in ("upper", "work", "here"):
    os.mkdir(f"/tmp/{name}")
options = f"lowerdir={top},upperdir=/tmp/upper,workdir=/tmp/work,userxattr"
print(attacks.call("mount", b"none", b"/tmp/here", b"overlay", 0, options.encode()))
open("/tmp/here/new", "w").close()
print(attacks.answer("open", "/tmp/here/node"), attacks.answer("open for writing", "/tmp/here/secret"))
"""


def test_an_overlay_of_the_childs_own_revives_no_device_and_opens_no_file(client, directory, node):
    fill(directory, "secret")
    (directory / "secret").chmod(0o600)
    answers = support.run(client, OVERLAY, sandbox=ALONE, top=str(directory)).text.split()
    assert [int(answer) for answer in answers] == [0, -errno.EACCES, -errno.EACCES]
    assert not (directory / "new").exists()


@each_sandbox
def test_the_kernels_random_numbers_take_no_orders(client, sandbox):
    outcome = attack(client, "credit entropy", "/dev/random", sandbox=sandbox)
    assert int(outcome.text) in (-errno.EPERM, -errno.EACCES)
    assert attack_outside("credit entropy", "/dev/random") == 0, "the control"


# Numbers that lead to what has no path. ---------------------------------------------------------------------------

# open_by_handle_at(2): instead of a directory.
PIDFS, NSFS = -10002, -10003


def handle_of(descriptor: int) -> bytes | None:
    handle = ctypes.create_string_buffer((120).to_bytes(4, "little"), 128)
    mount = ctypes.create_string_buffer(8)
    answer = attacks.call("name_to_handle_at", descriptor, b"", handle, mount, 0x1000)
    return handle.raw if answer == 0 else None


@each_sandbox
def test_handles_of_the_callers_namespaces_and_process_are_worth_nothing(client, sandbox):
    """Where the kernel has them: Linux 6.14 and 6.18. Without them there is nothing to be opened."""
    paths = {name: os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("mnt", "user", "net", "pid")}
    process = os.pidfd_open(os.getpid())
    for descriptor, where in [(process, PIDFS), *((path, NSFS) for path in paths.values())]:
        handle = handle_of(descriptor)
        os.close(descriptor)
        if handle is not None:
            outcome = attack(client, "open a file handle", where, handle, sandbox=sandbox)
            assert attack_outside("open a file handle", where, handle) >= 0, "the control"
            assert outcome.exitcode == -signal.SIGSYS or int(outcome.text) in (-errno.ESTALE, -errno.EPERM)


@each_sandbox
def test_the_hosts_mounts_cannot_be_listed(client, sandbox):
    number = ctypes.c_uint64()
    with open("/proc/self/ns/mnt") as namespace:
        # NS_GET_MNTNS_ID of ioctl_nsfs(2). Before Linux 6.11 there is no such number, and no way to use it.
        if attacks.call("ioctl", namespace.fileno(), 0x8008_B705, ctypes.byref(number)) < 0:
            return
    outcome = attack(client, "list the mounts of a namespace", number.value, sandbox=sandbox)
    assert attack_outside("list the mounts of a namespace", number.value) > 0, "the control"
    assert outcome.exitcode == -signal.SIGSYS or int(outcome.text) in (
        -errno.ENOENT,
        -errno.EPERM,
        -errno.ENOSYS,
    )


# The kernel's settings. ----------------------------------------------------------------------------------------------

OPEN_SETTINGS = """
import attacks, json, os, re
attacks.call("mount", 0, b"/proc", 0, 0x1020, 0)
writable = []
for path, directories, names in os.walk("/proc"):
    if path == "/proc":
        directories[:] = [name for name in directories if not re.fullmatch(r"\\d+|self|thread-self|net", name)]
    for name in names:
        descriptor = attacks.answer("open for writing", os.path.join(path, name))
        if descriptor >= 0:
            os.close(descriptor)
            writable.append(os.path.join(path, name))
print(json.dumps(writable))
"""
# Of the child's own network, ipc, pid and user namespace. Anybody may wait for pressure.
OWN_SETTINGS = re.compile(
    r"/proc/sys/(net/.*|user/max_\w+|fs/mqueue/\w+|kernel/((auto_)?msg\w+|sem\w*|shm\w+|ns_last_pid|pid_max))"
    r"|/proc/pressure/\w+|/proc/mounts"
)


def test_a_child_with_all_its_own_capabilities_opens_no_setting_of_the_hosts(client):
    """Though it can make its ``/proc`` writable: neither ``core_pattern`` nor ``modprobe`` nor ``sysrq-trigger``."""
    writable = json.loads(support.run(client, OPEN_SETTINGS, sandbox=ALONE).text)
    assert "/proc/sys/user/max_user_namespaces" in writable, "the control: it is writable"
    assert [path for path in writable if not OWN_SETTINGS.fullmatch(path)] == []


def test_a_child_under_all_layers_opens_no_setting_at_all(client):
    source = OPEN_SETTINGS.replace("attacks.call", "()  # ")
    assert json.loads(support.run(client, source).text) == []


def test_control_outside_settings_can_be_opened():
    writable = json.loads(outside(OPEN_SETTINGS))
    assert "/proc/sys/kernel/core_pattern" in writable
    assert [path for path in writable if not OWN_SETTINGS.fullmatch(path) and "/sys/" not in path] != []


# Owners. -------------------------------------------------------------------------------------------------------------

MAP_OWNERS = """
import attacks, ctypes, os, signal
def user_namespace():
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        attacks.call("unshare", attacks.NEWUSER)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        attacks._write(f"/proc/{pid}/{name}", f"0 {os.getuid()} 1")
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    os.write(done[1], b"x")
    os.wait()
    return namespace
attacks.call("mount", 0, b"/proc", 0, 0x1020, 0)
copy = attacks.call("open_tree", attacks.AT_FDCWD, top.encode(), 1)
# MOUNT_ATTR_IDMAP
mapped = (ctypes.c_uint64 * 4)(0x100000, 0, 0, user_namespace())
print(attacks.call("mount_setattr", copy, b"", 0x1000, mapped, 32))
"""


def test_a_child_cannot_make_the_hosts_files_its_own_by_mapping_their_owners(client, directory):
    assert int(support.run(client, MAP_OWNERS, sandbox=ALONE, top=str(directory)).text) == -errno.EPERM
    assert int(outside(MAP_OWNERS, top=str(directory))) == 0, "the control"


RECONFIGURE = """
import attacks
picked = attacks.call("fspick", attacks.AT_FDCWD, target.encode(), 0)
assert picked >= 0
# FSCONFIG_SET_STRING and FSCONFIG_CMD_RECONFIGURE
assert attacks.call("fsconfig", picked, 1, b"size", b"2m", 0) == 0
print(attacks.call("fsconfig", picked, 7, 0, 0, 0))
"""


def test_a_child_cannot_change_the_filesystem_of_a_cover_which_all_children_share(client, directory):
    assert int(support.run(client, RECONFIGURE, sandbox=ALONE, target="/run").text) == -errno.EPERM
    control = outside(RECONFIGURE, f"mount -t tmpfs none {directory}", target=str(directory))
    assert int(control) == 0


# What is the host's although children may read it. ---------------------------------------------------------------

WATCHES = {
    "inotify": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        watch = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(watch, top.encode(), 0x20)
        def happened():
            return bool(os.read(watch, 4096))
    """,
    "fanotify": """
        import attacks
        # FAN_REPORT_FID and FAN_NONBLOCK; FAN_MARK_ADD, FAN_OPEN and FAN_EVENT_ON_CHILD.
        watch = attacks.call("fanotify_init", 0x202, 0)
        attacks.call("fanotify_mark", watch, 1, 0x0800_0020, attacks.AT_FDCWD, top.encode())
        def happened():
            return bool(os.read(watch, 4096))
    """,
    "dnotify": """
        import fcntl, signal
        signals = []
        signal.signal(signal.SIGIO, lambda *_: signals.append(True))
        # DN_MULTISHOT and DN_MODIFY
        fcntl.fcntl(os.open(top, os.O_RDONLY), fcntl.F_NOTIFY, -0x8000_0000 | 2)
        def happened():
            return bool(signals)
    """,
}


def watches(client, directory, watch, sandbox):
    """Whether a child is told what happens in a directory of the host's."""
    (directory / "file").touch()
    source = f"""
import os, sys
{textwrap.dedent(WATCHES[watch])}
print(flush=True)
sys.stdin.readline()
print(happened())
"""
    child = support.spawn(client, source, sandbox=sandbox, top=str(directory))
    child.stdout.readline()
    (directory / "file").write_text("opened and modified")
    outcome = support.communicate(child, b"\n")
    return outcome.stdout == b"True\n"


@pytest.mark.parametrize("watch", ["inotify", "fanotify", "dnotify"])
def test_under_all_layers_a_child_is_not_told_what_happens_to_the_hosts_files(client, directory, watch):
    assert not watches(client, directory, watch, SANDBOX)


@pytest.mark.parametrize("watch", WATCHES)
def test_control_alone_it_is_told(client, directory, watch):
    """The mounts do not keep it from that: what may be read may be watched."""
    assert watches(client, directory, watch, ALONE)


@each_sandbox
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("watch a filesystem", ["/"]), ("decide on openings", []), ("take a lease", ["/etc/passwd"])],
    ids=["watching all of a filesystem", "being asked before each opening", "holding up who opens a file"],
)
def test_a_child_gets_into_the_way_of_nobody_who_opens_a_file(client, name, arguments, sandbox):
    outcome = attack(client, name, *arguments, sandbox=sandbox)
    assert attack_outside(name, *arguments) >= 0, "the control"
    assert outcome.exitcode == -signal.SIGSYS or int(outcome.text) in (-errno.EPERM, -errno.EACCES)


READ = "import pathlib; pathlib.Path(file).read_text(); __import__('os').listdir(top)"


def test_reading_leaves_no_trace_in_the_times_of_access(directory):
    """By which children could send each other messages."""
    (directory / "inner").mkdir()
    source = f"""
    top = {str(directory / "inner")!r}
    file = top + "/file"
    def times():
        return [os.stat(path).st_atime_ns for path in (top, file)]
    before = times()
    run(client, {READ!r}, sandbox=only(), top=top, file=file)
    print(times() == before)
    run_source({READ!r}, {{"top": top, "file": file}})
    print(times() == before)
    """
    mounts = [
        f"mount -t tmpfs -o strictatime none {directory}/inner",
        f"echo x > {directory}/inner/file",
        f"touch -a -d 2001-01-01 {directory}/inner/file {directory}/inner",
    ]
    assert run_caller(source, wrapper=in_a_namespace(*mounts)) == "True\nFalse\n", "the second is the control"


# The interpreter's own file, which was opened before the host's tree became read-only. ------------------------

CHANGE_INTERPRETER = """
import attacks, os
print(os.statvfs("/proc/self/exe").f_flag)
for change in (lambda: os.setxattr("/proc/self/exe", "user.new", b"x"), lambda: os.utime("/proc/self/exe")):
    try:
        print(change() or 0)
    except OSError as error:
        print(-error.errno)
"""


@each_sandbox
def test_an_interpreter_that_all_may_write_to_cannot_be_changed_through_proc(directory, sandbox):
    executable = directory / "environment" / "bin" / "python"
    venv.create(directory / "environment", symlinks=False)
    executable.chmod(0o777)
    site_packages = next((directory / "environment").glob("lib/python*/site-packages"))
    package = Path(pyspawner.__file__).parent.parent
    (site_packages / "tests.pth").write_text(f"{package}\n{Path(support.__file__).parent}\n")
    with pyspawner.Client(child_main="support.run_source", executable=str(executable)) as client:
        flags, *answers = support.run(client, CHANGE_INTERPRETER, sandbox=sandbox).text.split()
    assert int(flags) & LOCKED == LOCKED
    assert [int(answer) for answer in answers] == [-errno.EROFS] * 2
    assert os.listxattr(executable) == []


# The child's own directories. -----------------------------------------------------------------------------------

PRIVATE = ["/tmp", "/var/tmp", "/dev/shm"]

LEAVE = """
import os, sys
os.umask(0)
for directory in directories:
    with open(directory + "/" + name, "w") as file:
        file.write("of a child")
print(flush=True)
sys.stdin.read()
"""
FIND = """
import os
print([directory for directory in directories if os.path.lexists(directory + "/" + name)])
"""


@each_sandbox
def test_nobody_else_sees_what_a_child_leaves_in_its_own_directories(client, sandbox):
    """Neither a sibling nor the host, while it lives, nor a later child."""
    names = {"directories": PRIVATE, "name": f"pyspawner-test-{os.urandom(8).hex()}", "sandbox": sandbox}
    child = support.spawn(client, LEAVE, **names)
    child.stdout.readline()
    seen = [
        support.run(client, FIND, **names).text,
        f"{[path for path in PRIVATE if Path(path, names['name']).exists()]}\n",
        support.communicate(child).text,
        support.run(client, FIND, **names).text,
    ]
    assert seen == ["[]\n", "[]\n", "", "[]\n"]
    control = support.run(client, f"import io, sys\nsys.stdin = io.StringIO()\n{LEAVE}{FIND}", **names).text
    assert control == f"\n{PRIVATE}\n"


@each_sandbox
def test_a_child_sees_nothing_that_the_host_has_in_them(client, left_on_host, sandbox):
    for path in left_on_host:
        answer = int(attack(client, "open", path, sandbox=sandbox).text)
        assert attack_outside("open", str(path)) >= 0, "the control"
        assert answer == -errno.ENOENT


@each_sandbox
@pytest.mark.parametrize("place", ["/run", "/tmp"])
def test_a_socket_of_the_hosts_is_out_of_reach(client, place, sandbox):
    """As those of Docker, D-Bus and X are. Abstract ones: see the tests of namespaces."""
    path = f"{place}/pyspawner-test-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        try:
            os.chmod(path, 0o666)
            server.listen()
            inside = attack(client, "connect to a socket by path", path, sandbox=sandbox).text
            assert attack_outside("connect to a socket by path", path) == 0, "the control"
        finally:
            os.unlink(path)
    assert int(inside) == -errno.ENOENT


MIB = 1024 * 1024
LIMIT_BYTES, LIMIT_FILES = 256 * MIB, 65_536

# Each fills a directory until that is refused, and says how often it was not, and why it was.
FILLS = {
    "bytes": """
        with open(directory + "/big", "wb", buffering=0) as file:
            count = until_refused(lambda: file.write(chunk))
    """,
    "a file with holes": """
        with open(directory + "/big", "wb", buffering=0) as file:
            file.truncate(2**40)
            # Every second piece stays a hole.
            count = until_refused(lambda: (file.write(chunk), file.seek(len(chunk), os.SEEK_CUR)))
    """,
    "allocation": """
        with open(directory + "/big", "wb") as file:
            count = until_refused(lambda: os.posix_fallocate(file.fileno(), count * len(chunk), len(chunk)))
    """,
    "many files": """
        count = until_refused(lambda: os.mknod(f"{directory}/{count}"))
    """,
    "many directories": """
        count = until_refused(lambda: os.mkdir(f"{directory}/{count}"))
    """,
    "many names of one file": """
        os.mknod(directory + "/file")
        count = until_refused(lambda: os.link(directory + "/file", f"{directory}/{count}"))
    """,
}
FILL = """
import errno, os
chunk, count = bytes(1024 * 1024), 0
def until_refused(step):
    global count
    try:
        while count < 100_000:
            step()
            count += 1
    except OSError as error:
        print(errno.errorcode[error.errno])
    return count
"""
LEFT = """
free = os.statvfs(directory)
print(free.f_bavail * free.f_frsize, free.f_favail)
"""


@each_sandbox
@pytest.mark.parametrize("directory", PRIVATE)
def test_a_child_fills_its_own_directories_and_nobody_elses(client, directory, sandbox):
    """Up to 256 MiB together. The next child has as much."""
    source = FILL + textwrap.dedent(FILLS["bytes"]) + f"print(count)\n{LEFT}"
    refusal, count, *left = support.run(client, source, sandbox=sandbox, directory=directory).text.split()
    assert (refusal, int(left[0])) == ("ENOSPC", 0)
    assert LIMIT_BYTES - 2 * MIB <= int(count) * MIB <= LIMIT_BYTES
    left = support.run(client, f"import os{LEFT}", sandbox=sandbox, directory=directory).text.split()
    assert int(left[0]) == LIMIT_BYTES
    assert LIMIT_FILES - 16 <= int(left[1]) <= LIMIT_FILES
    assert not Path(directory, "big").exists()


@pytest.mark.parametrize("fill", FILLS)
def test_in_whichever_way_a_child_fills_them_there_is_an_end(client, fill):
    source = FILL + textwrap.dedent(FILLS[fill]) + "print(count)"
    sandbox = pyspawner.SandboxConfig(limits=pyspawner.Limits(file_bytes=None))
    refusal, count = support.run(client, source, sandbox=sandbox, directory="/tmp").text.split()
    assert refusal == "ENOSPC"
    assert int(count) <= (LIMIT_FILES if "many" in fill else LIMIT_BYTES // MIB)


SHARED_LIMIT = """
import os
with open("/tmp/big", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, limit // 2)
for directory in ("/var/tmp", "/dev/shm"):
    with open(directory + "/big", "wb") as file:
        for size in (limit // 2 + 4096, limit // 2):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                print("fits")
                os.ftruncate(file.fileno(), 0)
            except OSError as error:
                print(error.errno)
"""


def test_the_limit_is_one_for_all_of_them_together(client):
    answers = support.run(client, SHARED_LIMIT, limit=LIMIT_BYTES).text.split()
    assert answers == [str(errno.ENOSPC), "fits"] * 2


BEYOND_THE_END = """
import mmap, os
with open("/tmp/big", "wb+") as file:
    file.truncate(2 * limit)
    with mmap.mmap(file.fileno(), 2 * limit) as memory:
        for start in range(0, 2 * limit, 4096):
            memory[start] = 1
"""


def test_memory_that_does_not_fit_kills_the_child_and_nobody_else(client):
    outcome = support.run(client, BEYOND_THE_END, limit=LIMIT_BYTES)
    assert outcome.exitcode in (-signal.SIGBUS, -signal.SIGSEGV), "as pid 1 it may look so"
    assert support.run(client, "print('still works')").text == "still works\n"
