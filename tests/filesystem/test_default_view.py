"""What a child sees by default: the host's tree, read-only, and in place of what is private an own or an empty directory."""

from __future__ import annotations

import errno
import json
import os
import ssl
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

import pyspawner
import support
from support import SANDBOX, attack, attack_outside, only, run_caller

ALONE = only()
each_sandbox = pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])

LOCKED = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
PRIVATE = ["/tmp", "/var/tmp", "/dev/shm"]
# Those that there are: not every host has all of them.
EMPTY = [
    path for path in ("/run", "/var/run", "/sys", "/mnt", "/media", "/home", "/root") if os.path.isdir(path)
]


CHECKOUT = Path(support.__file__).resolve().parents[1]
KEEP = f"exec 9< {CHECKOUT}"
# Whatever has been mounted over it, what the caller is made of stays where it is.
RESTORE = (
    f"test -d {CHECKOUT}/tests || {{ mkdir -p {CHECKOUT}; mount -c --rbind /proc/self/fd/9 {CHECKOUT}; }}"
)


def host(*commands: str) -> list[str]:
    """A host of another kind: a program that runs a caller in a mount namespace of its own, after these shell commands."""
    script = [KEEP, *commands, RESTORE, "exec 9<&-", 'exec "$@"']
    return ["unshare", "--mount", "sh", "-ec", "\n".join(script), "sh"]


# The tree. ---------------------------------------------------------------------------------------------------

MOUNTS = """
import json
table = [line.split() for line in open("/proc/self/mountinfo")]
print(json.dumps([[number, parent, path, options.split(",")] for number, parent, _, _, path, options, *_ in table]))
"""


@each_sandbox
def test_every_mount_is_read_only_but_the_private_ones_and_none_has_devices_but_dev(client, sandbox):
    mounts = json.loads(support.run(client, MOUNTS, sandbox=sandbox).text)
    writable = [path for *_, path, options in mounts if "ro" not in options]
    # Two are under a cover that cannot be lifted: see test_what_is_under_the_cover_of_proc_is_out_of_reach.
    assert sorted(writable) == sorted([*PRIVATE, "/proc/proc", "/proc/scratch"])
    assert [path for *_, path, options in mounts if "nosuid" not in options] == []
    assert [path for *_, path, options in mounts if "nodev" not in options] == ["/dev"]


@each_sandbox
def test_the_old_root_is_gone(client, sandbox):
    """There is one root, it is the topmost mount, and in it lies what the host has."""
    mounts = json.loads(support.run(client, MOUNTS, sandbox=sandbox).text)
    numbers = {number for number, *_ in mounts}
    assert [path for _, parent, path, _ in mounts if parent not in numbers] == ["/"]
    listing = support.run(client, "import os; print(sorted(os.listdir('/')))", sandbox=sandbox).text
    assert listing == f"{sorted(os.listdir('/'))}\n"


UNDER_PROC = """
import attacks, os
for detach in (0, 2):
    print(attacks.call("umount2", b"/proc", detach), os.path.exists("/proc/self"), os.path.exists("/proc/mask"))
print(os.listdir("/proc"), attacks.call("umount2", b"/proc/proc", 2), attacks.call("umount2", b"/proc/scratch", 2))
"""


def test_what_is_under_the_cover_of_proc_is_out_of_reach(client):
    """There the zygote keeps what children take from it at their birth. A child can lift its own /proc, and not the cover."""
    first, second, listing = support.run(client, UNDER_PROC, sandbox=only()).text.splitlines()
    # Its masks keep it busy; lazily it goes, with them.
    assert (first, second) == (f"{-errno.EBUSY} True False", "0 False False")
    assert listing == f"[] {-errno.ENOENT} {-errno.ENOENT}"
    again = f"{UNDER_PROC}\nprint(attacks.call('umount2', b'/proc', 2), attacks.call('umount2', b'/proc', 2))"
    assert (
        support.run(client, again, sandbox=only()).text.splitlines()[-1] == f"{-errno.EINVAL} {-errno.EINVAL}"
    )


def test_a_file_of_the_hosts_can_be_read(client, directory):
    (directory / "file").write_text("of the host")
    source = "import pathlib; print(pathlib.Path(file).read_text())"
    assert support.run(client, source, file=str(directory / "file")).text == "of the host\n"


NOEXEC = 8
SUBMOUNTS = f"""
paths = [top + name for name in ("/plain", "/plain/deep", "/bind", "/noexec")]
look = "import os; print([os.statvfs(path).f_flag & {LOCKED | NOEXEC} for path in paths], os.listdir(paths[1]))"
for sandbox in (only(), SANDBOX):
    print(run(client, look, sandbox=sandbox, paths=paths).text.strip())
run_source(look, {{"paths": paths}})
"""


