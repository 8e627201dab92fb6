"""``Bind``: a file or directory of the host in the child's root, read-only or writable."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import attacks
import pyspawner
import support
from pyspawner import Bind, SandboxConfig, Tmpfs
from support import attack_outside, run_caller

# Alone: no optional layer, so that the child is root in its own namespaces, with every capability.
ALONE, ALL = frozenset({"none of the layers"}), frozenset()
each_sandbox = pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])

LOCKED = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
HARMLESS = os.ST_NOSUID | os.ST_NODEV

# What arrives as a descriptor is not locked by the kernel; only what a child copies from a more privileged namespace is.
UNLOCKED_ALONE = pytest.param(
    ALONE,
    marks=pytest.mark.xfail(reason="the mounts layer alone does not stop a child that keeps CAP_SYS_ADMIN"),
)
MAPPED_ALONE = pytest.param(
    ALONE,
    marks=pytest.mark.xfail(reason="the mounts layer alone maps 65,536 owners, not only the caller"),
)


@pytest.fixture
def source(directory):
    """What is bound; beside it lies what is not."""
    (directory / "secret").mkdir()
    (directory / "secret" / "file").write_text("secret")
    source = directory / "source"
    (source / "inner").mkdir(parents=True)
    (source / "file").write_text("content")
    (source / "file").chmod(0o666)
    return source


def run(client, code, *mounts, layers=ALL, **names):
    sandbox = SandboxConfig(mounts=mounts, skip_sandbox_except=layers)
    return support.run(client, code, sandbox=sandbox, **names).text


def answers(client, code, *mounts, layers=ALL, **names):
    return [int(word) for word in run(client, code, *mounts, layers=layers, **names).split()]


# Read-only. -----------------------------------------------------------------------------------------------


@each_sandbox
def test_a_directory_is_where_it_is_wanted(client, source, layers):
    code = "import os; print(sorted(os.listdir('/data')), open('/data/file').read())"
    assert run(client, code, Bind(source, "/data"), layers=layers) == "['file', 'inner'] content\n"


@each_sandbox
def test_a_file_is_where_it_is_wanted(client, source, layers):
    code = "import os; print(os.path.isfile('/data'), open('/data').read())"
    assert run(client, code, Bind(source / "file", "/data"), layers=layers) == "True content\n"


WRITE = """
def attempt(change):
    try:
        change()
    except OSError as error:
        print(-error.errno)
    else:
        print(0)

import os
for change in (
    lambda: open(f"{place}/file", "a").close(),
    lambda: open(f"{place}/new", "w").close(),
    lambda: os.mkdir(f"{place}/new directory"),
    lambda: os.symlink("anywhere", f"{place}/new link"),
    lambda: os.chmod(f"{place}/file", 0o777),
    lambda: os.utime(f"{place}/file"),
    lambda: os.setxattr(f"{place}/file", "user.note", b"value"),
    lambda: os.rename(f"{place}/file", f"{place}/renamed"),
):
    attempt(change)
"""


@each_sandbox
def test_nothing_in_it_can_be_changed(client, source, layers):
    source.chmod(0o777)
    refused = answers(client, WRITE, Bind(source, "/data"), layers=layers, place="/data")
    assert refused == [-errno.EROFS] * 8


def test_control_in_a_writable_one_all_of_it_can_be_changed(client, source):
    assert answers(client, WRITE, Bind(source, "/data", writable=True), place="/data") == [0] * 8


@each_sandbox
def test_a_file_cannot_be_changed(client, source, layers):
    code = "import attacks; attacks.attempt('open for writing', '/data')"
    bind = Bind(source / "file", "/data")
    assert answers(client, code, bind, layers=layers) == [-errno.EROFS]


@each_sandbox
def test_a_device_node_in_it_is_dead(client, source, layers):
    make_null(source)
    assert attack_outside("open", str(source / "null")) >= 0, "the control"
    code = "import attacks; attacks.attempt('open', '/data/null')"
    assert answers(client, code, Bind(source, "/data"), layers=layers) == [-errno.EACCES]


def make_null(directory: Path) -> None:
    os.mknod(directory / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (directory / "null").chmod(0o666)


@each_sandbox
def test_the_child_has_the_permissions_of_a_stranger(client, source, layers):
    """Whoever the caller is: also the root of the child's own namespace is nobody here."""
    (source / "private").write_text("private")
    (source / "private").chmod(0o600)
    (source / "inner").chmod(0o700)
    code = """
    import attacks, os
    attacks.attempt("open", "/data/private")
    attacks.attempt("open", "/data/inner/anything")
    print(os.stat("/data").st_uid, os.stat("/data").st_gid)
    """
    overflow = 65_534
    stranger = [-errno.EACCES, -errno.EACCES, overflow, overflow]
    assert answers(client, code, Bind(source, "/data"), layers=layers) == stranger


