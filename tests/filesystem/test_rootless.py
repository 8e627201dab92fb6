"""A caller that is no root: the same view, made in a user namespace of the zygote's own, with the one id that there is.

What runs here as a caller is an ordinary user; the tests themselves are root, so that they can give it things and take them away.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import attacks
import support
from ordinary_user import UID, give
from support import visible_directory

LOCKED = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV


@pytest.fixture
def directory():
    """In sight of children, and the user's."""
    with visible_directory() as directory:
        give(directory)
        yield directory


def spawning(child: str, config: str = "", **names: object) -> str:
    """A caller's source that runs ``child`` with these names and prints what it said, or the error."""
    return textwrap.dedent(f"""
    try:
        sandbox = pyspawner.SandboxConfig({config})
        print(run(client, {textwrap.dedent(child)!r}, sandbox=sandbox, **{names!r}).text, end="")
    except pyspawner.SandboxError as error:
        print(type(error).__name__, error.layer, error.errno, error.hint)
    """)


def run(user, child: str, config: str = "", **names: object) -> str:
    return user.run_caller(spawning(child, config, **names))


def answer(user, attack: str, *arguments: object, config: str = "") -> int:
    child = "import attacks; attacks.attempt(attack, *arguments)"
    return int(run(user, child, config, attack=attack, arguments=arguments))


# The view. --------------------------------------------------------------------------------------------------


def test_the_child_is_an_ordinary_user_without_capabilities(user):
    child = """
    import os
    print(os.getresuid(), os.getresgid(), os.getgroups(), os.getpid())
    print([line for line in open("/proc/self/status") if line.startswith("Cap") and int(line.split()[1], 16)])
    print(*open("/proc/self/uid_map").read().split(), open("/proc/self/setgroups").read().strip())
    """
    expected = f"{(1000,) * 3} {(1000,) * 3} [] 1\n[]\n1000 0 1 deny\n"
    assert run(user, child) == expected


def test_the_handle_says_that_it_is_rootless_and_who_the_child_is(user, client):
    source = """
    child = spawn(client, "")
    communicate(child)
    print(*child.layers)
    print(child.layers["id_map"])
    """
    layers, id_map = user.run_caller(source).splitlines()
    child = support.spawn(client, "")
    support.communicate(child)
    assert layers.split() == list(child.layers), "as for root"
    assert id_map.startswith("rootless: ")
    assert f" {UID} " in id_map


# Of what is mounted over something else, the upper one is in sight.
MOUNTS = """
import os
locks = {"ro": os.ST_RDONLY, "nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV}
for path in {line.split()[4] for line in open("/proc/self/mountinfo")}:
    if os.path.exists(path):
        flags = os.statvfs(path).f_flag
        print(path, *[name for name, lock in locks.items() if not flags & lock])
"""
OWN = {"/tmp", "/var/tmp", "/dev/shm"}
DEVICES = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}


def test_every_mount_is_read_only_nosuid_nodev_but_what_is_its_own(user):
    lacking = {line.split()[0]: set(line.split()[1:]) for line in run(user, MOUNTS).splitlines()}
    assert {path for path, lacks in lacking.items() if "ro" in lacks} == OWN
    assert {path for path, lacks in lacking.items() if "nosuid" in lacks} == set()
    # Pseudoterminals are not mounted there: it is a directory of /dev.
    assert {path for path, lacks in lacking.items() if "nodev" in lacks} - {"/dev/pts"} == {"/dev"} | DEVICES


def test_the_hosts_own_devices_are_not_changed(user):
    """Ordinary users cannot make nodes, so a child has the very ones of the host."""
    before = os.stat("/dev/null")
    child = """
    import os
    try:
        os.utime("/dev/null")
    except OSError as error:
        print(-error.errno)
    """
    assert run(user, child) == f"{-errno.EROFS}\n"
    assert os.stat("/dev/null").st_mtime_ns == before.st_mtime_ns


EMPTY = ["/run", "/sys", "/mnt", "/media", "/home", "/root", "/tmp", "/var/tmp", "/dev/shm"]