def test_mounts_in_the_tree_are_visible_and_as_locked_as_the_tree(directory):
    for name in ("plain", "bind", "noexec"):
        (directory / name).mkdir()
    wrapper = host(
        f"cd {directory}",
        "mount -t tmpfs none plain",
        "mkdir plain/deep",
        "mount -t tmpfs none plain/deep",
        "touch plain/deep/file",
        "mount --bind plain bind",
        "mount -t tmpfs -o noexec none noexec",
    )
    alone, with_all, outside = run_caller(
        f"top = {str(directory)!r}\n{SUBMOUNTS}", wrapper=wrapper
    ).splitlines()
    assert alone == with_all == f"{[LOCKED, LOCKED, LOCKED, LOCKED | NOEXEC]} ['file']"
    assert outside == f"{[0, 0, 0, NOEXEC]} ['file']", "the control"


# /proc. ------------------------------------------------------------------------------------------------------

PROCESSES = """
import os, subprocess
processes = [name for name in os.listdir("/proc") if name.isdigit()]
print(processes, os.readlink("/proc/self"), os.path.exists(f"/proc/{caller}"), os.path.exists(f"/proc/{zygote}"))
print(subprocess.run(["sh", "-c", "echo /proc/[0-9]*"], stdout=subprocess.PIPE, text=True).stdout.split())
"""


@each_sandbox
def test_proc_has_the_childs_own_processes_and_no_other(client, sandbox):
    numbers = {"caller": os.getpid(), "zygote": client._zygotes.current.zygote_pid}
    told = support.run(client, PROCESSES, sandbox=sandbox, **numbers).text.splitlines()
    assert told == ["['1'] 1 False False", "['/proc/1', '/proc/2']"]


@each_sandbox
@pytest.mark.parametrize(
    "name", ["self/comm", "self/oom_score_adj", "self/coredump_filter", "sys/kernel/core_pattern"]
)
def test_proc_cannot_be_written_to(client, name, sandbox):
    answer = int(attack(client, "open for writing", f"/proc/{name}", sandbox=sandbox).text)
    assert answer in (-errno.EROFS, -errno.EACCES)
    assert attack_outside("open for writing", f"/proc/{name}") >= 0, "the control"


def test_all_of_proc_is_a_read_only_mount(client):
    source = "import os; print(os.statvfs('/proc').f_flag)"
    assert int(support.run(client, source, sandbox=ALONE).text) & (LOCKED | NOEXEC) == LOCKED | NOEXEC


MASKED = [
    *(
        "acpi",
        "asound",
        "kcore",
        "key-users",
        "keys",
        "latency_stats",
        "sched_debug",
        "scsi",
        "sysrq-trigger",
    ),
    "timer_list",
]
LOOK_AT_MASKED = """
import attacks, json, os
def content(name):
    path = "/proc/" + name
    try:
        return sorted(os.listdir(path)) if os.path.isdir(path) else len(open(path, "rb").read(64))
    except OSError as error:
        return -error.errno
print(json.dumps({name: content(name) for name in names if os.path.lexists("/proc/" + name)}))
"""


@each_sandbox
def test_what_proc_tells_of_the_host_and_other_users_cannot_be_read(client, sandbox):
    masked = json.loads(support.run(client, LOOK_AT_MASKED, sandbox=sandbox, names=MASKED).text)
    assert masked == dict.fromkeys(masked, -errno.EACCES)
    assert {"keys", "key-users"} <= set(masked), "these are in every /proc"


def test_control_outside_it_can():
    assert Path("/proc/keys").read_text() != ""
    assert Path("/proc/key-users").read_text() != ""


# /dev. --------------------------------------------------------------------------------------------------------

DEVICES = ["full", "null", "random", "urandom", "zero"]
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


@each_sandbox
def test_dev_has_five_devices_and_five_links_and_two_directories(client, sandbox):
    source = """
    import json, os, stat
    def kind(path):
        mode = os.lstat(path).st_mode
        return os.readlink(path) if stat.S_ISLNK(mode) else stat.filemode(mode)
    print(json.dumps({name: kind("/dev/" + name) for name in os.listdir("/dev")}))
    """
    expected = {
        **dict.fromkeys(DEVICES, "crw-rw-rw-"),
        **LINKS,
        "shm": "drwxrwxrwt",
        "pts": "drwxr-xr-x",
    }
    assert json.loads(support.run(client, source, sandbox=sandbox).text) == expected


