"""The layer ``namespaces``: user, pid, mount, net, ipc, uts and cgroup. Always on."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

import attacks
import support
from support import SANDBOX, attack, attack_outside, only

# Alone: no optional layer, so that the child has every capability in its namespaces.
SANDBOXES = {"alone": only(), "all layers": SANDBOX}
each_sandbox = pytest.mark.parametrize("sandbox", SANDBOXES.values(), ids=SANDBOXES)

WAIT = "import sys; print(flush=True); sys.stdin.read()"
NAMES = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"]


def namespaces(pid: int | str) -> dict[str, str]:
    return {name: readlink(Path(f"/proc/{pid}/ns/{name}")) for name in NAMES}


def test_no_child_shares_a_namespace_with_the_caller_the_zygote_or_a_sibling(client):
    children = [support.spawn(client, WAIT) for _ in range(2)]
    seen = [namespaces(child.pid) for child in children]
    for child in children:
        support.communicate(child)
    zygote, own = namespaces(client._zygotes.current.zygote_pid), namespaces("self")
    for name in NAMES:
        assert len({seen[0][name], seen[1][name], own[name]}) == 3, name
        assert zygote[name] not in (seen[0][name], seen[1][name]), name


@each_sandbox
def test_a_child_is_pid_1(client, sandbox):
    source = "import os, subprocess; print(os.getpid(), os.getppid(), subprocess.run(['true']).returncode)"
    assert support.run(client, source, sandbox=sandbox).text == "1 0 0\n"


# Processes outside. ---------------------------------------------------------------------------------------


@pytest.fixture
def victim(client):
    """A sibling: of all processes outside, the one with the least rights."""
    sibling = support.spawn(client, WAIT)
    sibling.stdout.readline()
    yield sibling.pid
    assert support.communicate(sibling).text == "", "it has not been harmed"


def victims(client) -> dict[str, int]:
    return {"caller": os.getpid(), "zygote": client._zygotes.current.zygote_pid}


# Of a number that is nobody's here.
BY_NUMBER = [
    *("kill", "rt_sigqueueinfo", "pidfd_open", "prlimit64", "setpriority", "sched_setaffinity"),
    *("sched_setscheduler", "ioprio_set", "kcmp", "ptrace"),
]
BY_PATH = [name for name in attacks.ON_A_PROCESS if name not in BY_NUMBER]


@pytest.mark.parametrize("name", BY_NUMBER)
def test_no_process_outside_has_a_number_inside(client, victim, name):
    for pid in (victim, *victims(client).values()):
        answer = int(attack(client, f"{name} of a process", pid, sandbox=only()).text)
        assert answer == -errno.ESRCH


@pytest.mark.parametrize("name", BY_PATH)
def test_proc_opens_no_process_outside(client, victim, name):
    """Whichever pids it lists."""
    for pid in (victim, *victims(client).values()):
        answer = int(attack(client, f"{name} of a process", pid, sandbox=only()).text)
        assert answer in (-errno.ENOENT, -errno.EACCES, -errno.EPERM, -errno.EINVAL, -errno.ESRCH)


@pytest.mark.parametrize("name", attacks.ON_A_PROCESS)
def test_under_all_layers_nothing_works_on_a_process_outside(client, victim, name):
    for pid in (victim, *victims(client).values()):
        for place in attacks.PLACES:
            outcome = attack(client, f"{name} of a process", pid, place=place)
            assert outcome.exitcode == -signal.SIGSYS or int(outcome.text) < 0


@pytest.mark.parametrize("name", attacks.ON_A_PROCESS)
def test_control_outside_it_works(victim, name):
    assert attack_outside(f"{name} of a process", victim) >= 0


SECRET = b"the sibling's secret"
HOLD_SECRET = """
import attacks, ctypes, sys
secret = ctypes.create_string_buffer(value)
print(ctypes.addressof(secret), flush=True)
sys.stdin.read()
"""


def test_the_memory_of_a_sibling_cannot_be_read(client):
    sibling = support.spawn(client, HOLD_SECRET, value=SECRET)
    address = int(sibling.stdout.readline())
    source = f"import attacks; print(attacks.read_memory({sibling.pid}, {address}, {len(SECRET)}))"
    alone = support.run(client, source, sandbox=only()).text
    with_all = support.run(client, source).text
    outside = attacks.read_memory(sibling.pid, address, len(SECRET))
    support.communicate(sibling)
    assert outside == SECRET, "the control"
    assert int(alone) == -errno.ESRCH
    assert int(with_all) == -errno.EPERM


EVERYBODY = """
import os, signal
from contextlib import suppress
pid = os.fork()
if pid == 0:
    signal.pause()
for number in (-1, 0):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(ProcessLookupError):
        os.kill(number, signal.SIGTERM)
    os.kill(-1, signal.SIGKILL)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@each_sandbox
def test_a_signal_to_everybody_reaches_only_the_childs_own_processes(client, victim, sandbox):
    del victim  # Whose fixture looks whether it lives.
    assert support.run(client, EVERYBODY, sandbox=sandbox).text in (
        f"{-signal.SIGTERM}\n",
        f"{-signal.SIGKILL}\n",
    )