ABOVE = "import os; print(sorted(os.listdir('/opt/place/..')), sorted(os.listdir('/opt')))"


def test_the_way_up_leads_to_the_parent_of_the_target(client, source):
    above, parent = run(client, ABOVE, Bind(source, "/opt/place")).split("] ")
    assert above.strip("[]\n") == parent.strip("[]\n")
    assert "secret" not in above


LIFT = """
import attacks, os
MS_BIND, MS_REMOUNT, MS_RDONLY, MNT_DETACH = 0x1000, 0x20, 1, 2
inner = place + "/inner"
print(attacks.call("mount", 0, place.encode(), 0, MS_REMOUNT | MS_BIND, 0), os.statvfs(place).f_flag & MS_RDONLY)
print(attacks.call("mount", 0, inner.encode(), 0, MS_REMOUNT | MS_BIND, 0), os.statvfs(inner).f_flag & MS_RDONLY)
# A copy without what covers it, then the cover itself.
print(attacks.call("mount", place.encode(), elsewhere.encode(), 0, MS_BIND, 0), os.listdir(elsewhere + "/inner"))
print(attacks.call("umount2", inner.encode(), MNT_DETACH), os.listdir(inner))
"""


@pytest.fixture
def covering(source):
    """A program that runs another in a mount namespace in which something is mounted below the source."""
    (source / "inner" / "beneath").touch()
    prelude = f'mount -t tmpfs tmpfs {source}/inner && touch {source}/inner/below && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", prelude, "sh"]


def test_what_is_mounted_below_it_comes_along_locked(source, covering):
    code = f"""
    look = "import os; print(os.listdir('/data/inner'), os.statvfs('/data/inner').f_flag)"
    bind = pyspawner.Bind({str(source)!r}, "/data")
    print(run(client, look, sandbox=pyspawner.SandboxConfig(mounts=(bind,))).text)
    """
    listing, flags = run_caller(code, wrapper=covering).split()
    assert (listing, int(flags) & LOCKED) == ("['below']", LOCKED)


def test_a_child_with_all_its_own_capabilities_cannot_lift_or_unlock_what_is_mounted_below_it(
    source, covering
):
    code = f"""
    bind = pyspawner.Bind({str(source)!r}, "/data")
    sandbox = pyspawner.SandboxConfig(mounts=(bind, pyspawner.Tmpfs("/elsewhere/inner")), skip_sandbox_except={{"none"}})
    print(run(client, {LIFT!r}, sandbox=sandbox, place="/data", elsewhere="/elsewhere").text)
    """
    bind, inner, copy, cover = run_caller(code, wrapper=covering).strip().splitlines()
    assert (bind, inner) == (f"{-errno.EPERM} {os.ST_RDONLY}",) * 2
    assert copy == f"{-errno.EINVAL} []"
    assert cover == f"{-errno.EINVAL} ['below']"


def test_control_a_root_that_has_mounted_it_all_itself_can(source, directory):
    place, elsewhere = str(directory / "place"), str(directory / "elsewhere")
    (directory / "place").mkdir()
    (directory / "elsewhere").mkdir()
    (source / "inner" / "beneath").touch()
    program = f"""
import sys; sys.path[:] = {sys.path!r}
import attacks
place, elsewhere = {place!r}, {elsewhere!r}
attacks.call("mount", b"tmpfs", {os.fsencode(source / "inner")!r}, b"tmpfs", 0, 0)
attacks.call("mount", {os.fsencode(source)!r}, place.encode(), 0, 0x5000, 0)
for path in (place, place + "/inner"):
    attacks.call("mount", 0, path.encode(), 0, 0x1021, 0)
{LIFT}"""
    command = ["unshare", "--mount", sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["0 0", "0 0", "0 ['beneath']", "0 ['beneath']"]


# Writable: whose the files are. ---------------------------------------------------------------------------

MAKE = """
import os
os.chdir("/out")
with open("file", "w") as file:
    file.write("result")
os.makedirs("directory/nested")
os.symlink("file", "link")
os.link("file", "second name")
os.mkfifo("pipe")
os.mknod("socket", 0o140600)
print(*{(os.lstat(name).st_uid, os.lstat(name).st_gid) for name in os.listdir(".")}, os.getuid(), os.getgid())
"""


def owners(directory: Path) -> dict[str, tuple[int, int]]:
    found = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): (path.lstat().st_uid, path.lstat().st_gid) for path in found}