USE_DEVICES = """
import json, os
def numbers(name):
    return [os.major(os.stat("/dev/" + name).st_rdev), os.minor(os.stat("/dev/" + name).st_rdev)]
def read(name):
    with open("/dev/" + name, "rb", buffering=0) as device:
        return device.read(16)
def write(name):
    try:
        with open("/dev/" + name, "wb", buffering=0) as device:
            return device.write(b"x")
    except OSError as error:
        return -error.errno
print(json.dumps([
    {name: numbers(name) for name in devices},
    read("null") == b"", read("zero") == read("full") == bytes(16),
    [len({read(name), read(name), bytes(16)}) for name in ("random", "urandom")],
    {name: write(name) for name in devices},
]))
"""


@each_sandbox
def test_each_device_works(client, sandbox):
    told = json.loads(support.run(client, USE_DEVICES, sandbox=sandbox, devices=DEVICES).text)
    numbers, null, zeros, random, written = told
    assert numbers == {"null": [1, 3], "zero": [1, 5], "full": [1, 7], "random": [1, 8], "urandom": [1, 9]}
    assert (null, zeros, random) == (True, True, [3, 3])
    assert written == {**dict.fromkeys(DEVICES, 1), "full": -errno.ENOSPC}


@each_sandbox
def test_the_standard_streams_can_be_opened_by_their_names(client, sandbox):
    source = """
    import os
    print(open("/dev/stdin").read(), sorted(map(int, os.listdir("/dev/fd")))[:3], file=open("/dev/stdout", "w"), flush=True)
    open("/dev/stderr", "w").write("error")
    """
    outcome = support.run(client, source, stdin=b"input", sandbox=sandbox)
    assert (outcome.stdout, outcome.stderr) == (b"input [0, 1, 2]\n", b"error")


@each_sandbox
def test_there_is_no_pseudoterminal(client, sandbox):
    source = (
        "import os; print(os.path.lexists('/dev/ptmx'), os.path.exists('/dev/ptmx'), os.listdir('/dev/pts'))"
    )
    assert support.run(client, source, sandbox=sandbox).text == "True False []\n"
    outcome = support.run(client, "import os; os.openpty()", sandbox=sandbox)
    assert outcome.exitcode == 1
    for descriptor in os.openpty():
        os.close(descriptor)


# Directories of the child's own. -----------------------------------------------------------------------------

PRIVATE_DIRECTORY = """
import json, os, sys
seen, filesystem = os.stat(directory), os.statvfs(directory)
print(json.dumps([oct(seen.st_mode), sorted(os.listdir(directory)), seen.st_dev, filesystem.f_flag & 7]))
print(filesystem.f_blocks * filesystem.f_frsize, filesystem.f_files)
path = directory + "/file"
with open(path, "w") as file:
    file.write("of the child")
os.chmod(path, 0o700)
os.rename(path, path + "2")
os.mkdir(directory + "/inner")
print(open(path + "2").read(), sorted(os.listdir(directory)))
"""


def needed(place: str) -> set[str]:
    """What there is in a directory of what this interpreter and its modules are made of, as on a developer's machine."""
    system = ["/etc/resolv.conf", "/sys/devices/system/cpu"]
    paths = [sys.executable, sys.prefix, sys.base_prefix, *sys.path, *system]
    ways = [Path(way) for path in paths for way in (os.path.abspath(path), os.path.realpath(path))]
    return {way.relative_to(place).parts[0] for way in ways if Path(place) in way.parents}


MIB = 1024 * 1024


def test_of_sys_a_child_sees_what_kind_of_processors_there_are(client):
    """Libraries choose their code by it, or count them; /proc/cpuinfo tells most of it anyway."""
    source = """
    import os
    for path, directories, files in os.walk("/sys"):
        if not path.startswith("/sys/devices/system/cpu"):
            print(path, directories, files)
    print(os.path.isdir("/sys/devices/system/cpu/cpu0"))
    """
    lines = support.run(client, source).text.splitlines()
    above = ["/sys ['devices'] []", "/sys/devices ['system'] []", "/sys/devices/system ['cpu'] []"]
    assert lines == [*above, "True"]


@each_sandbox
@pytest.mark.parametrize("directory", PRIVATE)
def test_a_private_directory_is_empty_and_writable_for_all_and_limited(client, directory, sandbox):
    told = support.run(client, PRIVATE_DIRECTORY, sandbox=sandbox, directory=directory).text.splitlines()
    mode, listing, device, flags = json.loads(told[0])
    assert (mode, flags) == ("0o41777", os.ST_NOSUID | os.ST_NODEV)
    assert set(listing) <= needed(directory)
    assert device != os.stat(directory).st_dev
    assert told[1] == f"{256 * MIB} 65536"
    assert told[2] == f"of the child {sorted([*listing, 'file2', 'inner'])}"