# Twice forked, in a session of its own, with nothing open.
DAEMON = """
import os, signal
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(writing, b"x")
        os.closerange(0, 100)
        signal.pause()
    os._exit(0)
os.read(reading, 1)
"""


@each_sandbox
def test_processes_that_a_child_left_behind_end_with_it(client, sandbox):
    def living(namespace: str) -> int:
        return [readlink(entry) for entry in Path("/proc").glob("[0-9]*/ns/pid")].count(namespace)

    child = support.spawn(
        client, f"{DAEMON}\nimport sys; print(flush=True); sys.stdin.read()", sandbox=sandbox
    )
    child.stdout.readline()
    namespace = readlink(Path(f"/proc/{child.pid}/ns/pid"))
    before = living(namespace)
    support.communicate(child)
    assert before >= 2, "the control: there is a daemon"
    assert living(namespace) == 0


def readlink(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


# The other namespaces. ------------------------------------------------------------------------------------


@each_sandbox
def test_abstract_sockets_of_the_host_are_not_reachable(client, sandbox):
    name = f"pyspawner-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        inside = attack(client, "connect to an abstract socket", name, sandbox=sandbox).text
        outside = attack_outside("connect to an abstract socket", name)
    assert outside == 0, "the control"
    assert int(inside) == -errno.ECONNREFUSED


@each_sandbox
def test_shared_memory_of_the_host_is_not_reachable(client, sandbox):
    libc = ctypes.CDLL(None, use_errno=True)
    key = int.from_bytes(os.urandom(3), "little") + 1
    segment = libc.shmget(key, 4096, 0o1666)
    assert segment >= 0
    try:
        inside = attack(client, "attach to shared memory", key, sandbox=sandbox).text
        outside = attack_outside("attach to shared memory", key)
    finally:
        libc.shmctl(segment, 0, None)
    assert outside == segment, "the control"
    assert int(inside) == -errno.ENOENT


@each_sandbox
def test_message_queues_of_the_host_are_not_reachable(client, sandbox):
    libc = ctypes.CDLL(None, use_errno=True)
    name = f"pyspawner-test-{uuid.uuid4()}"
    queue = libc.mq_open(f"/{name}".encode(), os.O_CREAT, 0o666, None)
    assert queue >= 0
    try:
        inside = attack(client, "open a message queue", name, sandbox=sandbox).text
        outside = attack_outside("open a message queue", name)
    finally:
        libc.mq_unlink(f"/{name}".encode())
        os.close(queue)
    assert outside >= 0, "the control"
    assert int(inside) in (-errno.ENOENT, -errno.ENOSYS)


def test_a_host_name_set_inside_stays_inside(client):
    source = "import attacks, os; print(attacks.call('sethostname', b'taken', 5), os.uname().nodename)"
    assert support.run(client, source, sandbox=only()).text == "0 taken\n"
    assert os.uname().nodename != "taken"


def test_a_mount_made_inside_stays_inside(client):
    """Also out of the zygote's view, from which the next child's is copied."""
    cover = "import attacks, os; print(attacks.call('mount', b'none', path.encode(), b'tmpfs', 0, 0), os.listdir(path))"
    look = "import os; print(os.listdir(path))"
    with support.visible_directory() as directory:
        (directory / "file").touch()
        path = str(directory)
        mounts = Path("/proc/self/mountinfo").read_text()
        assert support.run(client, cover, sandbox=only(), path=path).text == "0 []\n"
        assert Path("/proc/self/mountinfo").read_text() == mounts
        assert support.run(client, look, path=path).text == "['file']\n"


@each_sandbox
@pytest.mark.parametrize("name", ["user", "pid"])
def test_the_namespace_above_cannot_be_opened(client, name, sandbox):
    outcome = attack(client, "open the namespace above", f"/proc/self/ns/{name}", sandbox=sandbox)
    assert int(outcome.text) == -errno.EPERM


@pytest.mark.parametrize("name", ["user", "pid"])
def test_control_from_outside_it_can(victim, name):
    assert attack_outside("open the namespace above", f"/proc/{victim}/ns/{name}") >= 0


# What is shared without being a namespace's matter. -------------------------------------------------------


def test_a_child_shares_no_writable_memory_with_anybody(client):
    source = """
    with open("/proc/self/maps") as maps:
        print([line for line in maps if line.split()[1].endswith("s") and "w" in line.split()[1]])
    """
    assert support.run(client, source).text == "[]\n"
    control = f"import mmap\nshared = mmap.mmap(-1, 4096)\n{textwrap.dedent(source)}"
    assert support.run(client, control).text != "[]\n"


REOPEN_PROGRAM = """
import attacks, os, sys
program = os.open("/proc/self/exe", os.O_PATH)
attacks.attempt("open for writing", f"/proc/self/fd/{program}")
"""


@each_sandbox
def test_the_interpreter_cannot_be_opened_for_writing_through_proc(client, sandbox):
    answer = int(support.run(client, REOPEN_PROGRAM, sandbox=sandbox).text)
    assert answer in (-errno.EACCES, -errno.EROFS)


def test_control_outside_only_its_running_forbids_that():
    program = f"import sys; sys.path[:] = {sys.path!r}\n{REOPEN_PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert int(done.stdout) == -errno.ETXTBSY
