"""``SandboxConfig.without_namespaces``: what is left where namespaces and mounts are impossible.

The child is on the host itself, as a user that nobody else is. So most controls are such a user too: a stranger, without a sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import attacks
import ordinary_user
import pyspawner
import support
from pyspawner import SandboxConfig
from support import SANDBOX, attack_outside, run_caller, visible_directory

WITHOUT = SandboxConfig.without_namespaces()
LANDLOCK = max(0, attacks.call(444, 0, 0, 1))
pytestmark = pytest.mark.skipif(LANDLOCK < 3, reason="needs Landlock's ABI 3 (Linux 6.2)")
needs_scopes = pytest.mark.skipif(LANDLOCK < 6, reason="needs Landlock's ABI 6 (Linux 6.12)")

# Of two filters that refuse one call, either may answer.
REFUSED = {-errno.EACCES, -errno.EPERM, -errno.EAFNOSUPPORT}
SIGSYS = -signal.SIGSYS


@pytest.fixture(scope="module")
def preloaded():
    """A client whose children have in memory what they need: a stranger may not be able to read the interpreter's library."""
    imports = ["attacks", "json", "socket", "fcntl", "struct", "subprocess", "threading", "traceback"]
    with pyspawner.Client(child_main="support.run_source", preload_imports=imports) as client:
        yield client


@pytest.fixture
def directory():
    with visible_directory() as directory:
        directory.chmod(0o777)
        yield directory


def run(client, source, **names) -> str:
    return support.run(client, source, sandbox=WITHOUT, **names).text


def attack(client, name, *arguments, sandbox=WITHOUT) -> int:
    """The answer, or the signal that ended the child."""
    outcome = support.attack(client, name, *arguments, sandbox=sandbox)
    return int(outcome.text) if outcome.exitcode == 0 else outcome.exitcode