def test_private_directories_are_one_filesystem_and_no_one_elses(client):
    source = "import os; print(*(os.stat(directory).st_dev for directory in directories))"
    children = [support.spawn(client, f"{source}\ninput()", directories=PRIVATE) for _ in range(2)]
    devices = [child.stdout.readline().split() for child in children]
    for child in children:
        support.communicate(child, b"\n")
    assert [len(set(found)) for found in devices] == [1, 1]
    assert devices[0] != devices[1]


@each_sandbox
def test_temporary_files_work(client, sandbox):
    source = """
    import os, tempfile
    with tempfile.TemporaryDirectory() as directory, tempfile.NamedTemporaryFile(dir=directory) as file:
        file.write(b"x")
        print(os.path.dirname(directory), os.listdir(directory) == [os.path.basename(file.name)])
    with tempfile.TemporaryFile() as file:
        print(file.write(b"x"))
    """
    assert support.run(client, source, sandbox=sandbox).text == "/tmp True\n1\n"


@each_sandbox
def test_shared_memory_and_semaphores_of_multiprocessing_work(client, sandbox):
    source = """
    import multiprocessing, os
    from multiprocessing import shared_memory
    context = multiprocessing.get_context("fork")
    memory = shared_memory.SharedMemory(create=True, size=4096)
    lock, queue, event = context.Lock(), context.Queue(), context.Event()
    def work():
        event.wait()
        with lock:
            memory.buf[0] = 42
        queue.put("done")
    process = context.Process(target=work)
    process.start()
    print([name for name in os.listdir("/dev/shm")] == [memory.name])
    event.set()
    print(queue.get(), memory.buf[0])
    process.join()
    memory.close()
    memory.unlink()
    print(os.listdir("/dev/shm"))
    """
    assert support.run(client, source, sandbox=sandbox).text == "True\ndone 42\n[]\n"


# Directories that are empty. ------------------------------------------------------------------------------------


@each_sandbox
@pytest.mark.parametrize("directory", EMPTY)
def test_a_directory_where_hosts_keep_what_is_private_is_empty(client, directory, sandbox):
    source = "import json, os; print(json.dumps([os.listdir(directory), os.statvfs(directory).f_flag]))"
    listing, flags = json.loads(support.run(client, source, sandbox=sandbox, directory=directory).text)
    assert set(listing) <= needed(directory)
    assert flags & LOCKED == LOCKED


# Makes of every directory one that has a secret in it. The interpreter may lie in /root.
WITH_SECRETS = """
mkdir -p {directory}/upper {directory}/work
mount -t overlay -o lowerdir=/root,upperdir={directory}/upper,workdir={directory}/work none /root
chmod 755 /root
for place in /run /mnt /media /home; do test ! -d $place || mount -t tmpfs none $place; done
for place in /root /run /mnt /media /home; do
    test ! -d $place || {{ mkdir $place/secret; echo secret > $place/secret/file; }}
done
"""
LOOK_FOR_SECRETS = """
def secrets():
    return [place for place in places if os.path.exists(place + "/secret")]
source = "import os; print([place for place in places if os.path.exists(place + '/secret')])"
for sandbox in (only(), SANDBOX):
    print(run(client, source, sandbox=sandbox, places=places).text.strip())
print(secrets())
"""


def test_it_is_empty_on_a_host_that_has_something_there(directory):
    """And that something is a mount of its own, as ``/run`` and ``/home`` often are."""
    places = [place for place in EMPTY if place != "/sys"]
    wrapper = host(f"mount -t tmpfs none {directory}", WITH_SECRETS.format(directory=directory))
    told = run_caller(f"places = {places!r}\n{LOOK_FOR_SECRETS}", wrapper=wrapper).splitlines()
    assert told == ["[]", "[]", f"{places}"], "the last is the control"


SERVICES = """
import socket
sockets = [path for path in paths if path.endswith((".sock", "socket"))]
servers = [socket.socket(socket.AF_UNIX) for _ in sockets]
for server, path in zip(servers, sockets):
    server.bind(path)
    server.listen()
    os.chmod(path, 0o666)
look = "import attacks, os; print([path for path in paths if os.path.lexists(path)],"
look += " [attacks.answer('connect to a socket by path', path) for path in sockets])"
for sandbox in (only(), SANDBOX):
    print(run(client, look, sandbox=sandbox, paths=paths, sockets=sockets).text.strip())
run_source(look, {"paths": paths, "sockets": sockets})
"""