def test_what_is_private_is_empty(user):
    child = """
    import json, os
    print(json.dumps({path: sorted(os.listdir(path)) for path in paths if os.path.isdir(path)}))
    """
    found = json.loads(run(user, child, paths=EMPTY))
    assert found.pop("/sys") == ["devices"], "what kind of processors there are"
    assert not any(found.values()), found
    assert {"/run", "/tmp"} <= set(found)


def test_the_root_has_no_way_up_to_what_it_was_made_in(user):
    child = "import os; print(os.stat('/..').st_ino == os.stat('/').st_ino, sorted(os.listdir('/..')) == sorted(os.listdir('/')))"
    assert run(user, child) == "True True\n"


def test_it_has_its_own_processes_only(user):
    child = "import os; print([name for name in os.listdir('/proc') if name.isdigit()])"
    assert run(user, child) == "['1']\n"


def test_it_writes_to_its_own_directories_and_devices_and_nothing_of_that_is_left(user):
    child = """
    import os
    for path in ("/tmp/new", "/var/tmp/new", "/dev/shm/new", "/dev/null"):
        open(path, "w").write("x")
    assert os.stat("/tmp/new").st_uid == os.getuid()
    print(open("/tmp/new").read(), len(open("/dev/urandom", "rb").read(3)))
    """
    assert run(user, child) == "x 3\n"
    assert run(user, "import os; print(os.path.exists('/tmp/new'))") == "False\n"
    assert not Path("/tmp/new").exists()


def test_programs_and_scripts_run(user):
    child = """
    import os, subprocess
    print(subprocess.run(["/bin/echo", "works"], stdout=subprocess.PIPE).stdout.decode(), end="")
    with open("/tmp/script", "w") as script:
        script.write("#!/bin/sh\\necho works too\\n")
    os.chmod("/tmp/script", 0o700)
    print(subprocess.run(["/tmp/script"], stdout=subprocess.PIPE).stdout.decode(), end="")
    """
    assert run(user, child) == "works\nworks too\n"


# A home of the user's. ------------------------------------------------------------------------------------------


def with_a_home(home: Path, uid: int = UID) -> list[str]:
    """A program that runs another on a host whose passwd(5) knows the user."""
    table = home.parent / "passwd"
    table.write_text(f"root:x:0:0:root:/root:/bin/sh\nsomebody:x:{uid}:{uid}::{home}:/bin/sh\n")
    table.chmod(0o644)
    return ["unshare", "--mount", "sh", "-ec", f'mount --bind {table} /etc/passwd; exec "$@"', "sh"]


@pytest.fixture
def home(directory):
    home = directory / "home"
    (home / "modules").mkdir(parents=True)
    (home / "modules" / "some_module.py").write_text("value = 42\n")
    (home / "modules" / "notes").write_text("secret")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id").write_text("secret")
    for path in [home, *home.rglob("*")]:
        give(path)
        path.chmod(0o700 if path.is_dir() else 0o600)
    return home


WALK = """
import os
try:
    import some_module
    print(some_module.value)
except ImportError:
    print("no module")
for path, _, files in os.walk(home):
    print(path.removeprefix(home), sorted(files))
"""


def test_of_the_users_home_only_what_can_be_imported_is_in_sight(user, home):
    prelude = f"import sys; sys.path.append({str(home / 'modules')!r})"
    walk = spawning(WALK, home=str(home))
    lines = user.run_caller(walk, prelude=prelude, wrapper=with_a_home(home)).splitlines()
    assert lines == ["42", " []", "/modules ['some_module.py']"]


def test_the_home_of_a_service_is_hidden_too(user, home):
    """Its uid is below those of people; and the child is that very user."""
    service = 642
    for path in [home, *home.rglob("*")]:
        os.chown(path, service, service)
    text = user.run_caller(spawning(WALK, home=str(home)), wrapper=with_a_home(home, service), uid=service)
    assert text.splitlines() == ["no module", " []"]