def as_a_stranger(source: str, *, wrapper: tuple[str, ...] = (), **names: object) -> str:
    """Run ``source`` outside, as an ordinary user. Its standard output."""
    program = (
        f"import sys; sys.path.append({str(Path(attacks.__file__).parent)!r})\n"
        f"for name, value in {names!r}.items(): globals()[name] = value\n{textwrap.dedent(source)}"
    )
    command = [*wrapper, *ordinary_user.become(), ordinary_user.python(), "-B", "-c", program]
    done = subprocess.run(command, cwd="/", check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def attack_as_a_stranger(name: str, *arguments: object) -> int:
    source = "import attacks; attacks.attempt(what, *arguments)"
    return int(as_a_stranger(source, what=name, arguments=arguments))


def zygote_of(client) -> int:
    return int("".join(filter(str.isdigit, repr(client))))


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# Who the child is. ------------------------------------------------------------------------------------------


def test_two_children_at_once_are_two_users_that_nobody_else_is(preloaded):
    children = [support.spawn(preloaded, "input()", sandbox=WITHOUT) for _ in range(2)]
    found = [status_of(child.pid) for child in children]
    for child in children:
        support.communicate(child, b"\n")
    ids = [{int(number) for kind in ("Uid", "Gid") for number in status[kind].split()} for status in found]
    assert [len(numbers) for numbers in ids] == [1, 1]
    assert ids[0].isdisjoint(ids[1])
    assert min(min(numbers) for numbers in ids) > 65_535
    for child, status, numbers in zip(children, found, ids, strict=True):
        assert child.layers["setuid"].endswith(f" {numbers.pop()}")
        assert status["Groups"] == ""


def test_it_has_no_capabilities_and_gets_none(preloaded):
    child = support.spawn(preloaded, "input()", sandbox=WITHOUT)
    status = status_of(child.pid)
    support.communicate(child, b"\n")
    sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == dict.fromkeys(sets, 0)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_the_handle_says_that_there_are_no_namespaces_and_what_that_means(preloaded):
    child = support.spawn(preloaded, "", sandbox=WITHOUT)
    support.communicate(child)
    optional = ["drop_capabilities", "setuid", "no_new_privs", "landlock"]
    assert list(child.layers) == ["namespaces", "cgroup", "session", *optional, "rlimits", "seccomp"]
    assert child.layers["namespaces"].startswith("none: ")
    assert "outlives" in child.layers["namespaces"]
    assert child.layers["landlock"].startswith(f"ABI {LANDLOCK}")
    assert "no sockets" in child.layers["seccomp"]


KINDS = ["cgroup", "ipc", "net", "pid", "user", "uts"]


def namespaces_of(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS]


@pytest.mark.parametrize("first", [SANDBOX, WITHOUT], ids=["after one with namespaces", "at first"])
def test_in_one_client_there_are_children_with_namespaces_and_without(first):
    """The zygote leaves the host's view for those with namespaces; the others go back to it."""
    ours = namespaces_of(os.getpid())
    with pyspawner.Client(child_main="support.run_source") as client:
        for sandbox in (first, WITHOUT, SANDBOX, WITHOUT):
            child = support.spawn(client, "input()", sandbox=sandbox)
            is_ours = {a == b for a, b in zip(namespaces_of(child.pid), ours, strict=True)}
            support.communicate(child, b"\n")
            assert is_ours == {not sandbox.namespaces}


def test_it_begins_where_the_client_was_made(preloaded, directory, monkeypatch):
    monkeypatch.chdir(directory)
    with pyspawner.Client(child_main="support.run_source") as client:
        support.run(client, "")
        monkeypatch.chdir("/")
        assert run(client, "import os; print(os.getcwd())") == f"{directory}\n"


def test_working_dir_is_where_it_begins(preloaded, directory):
    sandbox = SandboxConfig.without_namespaces(working_dir=directory)
    outcome = support.run(preloaded, "import os; print(os.getcwd())", sandbox=sandbox)
    assert outcome.text == f"{directory}\n"


def test_a_missing_working_dir_is_an_error(preloaded, directory):
    sandbox = SandboxConfig.without_namespaces(working_dir=directory / "missing")
    with pytest.raises(pyspawner.SandboxError) as caught:
        preloaded.spawn_child(["print('it ran')", {}], sandbox_config=sandbox)
    assert caught.value.errno == errno.ENOENT


# What it may read. ------------------------------------------------------------------------------------------

LISTED = """
import json, os
found = {}
for path in paths:
    try:
        os.listdir(path)
        found[path] = 0
    except OSError as error:
        found[path] = -error.errno
print(json.dumps(found))
"""
HIDDEN = ["/root", "/home", "/tmp", "/var/tmp", "/run", "/mnt", "/media", "/sys", "/dev/shm"]
HIDDEN = ["/", "/dev", "/proc", *[path for path in HIDDEN if Path(path).is_dir()]]
VISIBLE = ["/etc", "/usr", "/usr/bin", "/var/log", "/srv"]


def test_what_is_hidden_from_other_children_cannot_be_read(preloaded):
    assert json.loads(run(preloaded, LISTED, paths=HIDDEN)) == dict.fromkeys(HIDDEN, -errno.EACCES)


def test_the_rest_of_the_host_can(preloaded):
    assert json.loads(run(preloaded, LISTED, paths=VISIBLE)) == dict.fromkeys(VISIBLE, 0)


def test_control_a_stranger_reads_most_of_both():
    found = json.loads(as_a_stranger(LISTED, paths=HIDDEN + VISIBLE))
    assert {path for path, answer in found.items() if answer < 0} <= {"/root"}


@pytest.fixture(params=["/tmp", "/var/tmp", "/dev/shm", "/run"])
def hidden(request):
    """A directory that is open to all in one that children do not see."""
    with tempfile.TemporaryDirectory(prefix="pyspawner-test-", dir=request.param) as name:
        hidden = Path(name)
        hidden.chmod(0o777)
        (hidden / "file").write_text("original")
        (hidden / "file").chmod(0o666)
        yield hidden


WAYS_TO_READ = """
import json, os
def answer(read):
    try:
        return read()
    except OSError as error:
        return -error.errno
file = hidden + "/file"
copy = os.open(hidden, os.O_PATH)
print(json.dumps({
    "open": answer(lambda: open(file).read()),
    "list": answer(lambda: os.listdir(hidden)),
    "by the root": answer(lambda: open("/proc/self/root" + file).read()),
    "in a kept directory": answer(lambda: os.open("file", os.O_RDONLY, dir_fd=copy)),
    "again": answer(lambda: os.open(f"/proc/self/fd/{copy}/file", os.O_RDONLY)),
    "from within": answer(lambda: (os.chdir(hidden), open("file").read())[1]),
    "run": answer(lambda: os.execv(file, ["file"])),
}))
"""


def test_no_way_leads_to_a_hidden_file(preloaded, hidden):
    (hidden / "file").chmod(0o777)
    found = json.loads(run(preloaded, WAYS_TO_READ, hidden=str(hidden)))
    assert found == dict.fromkeys(found, -errno.EACCES)


def test_control_a_stranger_reads_it(hidden):
    found = json.loads(as_a_stranger(WAYS_TO_READ, hidden=str(hidden)))
    assert found.pop("run") == -errno.EACCES, "of its mode"
    assert not [answer for answer in found.values() if isinstance(answer, int) and answer < 0]


REFUSED_OR_UNKNOWN = {f"{-number}\n" for number in (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP)}


def test_the_attributes_of_a_hidden_file_cannot_be_read(preloaded):
    with tempfile.TemporaryDirectory(prefix="pyspawner-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        file = Path(name, "file")
        file.touch()
        os.setxattr(file, "user.note", b"secret")
        source = """
import os
try:
    print(os.getxattr(file, "user.note"))
except OSError as error:
    print(-error.errno)
"""
        assert as_a_stranger(source, file=str(file)) == "b'secret'\n", "the control"
        assert run(preloaded, source, file=str(file)) in REFUSED_OR_UNKNOWN


OF_PROC = """
import json, os
def answer(path):
    try:
        return os.close(os.open(f"/proc/{path}", os.O_RDONLY)) or 0
    except OSError as error:
        return -error.errno
print(json.dumps({path: answer(path) for path in paths}))
"""


def test_of_proc_it_reads_its_own_and_facts_about_the_machine(preloaded):
    own = ["self/status", "self/maps", "self/fd", "thread-self/stat"]
    paths = [*own, "cpuinfo", "meminfo", "uptime", "version"]
    assert json.loads(run(preloaded, OF_PROC, paths=paths)) == dict.fromkeys(paths, 0)


def test_of_proc_it_reads_nothing_else(preloaded):
    paths = ["1/status", "1/cmdline", "sys/kernel/hostname", "filesystems", "modules", "key-users"]
    found = json.loads(as_a_stranger(OF_PROC, paths=paths))
    assert 0 in found.values(), "the control"
    assert json.loads(run(preloaded, OF_PROC, paths=paths)) == {
        path: -errno.ENOENT if answer == -errno.ENOENT else -errno.EACCES for path, answer in found.items()
    }


FORGET = Path("/proc/sys/vm/drop_caches")


@pytest.mark.skipif(not os.access(FORGET, os.W_OK), reason="this host does not let the tests drop its caches")
def test_it_reads_them_still_when_the_kernel_had_to_forget_unused_names(preloaded):
    """As it does when memory is short. Landlock's rules are about what a name led to."""
    source = "input(); print([len(open(f'/proc/{name}').read(1)) for name in ('self/status', 'cpuinfo')])"
    child = support.spawn(preloaded, source, sandbox=WITHOUT)
    FORGET.write_text("2")
    assert support.communicate(child, b"\n").text == "[1, 1]\n"


# What it may write: nothing. ----------------------------------------------------------------------------------

CHANGE = f"""
import attacks, json, os
os.umask(0)
print(json.dumps({{name: attacks.answer(name, f"{{top}}/{{name}}") for name in {list(attacks.ON_FILES)!r}}}))
"""
# What only a file's owner may do.
OWNERS = {"change a mode", "change an owner", "set a flag", "set a flag by path"}


def lay_out(top: Path) -> None:
    for name in attacks.ON_FILES:
        (top / name / "inner").mkdir(parents=True)
        for file in ("file", "other"):
            (top / name / file).write_text("original")
            (top / name / file).chmod(0o666)
        for made in (top / name, top / name / "inner"):
            made.chmod(0o777)


def state(top: Path) -> dict[str, object]:
    found = {}
    for path in [top, *top.rglob("*")]:
        seen = path.lstat()
        found[str(path)] = (
            *(seen.st_mode, seen.st_uid, seen.st_size, seen.st_nlink, seen.st_mtime_ns, seen.st_ctime_ns),
            path.read_text() if path.is_file() else "",
        )
    return found


@pytest.fixture(params=["/srv", "/var/tmp"], ids=["in sight", "hidden"])
def open_to_all(request):
    with tempfile.TemporaryDirectory(prefix="pyspawner-test-", dir=request.param) as name:
        Path(name).chmod(0o777)
        lay_out(Path(name))
        yield Path(name)


def test_nothing_is_changed_that_is_open_to_all(preloaded, open_to_all):
    before = state(open_to_all)
    found = json.loads(run(preloaded, CHANGE, top=str(open_to_all)))
    assert {name: answer for name, answer in found.items() if answer >= 0} == {}
    assert state(open_to_all) == before


def test_control_a_stranger_changes_it(open_to_all):
    found = json.loads(as_a_stranger(CHANGE, top=str(open_to_all)))
    assert {name for name, answer in found.items() if answer < 0} <= OWNERS


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/dev/shm", "/run", "/srv"])
def test_there_is_no_place_for_a_file_of_its_own(preloaded, place):
    source = "import attacks; attacks.attempt('create a file', place)"
    assert run(preloaded, source, place=place) == f"{-errno.EACCES}\n"


def test_nothing_is_written_to_a_pipe_of_the_hosts(preloaded, directory):
    os.mkfifo(directory / "pipe")
    (directory / "pipe").chmod(0o666)
    reader = os.open(directory / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert attack(preloaded, "write", str(directory / "pipe"), "x") == -errno.EACCES
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_its_own_streams_and_the_devices_work(preloaded):
    source = """
import sys
assert open("/dev/null", "w").write("x") == 1
assert len(open("/dev/urandom", "rb").read(8)) == 8
assert sys.stdin.read() == "hello"
open("/dev/stdout", "w").write("out")
"""
    assert support.run(preloaded, source, sandbox=WITHOUT, stdin=b"hello").text == "out"


def test_other_devices_cannot_be_opened(preloaded):
    names = ("tty", "ptmx", "kmsg", "fuse", "loop-control", "net/tun")
    devices = [f"/dev/{name}" for name in names if Path("/dev", name).exists()]
    assert "/dev/tty" in devices
    assert {attack(preloaded, "open", device) for device in devices} == {-errno.EACCES}


# Sockets, shared memory, messages. ------------------------------------------------------------------------------

FAMILIES = range(1, 46)


def test_there_are_no_sockets_of_any_family(preloaded):
    source = """
import attacks, json
print(json.dumps([attacks.call("socket", family, kind, 0) for family in families for kind in range(1, 6)]))
"""
    answers = json.loads(run(preloaded, source, families=list(FAMILIES)))
    assert set(answers) <= REFUSED


def test_control_a_stranger_has_sockets():
    source = "import socket; [socket.socket(family) for family in (1, 2, 10)]; print('made')"
    assert as_a_stranger(source) == "made\n"


def test_a_pair_of_sockets_works(preloaded):
    source = """
import socket
ours, theirs = socket.socketpair()
ours.sendall(b"works")
print(theirs.recv(5).decode())
"""
    assert run(preloaded, source) == "works\n"


# One of a pair may be told another address.
SEND = """
import os, socket
def answer(send):
    try:
        send()
        return 0
    except OSError as error:
        return -error.errno
for send in (
    lambda user: user.sendto(b"sent", address),
    lambda user: user.sendmsg([b"sent"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(4))], 0, address),
    lambda user: (user.connect(address), user.send(b"sent")),
):
    try:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError as error:
        print(-error.errno)
    else:
        print(answer(lambda: send(pair[0])))
"""


@pytest.mark.parametrize("place", ["/srv", "/var/tmp"], ids=["in sight", "hidden"])
def test_no_service_of_the_hosts_is_reached_by_its_path(preloaded, place):
    """As the host's logger and its init listen, below /run."""
    with tempfile.TemporaryDirectory(prefix="pyspawner-test-", dir=place) as name:
        Path(name).chmod(0o755)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
            service.setblocking(False)
            service.bind(f"{name}/socket")
            Path(name, "socket").chmod(0o777)
            assert as_a_stranger(SEND, address=f"{name}/socket").split() == ["0"] * 3, "the control"
            for _ in range(3):
                service.recv(10)
            answers = run(preloaded, SEND, address=f"{name}/socket").split()
            with pytest.raises(BlockingIOError):
                service.recv(10)
    assert set(map(int, answers)) <= REFUSED


@needs_scopes
def test_no_service_of_the_hosts_is_reached_by_an_abstract_name(preloaded):
    address = f"\0pyspawner-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(address)
        assert as_a_stranger(SEND, address=address).split() == ["0"] * 3, "the control"
        answers = run(preloaded, SEND, address=address).split()
    assert set(map(int, answers)) <= REFUSED


BIND = """
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    try:
        pair = socket.socketpair(socket.AF_UNIX, kind)
        pair[0].bind(address)
        print(0)
        pair[0].close()
    except OSError as error:
        print(-error.errno)
"""


def test_it_takes_no_abstract_name_that_a_service_of_the_hosts_may_want(preloaded):
    address = f"\0pyspawner-test-{os.getpid()}"
    assert as_a_stranger(BIND, address=address).split() == ["0"] * 3, "the control"
    assert set(map(int, run(preloaded, BIND, address=address).split())) <= REFUSED


LIBC = ctypes.CDLL(None, use_errno=True)
NEW_IPC = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
def answer(call, *arguments):
    return -ctypes.get_errno() if libc[call](*arguments) == -1 else 0
print(json.dumps([answer("shmget", 0, 4096, 0o1600), answer("semget", 0, 1, 0o1600), answer("msgget", 0, 0o1600)]))
"""


def test_there_is_no_new_system_v_ipc(preloaded):
    assert json.loads(as_a_stranger(NEW_IPC, wrapper=("unshare", "--ipc"))) == [0, 0, 0], "the control"
    assert json.loads(run(preloaded, NEW_IPC)) == [-errno.EACCES] * 3


def test_shared_memory_of_the_hosts_is_not_attached(preloaded):
    key = os.getpid() | 1 << 24
    identifier = LIBC.shmget(key, 4096, 0o1666)
    assert identifier >= 0
    try:
        assert attack_as_a_stranger("attach to shared memory", key) >= 0, "the control"
        assert attack(preloaded, "attach to shared memory", key) == -errno.EACCES
    finally:
        LIBC.shmctl(identifier, 0, None)


def test_there_is_no_posix_shared_memory_of_the_hosts(preloaded):
    name = f"/dev/shm/pyspawner-test-{os.getpid()}"
    Path(name).write_text("shared")
    Path(name).chmod(0o666)
    try:
        assert attack_as_a_stranger("open", name) >= 0, "the control"
        assert attack(preloaded, "open", name) == -errno.EACCES
        assert attack(preloaded, "open for writing", name) == -errno.EACCES
    finally:
        Path(name).unlink()


def test_there_are_no_message_queues(preloaded):
    name = f"pyspawner-test-{os.getpid()}"
    queue = LIBC.mq_open(f"/{name}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
    assert queue >= 0
    os.close(queue)
    try:
        assert attack_as_a_stranger("open a message queue", name) >= 0, "the control"
        assert attack(preloaded, "open a message queue", name) in (-errno.ENOSYS, -errno.EPERM)
    finally:
        LIBC.mq_unlink(f"/{name}".encode())


# From elsewhere in the child. --------------------------------------------------------------------------------------

QUESTIONS = """
import attacks
for name, argument in (("open", "/tmp"), ("create a file", "/srv"), ("socket AF_INET raw", None)):
    print(attacks.answer(name, *([argument] if argument else [])))
print(attacks.call("socket", 1, 1, 0))
"""


def test_a_second_thread_is_locked_in_too(preloaded):
    source = f"import threading; thread = threading.Thread(target=exec, args=({QUESTIONS!r},)); thread.start(); thread.join()"
    answers = run(preloaded, source).split()
    assert len(answers) == 4
    assert set(map(int, answers)) <= REFUSED


def test_a_program_that_it_executes_is_locked_in_too(preloaded):
    """An interpreter of its own, and modules, that strangers can read."""
    with ordinary_user.ordinary_user() as user:
        program = f"import sys; sys.path.append({str(user.modules)!r})\n{QUESTIONS}"
        command = [ordinary_user.python(), "-B", "-c", program]
        answers = run(preloaded, "import os; os.execv(command[0], command)", command=command).split()
    assert len(answers) == 4
    assert set(map(int, answers)) <= REFUSED


# Other processes. -------------------------------------------------------------------------------------------------

# What it may know of any process: that it is there.
KNOWN = {"pidfd_open"}
# Not a question to another process: the layer seccomp ends who asks it.
TRAPPED = {"ptrace"}


@pytest.fixture(params=["the caller", "the zygote", "a sibling", "the first process"])
def other(request, preloaded):
    """The pid of somebody else."""
    if request.param == "a sibling":
        sibling = support.spawn(preloaded, "input()", sandbox=WITHOUT)
        yield sibling.pid
        support.communicate(sibling, b"\n")
    else:
        yield {"the caller": os.getpid(), "the zygote": zygote_of(preloaded), "the first process": 1}[
            request.param
        ]


def test_nothing_is_done_to_another_process(preloaded, other):
    found = {name: attack(preloaded, f"{name} of a process", other) for name in attacks.ON_A_PROCESS}
    allowed = {name for name, answer in found.items() if answer >= 0}
    assert allowed <= KNOWN
    assert {name for name, answer in found.items() if answer == SIGSYS} <= TRAPPED | {
        "setns user",
        "setns mnt",
    }
    assert found["kill"] == -errno.EPERM


def test_control_root_does_it_to_a_child(preloaded):
    child = support.spawn(preloaded, "input()", sandbox=WITHOUT)
    # To trace it and to enter its namespaces would change it, or the one who does so.
    # And root in a container may not limit who is another user.
    harmless = set(attacks.ON_A_PROCESS) - {
        "ptrace",
        "kcmp",
        "setns user",
        "setns mnt",
        "setns net",
        "prlimit64",
    }
    failed = {name for name in harmless if attack_outside(f"{name} of a process", child.pid) < 0}
    support.communicate(child, b"\n")
    assert failed == set()


def test_no_memory_of_another_process_is_read(preloaded, other):
    source = "import attacks; print(attacks.read_memory(pid, 0x1000, 8))"
    assert run(preloaded, source, pid=other) == f"{-errno.EPERM}\n"


def test_a_signal_to_all_reaches_nobody_else(preloaded):
    sibling = support.spawn(
        preloaded, "import time; print('ready', flush=True); time.sleep(1000)", sandbox=WITHOUT
    )
    assert sibling.stdout.readline() == b"ready\n"
    source = "import os, signal; os.kill(-1, signal.SIGKILL); print('done')"
    assert run(preloaded, source) == "done\n"
    assert sibling.wait(os.WNOHANG) == (0, 0)
    sibling.kill()
    assert support.communicate(sibling).exitcode == -signal.SIGKILL


# Landlock alone, and the child is the host's root. ---------------------------------------------------------------------

ROOT = SandboxConfig.without_namespaces(skip_sandbox_except=frozenset({"landlock"}))
UNSCOPED = SandboxConfig.without_namespaces(skip_sandbox_except=frozenset({"landlock"}), max_landlock_abi=5)


def test_landlock_alone_keeps_even_root_from_what_is_hidden(preloaded):
    found = json.loads(support.run(preloaded, LISTED, sandbox=ROOT, paths=HIDDEN).text)
    assert found == dict.fromkeys(HIDDEN, -errno.EACCES)


def test_landlock_alone_keeps_even_root_from_writing(preloaded, directory):
    lay_out(directory)
    found = json.loads(support.run(preloaded, CHANGE, sandbox=ROOT, top=str(directory)).text)
    unknown_to_it = OWNERS | {"change the times", "set an extended attribute"}
    assert {name for name, answer in found.items() if answer != -errno.EACCES} <= unknown_to_it
    assert Path(directory, "write to a file", "file").read_text() == "original"


def test_control_root_outside_writes(directory):
    lay_out(directory)
    program = f"import sys; sys.path[:] = {sys.path!r}\ntop = {str(directory)!r}\n{CHANGE}"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    failed = {name for name, answer in json.loads(done.stdout).items() if answer < 0}
    # It came with Linux 6.17.
    assert failed <= {"set a flag by path"}


@pytest.mark.parametrize("name", ["mount", "umount2", "pivot_root"])
def test_landlock_alone_keeps_even_root_from_mounting(preloaded, name):
    assert attack(preloaded, name, sandbox=ROOT) == -errno.EPERM


@needs_scopes
def test_landlock_alone_keeps_even_root_from_sending_signals(preloaded):
    assert attack(preloaded, "kill of a process", os.getpid(), sandbox=ROOT) == -errno.EPERM
    assert attack(preloaded, "kill of a process", os.getpid(), sandbox=UNSCOPED) == 0, "the control"


@needs_scopes
def test_landlock_alone_keeps_even_root_from_abstract_sockets(preloaded):
    name = f"pyspawner-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(f"\0{name}")
        service.listen()
        connect = "connect to an abstract socket"
        assert attack(preloaded, connect, name, sandbox=ROOT) == -errno.EPERM
        assert attack(preloaded, connect, name, sandbox=UNSCOPED) == 0, "the control"


def test_landlock_alone_keeps_even_root_from_the_zygotes_memory(preloaded):
    """Nobody in a domain of Landlock's may trace who is not."""
    source = "import attacks; print(attacks.read_memory(pid, 0x1000, 8))"
    zygote = zygote_of(preloaded)
    assert support.run(preloaded, source, sandbox=ROOT, pid=zygote).text == f"{-errno.EPERM}\n"
    nothing = SandboxConfig.without_namespaces(skip_sandbox_except=frozenset({"none of the layers"}))
    assert support.run(preloaded, source, sandbox=nothing, pid=zygote).text == f"{-errno.EFAULT}\n", (
        "the control"
    )


# What it cannot hide, as documented. -----------------------------------------------------------------------------------


def test_that_a_process_exists_can_be_told(preloaded):
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    assert attack(preloaded, "kill of a process", os.getpid()) == -errno.EPERM
    assert attack(preloaded, "kill of a process", nobody.pid) == -errno.ESRCH


def test_that_a_hidden_file_exists_and_what_it_is_can_be_told(preloaded, hidden):
    source = "import os; seen = os.stat(file); print(seen.st_size, seen.st_uid, oct(seen.st_mode))"
    assert run(preloaded, source, file=f"{hidden}/file") == f"8 {os.getuid()} 0o100666\n"


def test_what_a_strangers_modes_forbid_is_not_even_told(preloaded, directory):
    (directory / "closed").mkdir(mode=0o700)
    (directory / "closed" / "file").touch()
    source = "import os; print(os.path.exists(file))"
    assert run(preloaded, source, file=str(directory / "closed" / "file")) == "False\n"


def test_what_it_starts_and_detaches_outlives_it(preloaded):
    source = """
import os, time
if os.fork() == 0:
    os.setsid()
    for descriptor in range(3):
        os.close(descriptor)
    time.sleep(1000)
    os._exit(0)
"""
    child = support.spawn(preloaded, source, sandbox=WITHOUT)
    [uid] = {int(number) for number in status_of(child.pid)["Uid"].split()}
    assert support.communicate(child).exitcode == 0
    left = processes_of(uid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(left) == 1


def processes_of(uid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and status_of(int(entry.name))["Uid"].split()[0] == str(uid):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# Pids come round, and a child's host id follows from its own.
LATER = """
import time
DETACH = '''
import os, time
if os.fork() == 0:
    os.setsid()
    for descriptor in range(3):
        os.close(descriptor)
    time.sleep(1000)
    os._exit(0)
'''
WITHOUT = pyspawner.SandboxConfig.without_namespaces()

def uid(pid):
    return int(Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0])

before = set(os.listdir("/proc"))
first = spawn(client, DETACH, sandbox=WITHOUT)
assert communicate(first).exitcode == 0
[left] = [pid for pid in set(os.listdir("/proc")) - before if pid.isdigit() and uid(pid) > 65535]
for _ in range(100):
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
    second = spawn(client, "input()", sandbox=later)
    if second.pid == first.pid:
        print(uid(second.pid) == uid(left))
    communicate(second, b"\\n")
    if second.pid == first.pid:
        break
"""


@pytest.mark.parametrize("later", ["SANDBOX", "WITHOUT"])
def test_what_outlives_a_child_is_not_the_same_user_as_a_later_one(later):
    """It could limit, slow down and, below ABI 6, kill it. In a pid namespace where only this test makes processes."""
    source = LATER.replace("sandbox=later", f"sandbox={later}")
    assert run_caller(source, wrapper=["unshare", "--pid", "--fork", "--mount-proc"]) == "False\n"


# Errors. ---------------------------------------------------------------------------------------------------------------

NEEDS_NAMESPACES = {
    "chroot_dir": {"chroot_dir": Path("/srv")},
    "network": {"network": pyspawner.NetworkConfig()},
    "mounts": {"mounts": (pyspawner.Tmpfs("/x"),)},
    "proc=False": {"proc": False},
}


@pytest.mark.parametrize("field", NEEDS_NAMESPACES)
def test_what_needs_namespaces_is_an_error_without(preloaded, field):
    sandbox = SandboxConfig(namespaces=False, **NEEDS_NAMESPACES[field])
    with pytest.raises(ValueError, match=f"{field} needs namespaces"):
        preloaded.spawn_child(["print('it ran')", {}], sandbox_config=sandbox)


@pytest.mark.parametrize("abi", range(3))
def test_a_landlock_that_does_not_know_truncation_is_an_error(preloaded, abi):
    sandbox = SandboxConfig.without_namespaces(max_landlock_abi=abi)
    with pytest.raises(pyspawner.SandboxError) as caught:
        preloaded.spawn_child(["print('it ran')", {}], sandbox_config=sandbox)
    assert (caught.value.layer, caught.value.errno) == ("landlock", errno.EOPNOTSUPP)
    assert "Linux 6.2" in caught.value.hint
    assert run(preloaded, "print('still works')") == "still works\n"


@pytest.mark.parametrize("abi", range(3, LANDLOCK + 1))
def test_from_abi_3_on_it_works(preloaded, hidden, abi):
    sandbox = SandboxConfig.without_namespaces(max_landlock_abi=abi)
    assert support.run(preloaded, "print('works')", sandbox=sandbox).text == "works\n"
    for name in ("open", "open for writing"):
        assert attack(preloaded, name, f"{hidden}/file", sandbox=sandbox) == -errno.EACCES


def test_an_ordinary_user_is_told_that_it_needs_root():
    source = """
    try:
        spawn(client, "print('it ran')", sandbox=pyspawner.SandboxConfig.without_namespaces())
    except pyspawner.SandboxError as error:
        print(error.layer, error.errno, error.hint)
    """
    with ordinary_user.ordinary_user() as user:
        told = user.run_caller(source)
    assert told.startswith(f"setuid {errno.EPERM} ")
    assert "root" in told
    assert "CAP_SETUID" in told


# Where namespaces and mounts are impossible. -----------------------------------------------------------------------------

# What Docker's default profile refuses; `test_hints.py` has the same.
FORBIDDEN = (
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "setns",
    "umount2",
    "unshare",
    "keyctl",
    "pivot_root",
)
IN_A_CONTAINER = f"""
import obstacles
obstacles.refuse({errno.ENOSYS}, "clone3")
obstacles.refuse({errno.EPERM}, *{FORBIDDEN})
WITHOUT = pyspawner.SandboxConfig.without_namespaces()
child = "import attacks, os; print(os.getuid() > 65535, attacks.answer('open', '/tmp'))"
# The client above knows no obstacles.
with pyspawner.Client(child_main="support.run_source", preload_imports=["attacks"]) as client:
    for sandbox in attempts:
        try:
            print(run(client, child, sandbox=sandbox).text, end="")
        except pyspawner.SandboxError as error:
            print("Docker" in error.hint and "--cap-add SYS_ADMIN" in error.hint)
"""


@pytest.mark.parametrize("attempts", ["SANDBOX, WITHOUT, SANDBOX, WITHOUT", "WITHOUT, SANDBOX, WITHOUT"])
def test_in_a_plain_container_it_works_and_the_default_says_what_is_missing(attempts, monkeypatch):
    monkeypatch.syspath_prepend(Path(support.__file__).parent / "hosts")
    source = IN_A_CONTAINER.replace("attempts", f"({attempts})")
    expected = {"SANDBOX": "True", "WITHOUT": f"True {-errno.EACCES}"}
    assert run_caller(source).splitlines() == [expected[attempt] for attempt in attempts.split(", ")]


def test_without_the_capabilities_to_change_ids_the_error_names_them():
    source = """
    try:
        spawn(client, "print('it ran')", sandbox=pyspawner.SandboxConfig.without_namespaces())
    except pyspawner.SandboxError as error:
        print(error.layer, error.errno, error.hint)
    """
    told = run_caller(source, wrapper=["setpriv", "--bounding-set=-setuid", "--inh-caps=-all"])
    assert told.startswith(f"setuid {errno.EPERM} ")
    assert "CAP_SETUID" in told