@pytest.mark.parametrize("run", ["/run", "/var/run"])
def test_tokens_of_kubernetes_and_sockets_of_services_are_not_there(directory, run):
    """Where ``/var/run`` is a link to ``/run``, and where it is a directory of its own."""
    account = f"{run}/secrets/kubernetes.io/serviceaccount"
    sockets = [
        f"{run}/{name}" for name in ("docker.sock", "containerd/containerd.sock", "dbus/system_bus_socket")
    ]
    paths = [f"{account}/token", f"{account}/ca.crt", *sockets]
    own_directory = ["mount -t tmpfs none /var", "mkdir -p /var/run /var/tmp"] if run == "/var/run" else []
    wrapper = host(
        *own_directory,
        f"mount -t tmpfs none {run}",
        f"mkdir -p {account} {run}/containerd {run}/dbus",
        f"mount -t tmpfs none {account}",
        f"echo secret > {account}/token",
        f"echo secret > {account}/ca.crt",
    )
    told = run_caller(f"paths = {paths!r}\n{SERVICES}", wrapper=wrapper).splitlines()
    missing = [-errno.ENOENT] * len(sockets)
    assert told == [f"[] {missing}", f"[] {missing}", f"{paths} [0, 0, 0]"], "the last is the control"


# Homes. --------------------------------------------------------------------------------------------------------------

HOMES = """
import json
look = "import json, os; print(json.dumps({n: os.listdir(p) for n, p in paths.items() if os.path.isdir(p)}))"
print(json.dumps([json.loads(run(client, look, sandbox=s, paths=paths).text) for s in (only(), SANDBOX)]))
"""


def homes_seen(directory: Path, lines: list[str], *homes: str) -> list[dict[str, list[str]]]:
    """What children see of these directories on a host where /etc/passwd is this: alone, and under all layers."""
    (directory / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\n" + "".join(f"{line}\n" for line in lines)
    )
    wrapper = host(f"mount --bind {directory}/passwd /etc/passwd")
    paths = {home: str(directory / home) for home in homes}
    return json.loads(run_caller(f"paths = {paths!r}\n{HOMES}", wrapper=wrapper))


def test_the_homes_of_people_are_empty_wherever_they_are_and_those_of_services_are_as_they_were(directory):
    for home in ("first", "last", "slash", "service", "nobody", "broken", "none/inner"):
        (directory / home).mkdir(parents=True)
        (directory / home / "secret").write_text("secret")
    lines = [
        f"first:x:1000:1000:First:{directory}/first:/bin/sh",
        f"last:x:65533:65533::{directory}/last:/bin/sh",
        f"slash:x:1001:1001::{directory}/slash/:/bin/sh",
        f"missing:x:1002:1002::{directory}/missing:/bin/sh",
        f"service:x:999:999::{directory}/service:/bin/sh",
        f"nobody:x:65534:65534::{directory}/nobody:/bin/sh",
        f"broken:x:a number:1003::{directory}/broken:/bin/sh",
        "too short:x:1004",
        "",
    ]
    expected = {
        **{home: [] for home in ("first", "last", "slash")},
        **{home: ["secret"] for home in ("service", "nobody", "broken", "none/inner")},
    }
    seen = homes_seen(directory, lines, "missing", *expected)
    assert seen == [expected, expected]


@pytest.mark.parametrize(
    "homes",
    [["/", "/usr", "/srv"], ["/usr/", "/srv//", "/usr/../srv"]],
    ids=["as they are", "spelled in another way"],
)
def test_what_programs_need_stays_even_where_somebody_calls_it_home(directory, homes):
    (directory / "here").mkdir()
    (directory / "here" / "file").touch()
    lines = [f"app:x:1000:1000::{home}:/bin/sh" for home in homes]
    for seen in homes_seen(directory, lines, "here", "/usr"):
        assert seen["here"] == ["file"]
        assert sorted(seen["/usr"]) == sorted(os.listdir("/usr"))


# Links. ----------------------------------------------------------------------------------------------------------

# A root in which the directories that are private or empty for children are links, as image-based systems have it.
WITH_LINKS = """
mount -t tmpfs none {root}
for entry in /*; do
    name=${{entry#/}}
    case $name in home|mnt|media|tmp|var|srv) continue;; esac
    if test -L $entry; then cp -a $entry {root}/
    elif test -d $entry; then mkdir {root}/$name; mount --rbind $entry {root}/$name
    fi
done
mkdir -p {root}/var/home/ann {root}/var/mnt {root}/var/media {root}/var/volatile/tmp {root}/srv {root}/old
mount --rbind /srv {root}/srv
for place in home/ann mnt media volatile/tmp; do echo secret > {root}/var/$place/secret; done
chmod 1777 {root}/var/volatile/tmp
ln -s var/home {root}/home
ln -s /var/mnt {root}/mnt
ln -s var/media {root}/media
ln -s var/volatile/tmp {root}/tmp
ln -s volatile/tmp {root}/var/tmp
test -d {root}{checkout}/tests || {{ mkdir -p {root}{checkout}; mount --rbind {checkout} {root}{checkout}; }}
cd {root}
pivot_root . old
umount -l old
cd /
"""
LOOK_BEHIND_LINKS = """
import json, os, tempfile
seen = [path for path in paths if os.path.exists(path + "/secret")]
print(json.dumps([seen, tempfile.gettempdir(), os.access("/tmp", os.W_OK)]))
"""
SEEN_BEHIND_LINKS = f"""
print(run(client, {LOOK_BEHIND_LINKS!r}, paths=paths).text.strip())
run_source({LOOK_BEHIND_LINKS!r}, {{"paths": paths}})
"""