MADE = ["directory", "directory/nested", "file", "link", "pipe", "second name", "socket"]


@each_sandbox
def test_what_the_child_makes_belongs_to_the_caller_on_the_host_and_to_the_child_in_it(
    client, directory, layers
):
    child = 0 if layers else 1000
    made = run(client, MAKE, Bind(directory, "/out", writable=True), layers=layers)
    assert made == f"({child}, {child}) {child} {child}\n"
    assert owners(directory) == dict.fromkeys(MADE, (os.geteuid(), os.getegid()))
    assert (directory / "file").read_text() == "result"


CALLERS = {
    "a usual one": (1234, 1235),
    "the child's own": (1000, 1000),
    "one beyond the child's": (200_000, 200_001),
}


@pytest.mark.parametrize(("uid", "gid"), CALLERS.values(), ids=CALLERS)
def test_so_it_is_for_a_caller_who_is_not_root(directory, uid, gid):
    os.chown(directory, uid, gid)
    (directory / "before").write_text("the caller's")
    (directory / "before").chmod(0o600)
    os.chown(directory / "before", uid, gid)
    text = run_caller(
        f"""
        code = {MAKE!r} + "print(open('before', 'r+').read())"
        bind = pyspawner.Bind({str(directory)!r}, "/out", writable=True)
        print(run(client, code, sandbox=pyspawner.SandboxConfig(mounts=(bind,))).text)
        """,
        wrapper=as_user(uid, gid),
    )
    assert text.strip() == "(1000, 1000) 1000 1000\nthe caller's"
    assert owners(directory) == dict.fromkeys(["before", *MADE], (uid, gid))