def test_private_files_of_the_users_elsewhere_can_be_read_as_documented(user, directory):
    (directory / "private").write_text("secret")
    give(directory / "private")
    (directory / "private").chmod(0o600)
    assert run(user, "print(open(path).read())", path=str(directory / "private")) == "secret\n"


def test_private_files_of_others_cannot(user, directory):
    (directory / "private").write_text("secret")
    (directory / "private").chmod(0o600)
    assert answer(user, "open", str(directory / "private")) == -errno.EACCES


CHANGE = f"""
import attacks, json, os
os.umask(0)
print(json.dumps({{name: attacks.answer(name, f"{{top}}/{{name}}") for name in {list(attacks.ON_FILES)!r}}}))
"""


def lay_out(top: Path) -> None:
    for name in attacks.ON_FILES:
        (top / name / "inner").mkdir(parents=True)
        for file in ("file", "other"):
            (top / name / file).write_text("original")
            (top / name / file).chmod(0o666)
    for path in [top, *top.rglob("*")]:
        give(path)


def state(top: Path) -> dict[str, object]:
    stats = {str(path): path.lstat() for path in [top, *top.rglob("*")]}
    return {
        path: (seen.st_mode, seen.st_uid, seen.st_size, seen.st_nlink, seen.st_mtime_ns, seen.st_ctime_ns)
        for path, seen in stats.items()
    }


@pytest.mark.parametrize(
    "config", ["", "skip_sandbox_except=frozenset({'none'})"], ids=["all layers", "mounts alone"]
)
def test_the_users_own_files_are_not_changed(user, directory, config):
    lay_out(directory)
    before = state(directory)
    found = json.loads(run(user, CHANGE, config, top=str(directory)))
    assert {name: answer for name, answer in found.items() if answer >= 0} == {}
    assert state(directory) == before


def test_control_outside_the_user_changes_them(user, directory):
    lay_out(directory)
    found = json.loads(user.python(f"top = {str(directory)!r}\n{CHANGE}"))
    # It came with Linux 6.17.
    assert {name for name, answer in found.items() if answer < 0} <= {"set a flag by path"}


# What it is given. ----------------------------------------------------------------------------------------------


@pytest.fixture
def source(directory):
    """A directory of the user's with a file of its own and one of root's."""
    source = directory / "source"
    (source / "inner").mkdir(parents=True)
    (source / "file").write_text("original")
    give(source)
    for path in source.rglob("*"):
        give(path)
    (source / "roots").write_text("root's")
    (source / "roots").chmod(0o600)
    return source


def owners(top: Path) -> dict[str, int]:
    return {str(path.relative_to(top)): path.lstat().st_uid for path in top.rglob("*")}


def test_a_bind_can_be_read_and_not_written(user, source):
    child = """
    import attacks
    print(open("/in/file").read())
    for name, path in (("open", "/in/roots"), ("open for writing", "/in/file"), ("create a file", "/in")):
        attacks.attempt(name, path)
    """
    lines = run(user, child, f"mounts=(pyspawner.Bind({str(source)!r}, '/in'),)").splitlines()
    assert lines[:2] == ["original", str(-errno.EACCES)]
    assert {int(answer) for answer in lines[2:]} <= {-errno.EROFS, -errno.EACCES}


def test_a_file_can_be_bound(user, source):
    bind = f"mounts=(pyspawner.Bind({str(source / 'file')!r}, '/etc/passwd'),)"
    assert run(user, "print(open('/etc/passwd').read())", bind) == "original\n"


def test_what_is_written_to_a_writable_bind_belongs_to_the_user(user, source):
    child = """
    import os
    open("/out/new", "w").write("written")
    open("/out/file", "w").write("changed")
    os.mkdir("/out/made")
    print(os.stat("/out/new").st_uid, os.stat("/out").st_uid, os.stat("/out/roots").st_uid)
    """
    bind = f"mounts=(pyspawner.Bind({str(source)!r}, '/out', writable=True),)"
    assert run(user, child, bind) == "1000 1000 65534\n"
    assert owners(source) == {"new": UID, "file": UID, "made": UID, "inner": UID, "roots": 0}
    assert (source / "file").read_text() == "changed"