def test_it_is_empty_too_where_the_directory_is_a_symbolic_link(directory):
    """By its name, and by the name of what it leads to; and temporary files have a place of their own."""
    paths = [
        "/home/ann",
        "/var/home/ann",
        "/mnt",
        "/var/mnt",
        "/media",
        "/var/media",
        "/tmp",
        "/var/volatile/tmp",
    ]
    (directory / "root").mkdir()
    wrapper = host(WITH_LINKS.format(root=directory / "root", checkout=CHECKOUT))
    told = run_caller(f"paths = {paths!r}\n{SEEN_BEHIND_LINKS}", wrapper=wrapper, cwd="/").splitlines()
    assert json.loads(told[1]) == [paths, "/tmp", True], "the control"
    assert json.loads(told[0]) == [[], "/tmp", True]


# Another /proc, as chroots have one. -------------------------------------------------------------------------------

FOREIGN = """
names = ["/proc/self/status", f"/proc/{os.getpid()}/cmdline", "/sys/kernel", "/cgroup/cgroup.procs"]
look = "import os; print([name for name in names if os.path.exists(top + name)])"
for sandbox in (only(), SANDBOX):
    print(run(client, look, sandbox=sandbox, names=names, top=top).text.strip())
run_source(f"{look}; print(names)", {"names": names, "top": top})
"""


def test_neither_a_proc_nor_a_sys_of_the_hosts_is_visible_elsewhere(directory):
    """It would tell of every process on the host, command lines included."""
    for name in ("proc", "sys", "cgroup"):
        (directory / name).mkdir()
    wrapper = host(
        f"mount -t proc none {directory}/proc",
        f"mount -t sysfs none {directory}/sys",
        f"mount -t cgroup2 none {directory}/cgroup",
    )
    told = run_caller(f"top = {str(directory)!r}\n{FOREIGN}", wrapper=wrapper).splitlines()
    assert told[2] == told[3], "the control"
    assert told[:2] == ["[]", "[]"]


# What the interpreter and its modules need. --------------------------------------------------------------------------

LOOK_AT_MODULES = """
import os, sys
sys.dont_write_bytecode = True
import single
print(single.value, single.__file__)
for path, directories, names in os.walk(top):
    directories.sort()
    print(path.removeprefix(top), sorted(names), os.access(path, os.W_OK))
"""
MODULE_DIRECTORIES = f"""
import json
def lay_out(top):
    for package in ("package", "namespace/deep", ".git", "data"):
        (top / "modules" / package).mkdir(parents=True)
    for name in ("secret", "modules/secret", "modules/data/rows", "modules/.git/config"):
        (top / name).write_text("secret")
    (top / "modules" / "single.py").write_text("import package, namespace.deep.inner; value = package.value")
    (top / "modules" / "package" / "__init__.py").write_text("value = 42")
    (top / "modules" / "namespace" / "deep" / "inner.py").touch()

for place in places:
    top = Path(place, name)
    lay_out(top)
    sys.path.append(str(top / "modules"))
    with pyspawner.Client(child_main="support.run_source") as client:
        told = [run(client, {LOOK_AT_MODULES!r}, sandbox=s, top=str(top)).text for s in (only(), SANDBOX)]
    sys.path.pop()
    print(json.dumps(told))
"""
SEEN_OF_MODULES = """\
42 {top}/modules/single.py
 [] False
/modules ['single.py'] False
/modules/namespace [] False
/modules/namespace/deep ['inner.py'] False
/modules/package ['__init__.py'] False
"""


def test_modules_in_a_hidden_directory_can_be_imported_and_nothing_beside_them_is_visible(directory):
    places = ["/run", "/mnt", "/media", "/home", "/root", "/tmp", "/var/tmp"]
    places = [place for place in places if os.path.isdir(place)]
    wrapper = host(
        f"mount -t tmpfs none {directory}",
        WITH_SECRETS.format(directory=directory),
        "mount -t tmpfs none /tmp",
        "mount -t tmpfs none /var/tmp",
    )
    source = f"places, name = {places!r}, 'some.application'\n{MODULE_DIRECTORIES}"
    told = run_caller(source, wrapper=wrapper, cwd=directory).splitlines()
    for place, line in zip(places, told, strict=True):
        expected = SEEN_OF_MODULES.format(top=f"{place}/some.application")
        assert json.loads(line) == [expected, expected], place