def as_user(uid: int, gid: int) -> list[str]:
    """Another user, with all that root may do with mounts and owners."""
    names = ("chown", "dac_override", "fowner", "kill", "setfcap", "setgid", "setpcap", "setuid", "sys_admin")
    capabilities = ",".join(f"+{name}" for name in names)
    ids = [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    change = ["setpriv", *ids, f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    return [*with_open_interpreter(), *change]


def with_open_interpreter() -> list[str]:
    """Have a program see the interpreter where every user may go, even if it lies in root's home, as pyenv's do."""
    prefix = Path(sys.base_prefix).resolve()
    closed = [parent for parent in reversed(prefix.parents) if not parent.stat().st_mode & 0o001]
    if not closed:
        return []
    script = (
        f"mount --rbind {prefix} /mnt && mount -t tmpfs -o mode=755 tmpfs {closed[0]} && "
        f'mkdir -p {prefix} && mount --move /mnt {prefix} && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@each_sandbox
def test_a_file_can_be_bound_alone_and_written(client, source, layers):
    (source / "file").chmod(0o600)
    code = "print(open('/etc/result', 'r+').write('new'))"
    bind = Bind(source / "file", "/etc/result", writable=True)
    assert run(client, code, bind, layers=layers) == "3\n"
    assert (source / "file").read_text() == "newtent"


def test_what_belongs_to_the_caller_the_child_may_read_and_change(client, source):
    (source / "file").chmod(0o600)
    (source / "inner").chmod(0o700)
    code = """
    import os
    print(open("/out/file").read(), os.listdir("/out/inner"))
    open("/out/inner/new", "w").write("new")
    os.unlink("/out/file")
    """
    assert run(client, code, Bind(source, "/out", writable=True)) == "content []\n"
    assert (source / "inner" / "new").read_text() == "new"
    assert not (source / "file").exists()


OTHERS = """
import attacks, os
for name in ("daemon", "swapped", "beyond"):
    print(name, os.stat(f"/out/{name}").st_uid, os.stat(f"/out/{name}").st_gid)
    attacks.attempt("open", f"/out/{name}")
    attacks.attempt("open for writing", f"/out/{name}")
"""


@pytest.fixture
def of_others(directory):
    """Files of other owners: of a number that the child has too, of the child's own number, and of one that it does not have."""
    for name, owner in (("daemon", 33), ("swapped", 1000), ("beyond", 70_000)):
        (directory / name).touch()
        (directory / name).chmod(0o600)
        os.chown(directory / name, owner, owner)
    return directory


def test_what_belongs_to_others_stays_theirs(client, of_others):
    """The caller and the child's user change places: whose number is the child's own on disk is somebody else too."""
    lines = run(client, OTHERS, Bind(of_others, "/out", writable=True)).splitlines()
    denied = [str(-errno.EACCES)] * 2
    assert lines == ["daemon 33 33", *denied, "swapped 0 0", *denied, "beyond 65534 65534", *denied]


def test_what_everybody_may_write_is_read_only_if_its_owner_is_none_of_the_childs(client, of_others):
    """The kernel lets nobody change what it could not note an owner for."""
    (of_others / "beyond").chmod(0o666)
    code = "import attacks; attacks.attempt('open for writing', '/out/beyond')"
    answer = answers(client, code, Bind(of_others, "/out", writable=True))
    assert answer[0] in (-errno.EACCES, -errno.EOVERFLOW)


def test_a_missing_target_in_it_is_made_for_the_caller(client, directory):
    """What the child's set-up makes on the host belongs to nobody else either."""
    code = "import os; print(os.stat('/out/new').st_uid, os.stat('/out/new/deep').st_uid)"
    seen = run(client, code, Bind(directory, "/out", writable=True), Tmpfs("/out/new/deep"))
    expected = {"new": (os.geteuid(), os.getegid()), "new/deep": (os.geteuid(), os.getegid())}
    assert (seen, owners(directory)) == ("1000 1000\n", expected)


def test_what_is_mounted_below_a_writable_one_does_not_come_along(source, covering):
    code = f"""
    bind = pyspawner.Bind({str(source)!r}, "/out", writable=True)
    sandbox = pyspawner.SandboxConfig(mounts=(bind,))
    print(run(client, "import os; print(os.path.exists('/out/inner/below'))", sandbox=sandbox).text)
    """
    assert run_caller(code, wrapper=covering).strip() == "False"


# Writable: what a hostile child makes of it. --------------------------------------------------------------


@each_sandbox
def test_a_writable_one_is_nosuid_nodev(client, source, layers):
    code = "import os; print(os.statvfs('/out').f_flag)"
    [flags] = answers(client, code, Bind(source, "/out", writable=True), layers=layers)
    assert flags & LOCKED == HARMLESS


REMOUNT = """
import attacks, os
attacks.attempt("open", "/out/null")
# MOUNT_ATTR_NOSUID and MOUNT_ATTR_NODEV, to be cleared.
attributes = attacks._words(0, 6, 0, 0)
for remount in (
    lambda: attacks.call("mount", 0, b"/out", 0, 0x1020, 0),
    lambda: attacks.call("mount_setattr", attacks.AT_FDCWD, b"/out", 0, attributes, 32),
):
    # In a process of its own: a filter may end it.
    if (pid := os.fork()) == 0:
        remount()
        os._exit(0)
    os.waitpid(pid, 0)
print(os.statvfs("/out").f_flag & (os.ST_NOSUID | os.ST_NODEV))
attacks.attempt("open", "/out/null")
"""


@pytest.mark.parametrize("layers", [UNLOCKED_ALONE, ALL], ids=["alone", "all layers"])
def test_nosuid_and_nodev_cannot_be_cleared_to_open_a_device_node(client, source, layers):
    make_null(source)
    sandbox = SandboxConfig(mounts=(Bind(source, "/out", writable=True),), skip_sandbox_except=layers)
    found = support.run(client, REMOUNT, sandbox=sandbox).stdout.split()
    assert list(map(int, found)) == [-errno.EACCES, HARMLESS, -errno.EACCES]


SETUID_BITS = {
    "chmod": "open(path, 'w').close(); os.chmod(path, 0o6755)",
    "fchmod": "os.fchmod(os.open(path, os.O_CREAT | os.O_WRONLY), 0o6755)",
    "fchmodat": "open(path, 'w').close(); os.chmod('program', 0o6755, dir_fd=os.open(place, os.O_PATH))",
    "fchmodat2": "open(path, 'w').close(); attacks.call(452, attacks.AT_FDCWD, path.encode(), 0o6755, 0)",
    "open": "os.open(path, os.O_CREAT | os.O_WRONLY, 0o6755)",
    "openat2": """
how = attacks._words(os.O_CREAT | os.O_WRONLY, 0o6755, 0)
attacks.call(437, attacks.AT_FDCWD, path.encode(), how, 24)
""",
    "mknod": "os.mknod(path, 0o106755)",
}


def setuid_source(way: str) -> str:
    lines = SETUID_BITS[way].strip().replace("; ", "\n").splitlines()
    body = "\n".join(f"    {line}" for line in lines)
    return f"import attacks, os\nos.umask(0)\npath = place + '/program'\ntry:\n{body}\nexcept OSError:\n    pass\n"


@pytest.mark.parametrize("way", SETUID_BITS)
def test_no_file_becomes_setuid_or_setgid_on_the_host(client, directory, way):
    """It would belong to the caller: to root, as a rule, and whoever can reach it on the host could run it."""
    run(client, setuid_source(way), Bind(directory, "/out", writable=True), place="/out")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in directory.glob("program")]
    assert not any(mode & (stat.S_ISUID | stat.S_ISGID) for mode in modes), list(map(oct, modes))


@pytest.mark.parametrize("way", SETUID_BITS)
def test_control_outside_it_does(directory, way):
    program = f"import sys; sys.path[:] = {sys.path!r}\nplace = {str(directory)!r}\n{setuid_source(way)}"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert stat.S_IMODE((directory / "program").stat().st_mode) == 0o6755


def test_a_setuid_program_of_the_callers_gives_the_child_nothing(client, directory):
    """Without ``no_new_privs``: what stops it is the mount. The owner on disk is the child's root there."""
    shutil.copy("/usr/bin/id", directory)
    os.chown(directory / "id", 1000, 1000)
    (directory / "id").chmod(0o4755)
    bind = Bind(directory, "/out", writable=True)
    code = (
        "import subprocess; print(subprocess.run(['/out/id', '-u'], stdout=subprocess.PIPE).stdout.decode())"
    )
    sandbox = frozenset({"setuid"})
    assert run(client, code, bind, layers=sandbox).strip() == "1000"
    done = subprocess.run(
        ["setpriv", "--reuid=1234", "--clear-groups", directory / "id", "-u"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "1000", "the control"


GIVE_AWAY = """
import os
open("/out/file", "w").close()
try:
    os.chown("/out/file", 33, 33)
except OSError as error:
    print(-error.errno)
else:
    print(0)
"""


@pytest.mark.parametrize("layers", [MAPPED_ALONE, ALL], ids=["alone", "all layers"])
def test_no_file_is_given_to_another_user_of_the_host(client, directory, layers):
    run(client, GIVE_AWAY, Bind(directory, "/out", writable=True), layers=layers)
    assert owners(directory) == {"file": (os.geteuid(), os.getegid())}


@each_sandbox
def test_no_file_is_given_to_an_owner_that_the_child_does_not_have(client, directory, layers):
    code = GIVE_AWAY.replace("33, 33", "70000, 70000")
    bind = Bind(directory, "/out", writable=True)
    assert answers(client, code, bind, layers=layers)[0] in (-errno.EPERM, -errno.EINVAL)


MAKE_DEVICES = """
import attacks, os, stat
for kind in (stat.S_IFCHR, stat.S_IFBLK):
    for number in (os.makedev(1, 3), os.makedev(8, 0)):
        path = f"{place}/{kind}-{number}"
        print(attacks.call("mknodat", attacks.AT_FDCWD, path.encode(), kind | 0o666, number))
"""


@each_sandbox
def test_no_device_node_is_made(client, directory, layers):
    bind = Bind(directory, "/out", writable=True)
    assert answers(client, MAKE_DEVICES, bind, layers=layers, place="/out") == [-errno.EPERM] * 4
    assert list(directory.iterdir()) == []


def test_control_outside_they_are_made(directory):
    program = f"import sys; sys.path[:] = {sys.path!r}\nplace = {str(directory)!r}\n{MAKE_DEVICES}"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0"] * 4


MAKE_IMMUTABLE = """
import attacks, ctypes, os
FS_IOC_SETFLAGS = 0x40086602
for flag in (0x10, 0x20):  # FS_IMMUTABLE_FL and FS_APPEND_FL
    descriptor = os.open(f"{place}/{flag}", os.O_CREAT | os.O_RDWR)
    print(attacks.call("ioctl", descriptor, FS_IOC_SETFLAGS, ctypes.byref(ctypes.c_int(flag))))
    # Not left to the control.
    attacks.call("ioctl", descriptor, FS_IOC_SETFLAGS, ctypes.byref(ctypes.c_int(0)))
"""


@each_sandbox
def test_no_file_is_made_that_the_caller_could_not_remove(client, directory, layers):
    bind = Bind(directory, "/out", writable=True)
    assert answers(client, MAKE_IMMUTABLE, bind, layers=layers, place="/out") == [-errno.EPERM] * 2


def test_control_outside_it_is(directory):
    program = f"import sys; sys.path[:] = {sys.path!r}\nplace = {str(directory)!r}\n{MAKE_IMMUTABLE}"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    if str(-errno.ENOTTY) in done.stdout.split():
        pytest.skip("this filesystem has no such flags")
    assert done.stdout.split() == ["0", "0"]


# vfs_ns_cap_data of capabilities(7) version 2: CAP_SYS_ADMIN, effective and permitted.
FILE_CAPABILITIES = bytes.fromhex("0100000200002000000000000000000000000000")
ATTRIBUTES = ["trusted.note", "security.capability", "security.note"]
SET_ATTRIBUTES = """
import os
open(f"{place}/file", "w").close()
for name in names:
    try:
        os.setxattr(f"{place}/file", name, value)
        print(0)
    except OSError as error:
        print(-error.errno)
"""


@pytest.mark.parametrize("layers", [MAPPED_ALONE, ALL], ids=["alone", "all layers"])
def test_no_attribute_that_counts_on_the_host_can_be_set(client, directory, layers):
    bind = Bind(directory, "/out", writable=True)
    options = {"names": ATTRIBUTES, "value": FILE_CAPABILITIES, "layers": layers}
    assert answers(client, SET_ATTRIBUTES, bind, place="/out", **options) == [-errno.EPERM] * 3
    assert os.listxattr(directory / "file") == []


def test_control_outside_the_first_two_can(directory):
    names = {"place": str(directory), "names": ATTRIBUTES[:2], "value": FILE_CAPABILITIES}
    program = "\n".join(f"{name} = {value!r}" for name, value in names.items()) + SET_ATTRIBUTES
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0"]


HANDLES = """
import attacks, ctypes, os
for handle in handles:
    buffer = ctypes.create_string_buffer(handle, len(handle))
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY):
        place = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        print(attacks.call("open_by_handle_at", place, buffer, flags))
"""


def handle_of(path: Path) -> bytes:
    handle = ctypes.create_string_buffer((120).to_bytes(4, "little"), 128)
    mount = ctypes.create_string_buffer(8)
    found = attacks.call("name_to_handle_at", attacks.AT_FDCWD, os.fsencode(path), handle, mount, 0)
    assert found == 0
    return handle.raw


@pytest.mark.parametrize("writable", [False, True], ids=["read-only", "writable"])
def test_file_handles_do_not_lead_out_of_it(client, source, writable):
    """To a directory beside it, and to a file there. Handles can be guessed; open_by_handle_at(2)."""
    secret = source.parent / "secret"
    handles = [handle_of(secret), handle_of(secret / "file")]
    bind = Bind(source, "/data", writable=writable)
    opened = answers(client, HANDLES, bind, layers=ALONE, handles=handles, where="/data")
    assert all(answer in (-errno.EPERM, -errno.ESTALE) for answer in opened), opened

    program = (
        f"import sys; sys.path[:] = {sys.path!r}\nhandles, where = {handles!r}, {str(source)!r}\n{HANDLES}"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    control = list(map(int, done.stdout.split()))
    assert control[0] >= 0, control
    assert control[2] >= 0, control


OUTWARDS = """
import os
for change in (
    lambda: os.link(f"{secret}/file", f"{place}/link"),
    lambda: os.rename(f"{secret}/file", f"{place}/moved"),
    lambda: os.rename(f"{place}/file", f"{secret}/moved"),
):
    try:
        change()
        print(0)
    except OSError as error:
        print(-error.errno)
"""


@each_sandbox
def test_nothing_is_linked_or_moved_across_its_edge(client, source, layers):
    """Although the host's own mount shows both sides of it, and both are of one filesystem."""
    secret = source.parent / "secret"
    secret.chmod(0o777)
    bind = Bind(source, "/out", writable=True)
    found = answers(client, OUTWARDS, bind, layers=layers, place="/out", secret=str(secret))
    assert all(answer in (-errno.EXDEV, -errno.EROFS, -errno.EPERM) for answer in found), found
    assert [path.name for path in secret.iterdir()] == ["file"]
    assert not (source / "link").exists()


MOVED_AWAY = """
import os, sys
os.chdir(place)
print("there", flush=True)
sys.stdin.readline()
try:
    print(sorted(os.listdir("..")))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("writable", [False, True], ids=["read-only", "writable"])
def test_from_a_directory_that_was_moved_out_of_it_there_is_no_way_up(client, source, writable):
    sandbox = SandboxConfig(mounts=(Bind(source, "/data", writable=writable),), skip_sandbox_except=ALONE)
    child = support.spawn(client, MOVED_AWAY, sandbox=sandbox, place="/data/inner")
    assert child.stdout.readline() == b"there\n"
    (source / "inner").rename(source.parent / "secret" / "inner")
    assert support.communicate(child, b"\n").text == os.strerror(errno.ENOENT) + "\n"


def test_control_from_a_directory_that_was_moved_out_of_a_plain_chroot_there_is_one(source):
    program = f"import os\nos.chroot({str(source)!r})\nplace = '/inner'{MOVED_AWAY}"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "there\n"
        (source / "inner").rename(source.parent / "secret" / "inner")
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.read() == "['file', 'inner']\n"


# Sources that are none. -----------------------------------------------------------------------------------


def missing(source: Path) -> Path:
    return source / "missing"


def a_symbolic_link(source: Path) -> Path:
    (source / "link").symlink_to("file")
    return source / "link"


def below_a_file(source: Path) -> Path:
    return source / "file" / "below"


def a_link_of_proc(source: Path) -> Path:
    return Path("/proc/self/ns/net")


BAD_SOURCES = [
    (missing, errno.ENOENT, "does not exist"),
    (a_symbolic_link, errno.ELOOP, "os.path.realpath"),
    (below_a_file, errno.ENOTDIR, ""),
    (a_link_of_proc, errno.ELOOP, "os.path.realpath"),
]


@pytest.mark.parametrize("writable", [False, True], ids=["read-only", "writable"])
@pytest.mark.parametrize("bad", BAD_SOURCES, ids=[make.__name__ for make, *_ in BAD_SOURCES])
def test_a_bad_source_is_an_error_that_says_which_and_what_to_do(client, source, bad, writable):
    make, expected, hint = bad
    mounts = (Bind(source, "/fine"), Bind(make(source), "/data", writable=writable))
    with pytest.raises(pyspawner.SandboxError, match=r"mounts\[1\]") as caught:
        client.spawn_child(["print('it ran')", {}], sandbox_config=SandboxConfig(mounts=mounts))
    assert (caught.value.layer, caught.value.errno) == ("mounts", expected)
    assert hint in caught.value.hint
    assert support.run(client, "print('still works')").text == "still works\n"


@pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])
def test_a_filesystem_that_cannot_map_owners_is_a_clear_error_and_only_if_writable(client, source, layers):
    """Such as proc(5). An overlay is another: ``test_overlay.py``."""
    writable = SandboxConfig(mounts=(Bind("/proc/sys", "/data", writable=True),), skip_sandbox_except=layers)
    with pytest.raises(pyspawner.SandboxError, match=r"mounts\[0\]") as caught:
        client.spawn_child(["print('it ran')", {}], sandbox_config=writable)
    assert (caught.value.layer, caught.value.errno) == ("mounts", errno.EINVAL)
    assert "cannot map the owners" in caught.value.hint
    code = "import os; print('kernel' in os.listdir('/data'))"
    assert run(client, code, Bind("/proc/sys", "/data"), layers=layers) == "True\n"