SETUID_BITS = """
import os
for change in (
    lambda: os.chmod(place + "/file", 0o6755),
    lambda: os.open(place + "/new", os.O_CREAT | os.O_WRONLY, 0o6755),
    lambda: os.mknod(place + "/node", 0o106755),
):
    try:
        change()
    except OSError:
        pass
"""


def set_id_files(directory: Path) -> set[str]:
    bits = stat.S_ISUID | stat.S_ISGID
    return {path.name for path in directory.iterdir() if path.lstat().st_mode & bits}


def test_no_file_in_a_writable_bind_becomes_setuid_or_setgid(user, source):
    bind = f"mounts=(pyspawner.Bind({str(source)!r}, '/out', writable=True),)"
    run(user, SETUID_BITS, bind, place="/out")
    assert set_id_files(source) == set()


def test_control_outside_all_three_become_so(user, source):
    user.python(f"place = {str(source)!r}\n{SETUID_BITS}")
    assert set_id_files(source) == {"file", "new", "node"}


def test_a_writable_bind_of_a_directory_that_is_roots_can_only_be_read(user, source):
    os.chown(source, 0, 0)
    child = "import attacks; attacks.attempt('create a file', '/out'); print(open('/out/file').read())"
    bind = f"mounts=(pyspawner.Bind({str(source)!r}, '/out', writable=True),)"
    assert run(user, child, bind) == f"{-errno.EACCES}\noriginal\n"