@pytest.mark.parametrize("place", ["/tmp", "a closed home"])
def test_a_zip_file_in_a_hidden_directory_can_be_imported_from(directory, place):
    """As with ``python application.pyz``, which has itself on the path."""
    directory.chmod(0o700)
    with tempfile.TemporaryDirectory(dir=directory if place == "a closed home" else place) as top:
        with zipfile.ZipFile(f"{top}/modules.zip", "w") as archive:
            archive.writestr("single.py", "value = 42")
        Path(top, "secret").touch()
        source = f"""
        sys.path.append({top!r} + "/modules.zip")
        with pyspawner.Client(child_main="support.run_source") as client:
            print(run(client, "import os, single; print(single.value, os.listdir(top))", top={top!r}).text)
        """
        assert run_caller(source, cwd="/").strip() == "42 ['modules.zip']"


RESOLVER = """
look = "import os; print(open('/etc/resolv.conf').read().strip(), os.listdir('/run'), os.listdir('/run/resolve'))"
for sandbox in (only(), SANDBOX):
    print(run(client, look, sandbox=sandbox).text.strip())
run_source(look.replace("listdir", "path.isdir"), {})
"""


def test_names_can_be_looked_up_where_resolv_conf_leads_to_a_hidden_directory(directory):
    """As with systemd-resolved: that file, and nothing beside it."""
    wrapper = host(
        f"mount -t tmpfs none {directory}",
        f"mkdir {directory}/upper {directory}/work",
        f"ln -s ../run/resolve/stub.conf {directory}/upper/resolv.conf",
        f"mount -t overlay -o lowerdir=/etc,upperdir={directory}/upper,workdir={directory}/work none /etc",
        "mount -t tmpfs none /run",
        "mkdir /run/resolve /run/secret",
        "echo nameserver 192.0.2.1 > /run/resolve/stub.conf",
        "echo secret > /run/resolve/secret",
    )
    told = run_caller(RESOLVER, wrapper=wrapper).splitlines()
    assert told == [*["nameserver 192.0.2.1 ['resolve'] ['stub.conf']"] * 2, "nameserver 192.0.2.1 True True"]


# The working directory. ----------------------------------------------------------------------------------------------

WHERE = """
source = "import os; print(os.getcwd(), sorted(os.listdir('.')))"
print(run(client, source).text.strip())
print(run(client, source, sandbox=only()).text.strip())
"""


def test_the_working_directory_is_the_callers(directory):
    (directory / "file").touch()
    assert run_caller(WHERE, cwd=directory).splitlines() == [f"{directory} ['file']"] * 2


@pytest.mark.parametrize("place", ["/tmp", "/run"])
def test_the_working_directory_is_the_root_where_the_callers_is_hidden(place):
    with tempfile.TemporaryDirectory(dir=place) as hidden:
        os.chmod(hidden, 0o755)
        assert [line.split()[0] for line in run_caller(WHERE, cwd=hidden).splitlines()] == ["/", "/"]


def test_the_working_directory_is_the_root_where_the_callers_is_closed(directory):
    directory.chmod(0o700)
    assert [line.split()[0] for line in run_caller(WHERE, cwd=directory).splitlines()] == ["/", "/"]


def test_the_working_directory_is_the_root_where_the_callers_is_gone(directory):
    (directory / "gone").mkdir()
    wrapper = ["sh", "-c", f'cd {directory}/gone && rmdir {directory}/gone && exec "$@"', "sh"]
    assert [line.split()[0] for line in run_caller(WHERE, wrapper=wrapper).splitlines()] == ["/", "/"]


def test_the_callers_working_directory_of_the_same_name_as_an_own_one_is_the_own_one(client):
    """The host's ``/tmp`` is not the child's."""
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        told = run_caller(WHERE, cwd="/tmp").splitlines()
    assert [line.split()[0] for line in told] == ["/tmp", "/tmp"]
    assert os.path.basename(file.name) not in "".join(told)


# Programs and libraries. -----------------------------------------------------------------------------------------------