def test_what_is_hidden_can_be_given(user):
    with tempfile.TemporaryDirectory(prefix="pyspawner-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        Path(name, "file").write_text("given")
        bind = f"mounts=(pyspawner.Bind({name!r}, '/in'),)"
        assert run(user, "print(open('/in/file').read())", bind) == "given\n"


def test_what_the_user_cannot_open_cannot_be_given(user, directory):
    closed = directory / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    told = run(user, "print('it ran')", f"mounts=(pyspawner.Bind({str(closed / 'inner')!r}, '/in'),)")
    assert told.split()[:3] == ["SandboxError", "mounts", str(errno.EACCES)]


def test_a_directory_becomes_the_root(user, source):
    child = "import os; print(sorted(os.listdir('/')), os.statvfs('/').f_flag, os.path.exists('/../etc'))"
    listing, flags, outside = run(user, child, f"chroot_dir={str(source)!r}").rsplit(" ", 2)
    assert listing == "['file', 'inner', 'roots']"
    assert int(flags) & LOCKED == LOCKED
    assert outside == "False\n"


def test_an_overlay_leaves_the_original_as_it_is(user, source):
    child = """
    import os
    open("/file", "w").write("changed")
    os.rmdir("/inner")
    os.mkdir("/new")
    print(sorted(os.listdir("/")), open("/file").read())
    """
    before = state(source)
    config = f"chroot_dir={str(source)!r}, mounts=(pyspawner.Overlay(),)"
    assert run(user, child, config) == "['file', 'new', 'roots'] changed\n"
    assert state(source) == before


def test_an_overlay_keeps_its_changes_for_the_user(user, source, directory):
    (directory / "upper").mkdir()
    give(directory / "upper")
    overlay = f"pyspawner.Overlay('/out', lower={str(source)!r}, upper={str(directory / 'upper')!r})"
    run(user, "open('/out/file', 'w').write('changed')", f"mounts=({overlay},)")
    assert (directory / "upper" / "changes" / "file").read_text() == "changed"
    assert set(owners(directory / "upper" / "changes").values()) == {UID}
    # The next one goes on there.
    assert run(user, "print(open('/out/file').read())", f"mounts=({overlay},)") == "changed\n"
    # What is the kernel's there, the user can remove.
    user.python(
        f"import subprocess; subprocess.run(['rm', '-r', '-f', {str(directory / 'upper')!r}], check=True)"
    )
    assert not (directory / "upper").exists()


def test_filesystems_in_memory_and_devices(user):
    child = """
    import os
    open("/scratch/file", "w").write("x")
    print(os.stat("/scratch").st_uid, os.statvfs("/scratch").f_blocks * os.statvfs("/scratch").f_frsize)
    leader, follower = os.openpty()
    os.write(leader, b"works\\n")
    print(os.read(follower, 6).decode(), end="")
    """
    config = "mounts=(pyspawner.Tmpfs('/scratch', size_bytes=1024 * 1024), pyspawner.Dev(ptmx=True))"
    assert run(user, child, config) == f"1000 {1024 * 1024}\nworks\n"


def test_proc_and_devices_in_a_root(user, source):
    child = "import os; print(os.listdir('/other/proc').count('1'), open('/dev/null').read(), os.listdir('/dev/shm'))"
    config = f"chroot_dir={str(source)!r}, mounts=(pyspawner.Proc('/other/proc'), pyspawner.Dev())"
    assert run(user, child, config) == "1  []\n"


def test_working_dir(user, source):
    assert run(user, "import os; print(os.getcwd())", f"working_dir={str(source)!r}") == f"{source}\n"


def test_a_result_is_opened_safely(user, source):
    caller = f"""
    bind = pyspawner.Bind({str(source)!r}, "/out", writable=True)
    child = "import os; open('/out/result', 'w').write('42'); os.symlink('/etc/passwd', '/out/link')"
    run(client, child, sandbox=pyspawner.SandboxConfig(mounts=(bind,))).text
    with pyspawner.open_beneath({str(source)!r}, "result") as result:
        print(result.read())
    try:
        pyspawner.open_beneath({str(source)!r}, "link")
    except OSError as error:
        print(error.errno)
    """
    assert user.run_caller(caller) == f"b'42'\n{errno.ELOOP}\n"


# What cannot be had. ---------------------------------------------------------------------------------------------

STALE = """
source = {source!r}
{change}
try:
    print(run(client, "print(open('/in/file').read())", sandbox=pyspawner.SandboxConfig(mounts=(pyspawner.Bind(source, "/in"),))).text)
except pyspawner.SandboxError as error:
    print(error.layer, error.errno, error.hint)
    print(run(client, "print('still works')").text)
"""


def test_a_source_below_a_directory_that_was_renamed_is_found_where_it_is_now(user, source):
    moved = source.with_name("moved")
    change = f"import os; os.rename(source, {str(moved)!r}); source = {str(moved)!r}"
    assert user.run_caller(STALE.format(source=str(source), change=change)).strip() == "original"


MOUNT_WHEN_READY = """
import subprocess, sys
caller = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert caller.stdout.readline() == "made\\n"
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
print(caller.communicate("\\n")[0], end="")
sys.exit(caller.returncode)
"""


def test_a_source_that_was_mounted_since_the_client_was_made_is_an_error_that_says_so(user, source):
    """By the host's root. The zygote has a view of its own, in which it is not."""
    change = "print('made', flush=True); input()"
    wrapper = ["unshare", "--mount", sys.executable, "-c", MOUNT_WHEN_READY, str(source)]
    told = user.run_caller(STALE.format(source=str(source), change=change), wrapper=wrapper)
    refused, works = told.strip().splitlines()
    assert refused.startswith(f"mounts {errno.ESTALE} ")
    assert "mounted since the Client was made" in refused
    assert works == "still works"


def test_a_network_is_an_error_that_says_what_is_missing(user):
    told = run(user, "print('it ran')", "network=pyspawner.NetworkConfig()")
    assert told.startswith(f"NetlinkError network {errno.EPERM} ")
    assert "CAP_NET_ADMIN" in told


def test_without_one_there_is_only_a_lo_that_is_down(user):
    child = """
    import socket
    print([line.split()[0] for line in open("/proc/net/dev") if ":" in line])
    try:
        socket.create_connection(("127.0.0.1", 1), 1)
    except OSError as error:
        print(error.errno)
    """
    assert run(user, child) == f"['lo:']\n{errno.ENETUNREACH}\n"


NO_NAMESPACES = {
    "a sysctl": "obstacles.limit_namespaces('user')",
    "a seccomp profile": f"obstacles.refuse({errno.EPERM}, 'unshare', 'clone3')",
}


@pytest.mark.parametrize("obstacle", NO_NAMESPACES)
def test_where_ordinary_users_have_no_user_namespaces_the_error_says_so(user, obstacle):
    # What it does stays with its process, and so with its zygotes.
    program = f"""
import os, sys
import obstacles
{NO_NAMESPACES[obstacle]}
os.setgroups([])
os.setresgid({UID}, {UID}, {UID})
os.setresuid({UID}, {UID}, {UID})
from support import *
with pyspawner.Client(child_main="support.run_source") as client:
    for _ in range(2):
        try:
            print(run(client, "print('it ran')").text)
        except pyspawner.SandboxError as error:
            print(error.layer, error.errno, error.hint)
"""
    lines = user.python(program, uid=None).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("id_map ")
        for word in ("user.max_user_namespaces", "apparmor_restrict_unprivileged_userns", "root", "Docker"):
            assert word in line


# Supplementary groups, which stay. -----------------------------------------------------------------------------------

GROUP = 54_399


def with_the_group(user, child: str = "print('it ran')") -> str:
    return user.run_caller(spawning(child), groups=[GROUP])


def test_a_group_that_opens_nothing_is_no_obstacle(user, directory):
    (directory / "file").write_text("for all")
    os.chown(directory / "file", 0, GROUP)
    (directory / "file").chmod(0o644)
    assert with_the_group(user) == "it ran\n"


def a_file(directory: Path) -> None:
    (directory / "secret").write_text("secret")
    os.chown(directory / "secret", 0, GROUP)
    (directory / "secret").chmod(0o640)


def a_file_to_write(directory: Path) -> None:
    (directory / "file").write_text("for all to read")
    os.chown(directory / "file", 0, GROUP)
    (directory / "file").chmod(0o664)


def a_directory(directory: Path) -> None:
    (directory / "closed").mkdir()
    os.chown(directory / "closed", 0, GROUP)
    (directory / "closed").chmod(0o750)


def a_file_deep_down(directory: Path) -> None:
    (directory / "a" / "b").mkdir(parents=True)
    a_file(directory / "a" / "b")


def an_acl(directory: Path) -> None:
    """In the form of acl(5): the owner reads and writes, this group reads, nobody else does."""
    (directory / "secret").write_text("secret")
    (directory / "secret").chmod(0o600)
    nobody = 0xFFFF_FFFF
    entries = [(1, 6, nobody), (4, 0, nobody), (8, 4, GROUP), (16, 4, nobody), (32, 0, nobody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(directory / "secret", "system.posix_acl_access", acl)


@pytest.mark.parametrize("open_more", [a_file, a_file_to_write, a_directory, a_file_deep_down, an_acl])
def test_a_group_that_opens_what_strangers_may_not_have_is_an_error(user, directory, open_more):
    open_more(directory)
    told = with_the_group(user)
    assert told.startswith(f"SandboxError id_map {errno.EACCES} ")
    assert "supplementary groups" in told
    assert "setpriv --clear-groups" in told


@pytest.mark.parametrize("open_more", [a_file, an_acl])
def test_control_the_group_opens_it_outside(user, directory, open_more):
    open_more(directory)
    source = f"import attacks; attacks.attempt('open', {str(directory / 'secret')!r})"
    assert int(user.python(source)) == -errno.EACCES
    assert int(user.python(source, groups=[GROUP])) >= 0


def test_what_is_hidden_does_not_count(user):
    with tempfile.TemporaryDirectory(prefix="pyspawner-test-", dir="/var/tmp") as name:
        a_file(Path(name))
        assert with_the_group(user) == "it ran\n"


def test_the_next_child_works_when_the_file_is_gone(user, directory):
    a_file(directory)
    spawns = spawning("print('it ran')")
    caller = f"{spawns}\nos.unlink({str(directory / 'secret')!r})\n{spawns}"
    lines = user.run_caller(caller, groups=[GROUP]).splitlines()
    assert lines[0].startswith("SandboxError id_map")
    assert lines[1:] == ["it ran"]


# A hostile child: to the kernel it is the caller's user. ----------------------------------------------------------------


def test_it_finds_no_process_of_the_callers(user):
    caller = """
    import attacks, os
    found = {name: attack(client, f"{name} of a process", os.getpid()) for name in attacks.ON_A_PROCESS}
    print({name: outcome.stdout for name, outcome in found.items() if outcome.exitcode == 0 and int(outcome.stdout) >= 0})
    print(attacks.answer("kill of a process", os.getpid()), attack(client, "kill of a process", os.getpid()).text)
    """
    allowed, kills = user.run_caller(caller).strip().splitlines()
    assert allowed == "{}"
    assert kills == f"0 {-errno.ESRCH}"


def test_a_signal_to_all_hits_nobody(user):
    child = """
    import os, signal
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        print("nobody")
    """
    assert run(user, child) == "nobody\n"


def test_the_priority_of_the_users_other_processes_stays(user):
    """Although priorities can be set for a user as a whole; setpriority(2)."""
    child = """
    import os
    os.setpriority(os.PRIO_USER, os.getuid(), 19)
    print(os.getpriority(os.PRIO_PROCESS, 0))
    """
    caller = f"""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    print(run(client, {textwrap.dedent(child)!r}).text, end="")
    print(os.getpriority(os.PRIO_PROCESS, 0) == before)
    """
    assert user.run_caller(caller) == "19\nTrue\n"


@pytest.mark.skipif(attacks.call(444, 0, 0, 1) < 1, reason="this kernel has no Landlock")
def test_nothing_is_written_to_a_pipe_of_the_users(user, directory):
    os.mkfifo(directory / "pipe")
    give(directory / "pipe")
    reader = os.open(directory / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        pipe = str(directory / "pipe")
        assert answer(user, "write", pipe, "x") == -errno.EACCES
        assert answer(user, "write", pipe, "x", config="max_landlock_abi=0") == 1, "the control"
        assert os.read(reader, 2) == b"x"
    finally:
        os.close(reader)


def test_siblings_do_not_find_each_other(user):
    caller = """
    sibling = spawn(client, "import time; print('ready', flush=True); time.sleep(1000)")
    sibling.stdout.readline()
    print(attack(client, "kill of a process", sibling.pid).text, end="")
    print(sibling.wait(os.WNOHANG))
    sibling.kill()
    communicate(sibling)
    """
    assert user.run_caller(caller) == f"{-errno.ESRCH}\n(0, 0)\n"


def test_abstract_sockets_and_shared_memory_of_the_callers_are_out_of_reach(user):
    caller = """
    import attacks, ctypes, socket
    name = f"pyspawner-test-{os.getpid()}"
    service = socket.socket(socket.AF_UNIX)
    service.bind("\\0" + name)
    service.listen()
    libc = ctypes.CDLL(None)
    segment = libc.shmget(4242, 4096, 0o1600)
    try:
        for what, argument in (("connect to an abstract socket", name), ("attach to shared memory", 4242)):
            print(attacks.answer(what, argument) >= 0, attack(client, what, argument).text, end="")
    finally:
        libc.shmctl(segment, 0, None)
    """
    expected = f"True {-errno.ECONNREFUSED}\nTrue {-errno.ENOENT}\n"
    assert user.run_caller(caller, wrapper=["unshare", "--ipc"]) == expected


ESCAPES = {
    "the covers": "attacks.call('umount2', b'/root', 2)",
    "the cover of /run": "attacks.call('umount2', b'/run', 2)",
    "what lies below its own /proc": "attacks.call('umount2', b'/proc', 2) or attacks.call('umount2', b'/proc', 2)",
    "the root's flags": "attacks.call('mount', 0, b'/', 0, 0x1020, 0)",
    "the root itself": "attacks.call('umount2', b'/', 2)",
    "the zygote's ids": "attacks._write('/proc/self/uid_map', '0 0 1')",
    "a device": "attacks.call('mknodat', -100, b'/tmp/null', 0o20666, 0x103)",
}


@pytest.mark.parametrize("what", ESCAPES)
def test_a_child_with_all_its_own_capabilities_does_not_lift(user, what):
    child = f"""
    import attacks
    try:
        print({ESCAPES[what]})
    except OSError as error:
        print(-error.errno)
    """
    answer = run(user, child, "skip_sandbox_except=frozenset({'none'})")
    assert int(answer) in (-errno.EPERM, -errno.EINVAL, -errno.EROFS, -errno.EACCES, -errno.EBUSY)


SEND_WITHOUT_END = """
import errno, os, socket, sys
descriptors = [os.dup(0) for _ in range(200)]
pairs = []
try:
    while True:
        pairs.append(socket.socketpair())
        pairs[-1][0].setblocking(False)
        try:
            while True:
                socket.send_fds(pairs[-1][0], [b"x"], descriptors)
        except BlockingIOError:
            pass
except OSError:
    pass
print("ready", flush=True)
"""


def test_it_cannot_keep_the_caller_from_making_children(user):
    """Descriptors on their way through sockets are counted for the user, and the caller sends some itself."""
    caller = f"""
    greedy = spawn(client, {SEND_WITHOUT_END + "sys.stdin.read()"!r})
    greedy.stdout.readline()
    try:
        print(run(client, "print('works')").text, end="")
    finally:
        greedy.kill()
        communicate(greedy)
    """
    assert user.run_caller(caller) == "works\n"


def test_control_outside_one_process_of_the_users_keeps_another_from_sending(user):
    program = f"""{SEND_WITHOUT_END}
if os.fork() == 0:
    pair = socket.socketpair()
    try:
        socket.send_fds(pair[0], [b"x"], [0])
    except OSError as error:
        print(error.errno == errno.ETOOMANYREFS, flush=True)
    os._exit(0)
os.wait()
"""
    assert user.python(program) == "ready\nTrue\n"


TAKE_A_LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(path, os.O_RDONLY)
try:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
except OSError:
    pass
print("ready", flush=True)
"""
OPEN_FOR_WRITING = """
try:
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    print("opened")
except BlockingIOError:
    print("it must wait")
"""


@pytest.fixture
def file(directory):
    (directory / "file").write_text("the caller's")
    give(directory / "file")
    return directory / "file"


def test_it_cannot_keep_the_caller_from_its_own_files(user, file):
    """Who has a lease on a file is asked before anybody else opens it for writing, and has time to answer; fcntl(2)."""
    caller = (
        f"path = {str(file)!r}\n"
        f"holder = spawn(client, {TAKE_A_LEASE + 'sys.stdin.read()'!r}, path=path)\n"
        f"holder.stdout.readline()\n{OPEN_FOR_WRITING}\ncommunicate(holder)\n"
    )
    assert user.run_caller(caller) == "opened\n"


def test_control_outside_a_process_of_the_users_can(user, file):
    assert user.python(f"path = {str(file)!r}\n{TAKE_A_LEASE}{OPEN_FOR_WRITING}") == "ready\nit must wait\n"


def test_nothing_is_left_behind(user, directory):
    """No mount that the host sees, no process, no file."""
    mounts = Path("/proc/self/mountinfo").read_text()
    before = state(directory)
    caller = """
    for _ in range(3):
        run(client, "import os; os.fork(); open('/tmp/x', 'w')")
    """
    user.run_caller(caller)
    assert user.processes() == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert state(directory) == before


NO_IDS = """
import pyspawner
try:
    pyspawner.Client(child_main="support.run_source")
except pyspawner.ZygoteStartError as error:
    print(error)
"""


def test_user_namespaces_that_get_no_ids_are_an_error_that_names_the_switch(user):
    """As AppArmor has it on some hosts. Here it is a read-only /proc that takes no map."""
    wrapper = ["unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro /proc && exec "$@"', "sh"]
    assert "kernel.apparmor_restrict_unprivileged_userns" in user.python(NO_IDS, wrapper=wrapper)