USES = {
    "programs": """
        import subprocess
        print(subprocess.check_output("cat /etc/passwd | head -n 1", shell=True) == open("/etc/passwd", "rb").readline())
    """,
    "its interpreter": """
        import subprocess, sys
        program = "import ssl, json, ctypes, sys; print(sys.prefix)"
        print(subprocess.check_output([sys.executable, "-c", program], text=True) == sys.prefix + "\\n")
    """,
    "an interpreter that is spawned": """
        import multiprocessing, operator
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(operator.add, (1, 2)) == 3)
    """,
    "certificates": """
        import os, ssl
        paths = ssl.get_default_verify_paths()
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
        print([path for path in (paths.openssl_cafile, paths.openssl_capath) if os.path.exists(path)] == certificates)
    """,
    "users": """
        import os, pwd, grp
        print(pwd.getpwnam("root").pw_dir, grp.getgrgid(0).gr_name, end=" ")
        print(True)
    """,
    "a database": """
        import sqlite3
        with sqlite3.connect("/tmp/database") as database:
            database.execute("create table numbers (number)")
            database.execute("insert into numbers values (42)")
        print(sqlite3.connect("file:/tmp/database?mode=ro", uri=True).execute("select * from numbers").fetchone() == (42,))
    """,
    "locks and large files": """
        import fcntl, mmap, os
        with open("/tmp/large", "wb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(2**32)
            with mmap.mmap(file.fileno(), 2**32) as memory:
                memory[2**31] = 42
                print(memory[2**31] == 42)
    """,
    "a program of its own": """
        import os, subprocess
        with open("/tmp/program", "w") as file:
            file.write("#!/bin/sh\\necho works")
        os.chmod("/tmp/program", 0o700)
        print(subprocess.check_output("/tmp/program") == b"works\\n")
    """,
    "unix sockets": """
        import socket
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("/tmp/socket")
            server.listen()
            client.connect("/tmp/socket")
            print(True)
    """,
}


@each_sandbox
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_child_can_use(client, use, sandbox):
    paths = ssl.get_default_verify_paths()
    certificates = [path for path in (paths.openssl_cafile, paths.openssl_capath) if os.path.exists(path)]
    assert support.run(client, use, sandbox=sandbox, certificates=certificates).text.split()[-1] == "True"


# The setting. --------------------------------------------------------------------------------------------------------


@each_sandbox
def test_the_handle_says_what_is_visible(client, sandbox):
    child = support.spawn(client, "", sandbox=sandbox)
    support.communicate(child)
    assert child.layers["mounts"] == "read-only host, private /tmp, own /proc and /dev"


WITHOUT_PROC = """
import os, subprocess, sys
print(os.listdir("/proc"), os.statvfs("/proc").f_flag & locked == locked, os.path.exists("/dev/fd"))
print(subprocess.check_output([sys.executable, "-c", "print('works')"]), open("/dev/urandom", "rb").read(2) != b"")
open("/tmp/file", "w").close()
"""


@pytest.mark.parametrize(
    "layers", [ALONE.skip_sandbox_except, SANDBOX.skip_sandbox_except], ids=["alone", "all layers"]
)
def test_without_proc_there_is_an_empty_directory_and_all_else_is_the_same(client, layers):
    sandbox = pyspawner.SandboxConfig(proc=False, skip_sandbox_except=layers)
    child = support.spawn(client, WITHOUT_PROC, sandbox=sandbox, locked=LOCKED)
    assert child.layers["mounts"].endswith("; no /proc")
    assert support.communicate(child).text == "[] True False\nb'works\\n' True\n"


# As Docker and its like do it.
HIDE_PARTS_OF_PROC = [
    "mount --bind /dev/null /proc/keys",
    "mount --bind /dev/null /proc/timer_list",
    "mount -t tmpfs -o ro none /proc/acpi",
    "mount --bind /proc/sys /proc/sys",
    "mount -o remount,bind,ro /proc/sys",
]


def test_where_the_hosts_own_proc_is_hidden_in_part_root_gets_a_whole_one_for_its_children():
    """In most containers; a kernel gives a new one only to those who see a whole one."""
    source = """
    for sandbox in (only(), SANDBOX):
        print(run(client, "import os; print(os.listdir('/proc')[-1], os.getpid())", sandbox=sandbox).text.strip())
    print(os.path.getsize("/proc/keys"), os.stat("/proc/keys").st_rdev != 0)
    """
    told = run_caller(source, wrapper=host(*HIDE_PARTS_OF_PROC)).splitlines()
    assert told == ["1 1", "1 1", "0 True"], "the last: it was hidden"


def test_control_there_a_user_namespace_gets_none(directory):
    commands = [
        *HIDE_PARTS_OF_PROC,
        f"! unshare --user --map-root-user --pid --fork --mount mount -t proc none {directory}",
    ]
    assert run_caller("print('refused')", wrapper=host(*commands)) == "refused\n"
    with_whole = f"unshare --user --map-root-user --pid --fork --mount mount -t proc none {directory}"
    assert run_caller("print('allowed')", wrapper=host(with_whole)) == "allowed\n"
