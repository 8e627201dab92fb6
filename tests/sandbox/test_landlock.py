"""The layer ``landlock``: it stands behind ``mounts``, and refuses what a hole in that layer would let through.

Alone, the child is root in its own namespaces, with every capability there.
"""

from __future__ import annotations

import errno
import json
import os
import stat

import from_outside
import pytest

import attacks
import pyspawner
import support
from pyspawner import Bind, Dev, Overlay, SandboxConfig, Tmpfs
from support import SANDBOX, attack, only, visible_directory

CREATE_RULESET, VERSION = 444, 1
KERNEL = max(0, attacks.call(CREATE_RULESET, 0, 0, VERSION))
pytestmark = pytest.mark.skipif(KERNEL == 0, reason="this kernel has no Landlock")

ALONE = frozenset({"landlock"})
NONE = frozenset({"none of the layers"})
ALL = frozenset[str]()
each_sandbox = pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])
each_abi = pytest.mark.parametrize("abi", range(8))

# A directory that every child has.
PLACE = "/mnt"


def at_most(abi: int) -> SandboxConfig:
    return SandboxConfig(skip_sandbox_except=ALONE, max_landlock_abi=abi)


@pytest.fixture(scope="module")
def preloaded():
    """A client whose children look for no module in the middle of an attack."""
    with pyspawner.Client(
        child_main="support.run_source", preload_imports=["attacks", "json", "socket"]
    ) as client:
        yield client


@pytest.fixture
def directory():
    with visible_directory() as directory:
        yield directory


# What the handle says. --------------------------------------------------------------------------------------


def test_it_is_on_by_default_after_no_new_privs_and_before_seccomp(client):
    child = support.spawn(client, "")
    support.communicate(child)
    assert list(child.layers)[-4:] == ["no_new_privs", "landlock", "rlimits", "seccomp"]
    assert child.layers["landlock"].startswith(f"ABI {KERNEL}")


# The first ABI that has it.
LOCKS = {
    "renames between directories": 2,
    "truncation": 3,
    "ioctl of devices": 5,
    "signals and abstract unix sockets": 6,
}


@each_abi
def test_the_handle_tells_which_abi_it_is_and_what_that_one_lacks(client, abi):
    child = support.spawn(client, "print('works')", sandbox=SandboxConfig(max_landlock_abi=abi))
    assert support.communicate(child).text == "works\n"
    told = child.layers["landlock"]
    if abi == 0:
        assert told.startswith("off: ")
        assert "Linux 5.13" in told
    else:
        reached = min(abi, KERNEL)
        assert told.split(";")[0] == f"ABI {reached}"
        assert {lock: lock in told for lock in LOCKS} == {
            lock: reached < since for lock, since in LOCKS.items()
        }


def test_an_abi_that_no_kernel_has_is_this_kernels(client):
    child = support.spawn(client, "", sandbox=SandboxConfig(max_landlock_abi=200))
    support.communicate(child)
    assert child.layers["landlock"].startswith(f"ABI {KERNEL}")


def test_without_the_layer_the_handle_does_not_name_it(client):
    child = support.spawn(client, "", sandbox=only("setuid"))
    support.communicate(child)
    assert "landlock" not in child.layers


def test_a_child_without_capabilities_needs_no_new_privs_for_it(client):
    with pytest.raises(pyspawner.SandboxError) as caught:
        client.spawn_child(["print('it ran')", {}], sandbox_config=only("landlock", "drop_capabilities"))
    assert (caught.value.layer, caught.value.errno) == ("landlock", errno.EPERM)
    assert "no_new_privs" in caught.value.hint
    assert "skip_sandbox_except" in caught.value.hint
    sandbox = only("landlock", "drop_capabilities", "no_new_privs")
    assert support.run(client, "print('it ran')", sandbox=sandbox).text == "it ran\n", "the control"


# A hole in the mounts: the host's own directory, writable, over an empty one. ----------------------------------

CHANGES = {
    **{name: f"attacks.answer({name!r}, place)" for name in attacks.ON_FILES},
    "rename between directories": "errno_of(lambda: os.rename(f'{place}/file', f'{place}/inner/file'))",
    "link between directories": "errno_of(lambda: os.link(f'{place}/file', f'{place}/inner/file'))",
    "exchange two files": "attacks.call(316, -100, at('file'), -100, at('other'), 2)",
    "open a device and ask it something": "ask(f'{place}/null')",
}
CHANGE = f"""
import attacks, ctypes, json, os, sys
sys.stdin.read()

def at(name):
    return f"{{place}}/{{name}}".encode()

def errno_of(change):
    try:
        change()
    except OSError as error:
        return -error.errno
    return 0

def ask(device):
    # TCGETS: only the device itself could know it.
    return attacks.call("ioctl", os.open(device, os.O_RDONLY), 0x5401, ctypes.create_string_buffer(64))

os.umask(0)
found = {{}}
for name, change in {CHANGES!r}.items():
    place = f"{PLACE}/{{name}}"
    found[name] = min(0, eval(change))
print(json.dumps(found))
"""

# What Landlock knows nothing of: a file's owner, mode, times and attributes. Modes and owners alone decide.
NOT_FOR_LANDLOCK = {
    "change a mode",
    "change an owner",
    "change the times",
    "set an extended attribute",
    "set a flag",
    "set a flag by path",
}
ONLY_SINCE = {"truncate a file": 3, "truncate a file that is opened for reading": 3}
ASKING = "open a device and ask it something"


@pytest.fixture(scope="module")
def through_a_hole(preloaded):
    """What comes of every change, for every ABI. At 0 there is nothing but modes and owners."""

    def change(abi: int) -> dict[str, int]:
        with visible_directory() as top:
            for name in CHANGES:
                (top / name / "inner").mkdir(parents=True)
                for file in ("file", "other"):
                    (top / name / file).write_text("original")
                    (top / name / file).chmod(0o666)
                (top / name).chmod(0o777)
                (top / name / "inner").chmod(0o777)
            os.mknod(top / ASKING / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            (top / ASKING / "null").chmod(0o666)
            child = support.spawn(preloaded, CHANGE, sandbox=at_most(abi))
            from_outside.show(child, top, PLACE)
            return json.loads(support.communicate(child).text)

    found: dict[int, dict[str, int]] = {}
    return lambda abi: found.get(abi) or found.setdefault(abi, change(abi))


def test_control_without_it_everything_works_that_modes_and_owners_allow(through_a_hole):
    found = dict(through_a_hole(0))
    asked = found.pop(ASKING)
    failed = {name for name, answer in found.items() if answer < 0}
    assert failed <= {"change a mode", "change an owner", "set a flag", "set a flag by path"}
    assert asked == -errno.ENOTTY, "the device's own answer"


@pytest.mark.parametrize("abi", range(1, 8))
def test_through_a_hole_in_the_mounts_nothing_is_written_made_renamed_or_removed(through_a_hole, abi):
    reached = min(abi, KERNEL)
    expected = dict.fromkeys(CHANGES, -errno.EACCES)
    for name in CHANGES:
        if name in NOT_FOR_LANDLOCK or reached < ONLY_SINCE.get(name, 0):
            expected[name] = through_a_hole(0)[name]
    expected[ASKING] = -errno.ENOTTY if reached < 5 else -errno.EACCES
    assert through_a_hole(abi) == expected


# What mounts let through themselves: a read-only mount is no lock on pipes. --------------------------------------


@pytest.fixture
def bell(directory):
    """A pipe of the host's, and its reader."""
    os.mkfifo(directory / "bell")
    (directory / "bell").chmod(0o666)
    reader = os.open(directory / "bell", os.O_RDONLY | os.O_NONBLOCK)
    yield directory / "bell", reader
    os.close(reader)


@each_sandbox
@pytest.mark.parametrize("place", attacks.PLACES)
def test_nothing_is_written_to_a_pipe_of_the_hosts(client, bell, layers, place):
    path, reader = bell
    sandbox = SandboxConfig(skip_sandbox_except=layers)
    assert int(attack(client, "write", str(path), "x", place=place, sandbox=sandbox).text) == -errno.EACCES
    assert os.read(reader, 1) == b""


@each_sandbox
def test_nothing_is_written_to_a_pipe_in_a_read_only_bind(client, bell, layers):
    path, reader = bell
    sandbox = SandboxConfig(mounts=(Bind(path.parent, "/in"),), skip_sandbox_except=layers)
    assert int(attack(client, "write", "/in/bell", "x", sandbox=sandbox).text) == -errno.EACCES
    assert os.read(reader, 1) == b""


@pytest.mark.parametrize("layers", [NONE, ALL], ids=["no layers", "all other layers"])
def test_control_without_it_a_pipe_of_the_hosts_can_be_written_to(client, bell, layers):
    path, reader = bell
    sandbox = SandboxConfig(skip_sandbox_except=layers, max_landlock_abi=0)
    assert attack(client, "write", str(path), "x", sandbox=sandbox).text == "1\n"
    assert os.read(reader, 1) == b"x"


# Mounts. --------------------------------------------------------------------------------------------------------

TOOLS = """
import attacks, os
from attacks import AT_FDCWD, NEWNS, NEWUSER, call
CLONE, EMPTY_PATH = 1, 4
MS_REMOUNT, MS_BIND, MS_MOVE, MS_PRIVATE, MNT_DETACH = 0x20, 0x1000, 0x2000, 1 << 18, 2
os.mkdir("/tmp/here")

def tmpfs():
    filesystem = call("fsopen", b"tmpfs", 0)
    assert call("fsconfig", filesystem, 6, 0, 0, 0) == 0
    return call("fsmount", filesystem, 0, 0)
"""
# Each answers 0 or above where it works.
MOUNTING = {
    "a new filesystem": "call('mount', b'none', b'/tmp/here', b'tmpfs', 0, 0)",
    "a new filesystem by descriptor": "call('move_mount', tmpfs(), b'', AT_FDCWD, b'/tmp/here', EMPTY_PATH)",
    "a file in one that is mounted nowhere": "os.open('file', os.O_CREAT | os.O_WRONLY, dir_fd=tmpfs())",
    "a bind": "call('mount', b'/etc', b'/tmp/here', 0, MS_BIND, 0)",
    "a copy": (
        "call('move_mount', call('open_tree', AT_FDCWD, b'/etc', CLONE), b'', AT_FDCWD, b'/tmp/here', EMPTY_PATH)"
    ),
    "a remount": "call('mount', 0, b'/tmp', 0, MS_REMOUNT | MS_BIND, 0)",
    "another propagation": "call('mount', 0, b'/tmp', 0, MS_PRIVATE, 0)",
    "an unmount": "call('umount2', b'/var/tmp', MNT_DETACH)",
    "another root": "(os.chdir('/tmp'), call('pivot_root', b'.', b'.'))[1]",
    "a move": "call('mount', b'/var/tmp', b'/tmp/here', 0, MS_MOVE, 0)",
    "a move by path": "call('move_mount', AT_FDCWD, b'/var/tmp', AT_FDCWD, b'/tmp/here', 0)",
    "a new filesystem in a user namespace within": (
        "call('unshare', NEWUSER | NEWNS) or call('mount', b'none', b'/tmp/here', b'tmpfs', 0, 0)"
    ),
}


def mounting(client, name: str, layers: frozenset[str]) -> int:
    source = (
        f"{TOOLS}\n"
        "try:\n"
        f"    answer = {MOUNTING[name]}\n"
        "except OSError as error:\n"
        "    answer = -error.errno\n"
        "print(answer)"
    )
    return int(support.run(client, source, sandbox=SandboxConfig(skip_sandbox_except=layers)).text)


@pytest.mark.parametrize("name", MOUNTING)
def test_a_child_with_all_its_own_capabilities_changes_no_mount(preloaded, name):
    refused = errno.EACCES if name == "a file in one that is mounted nowhere" else errno.EPERM
    assert mounting(preloaded, name, ALONE) == -refused


@pytest.mark.parametrize("name", MOUNTING)
def test_control_without_it_such_a_child_does(preloaded, name):
    assert mounting(preloaded, name, NONE) >= 0


# What is the child's own stays so. --------------------------------------------------------------------------------

# What a filesystem in memory may not have, and what the layer seccomp refuses.
NOT_EVERYWHERE = {"set an extended attribute", "set a flag", "set a flag by path", "make a whiteout"}
OWN = f"""
import attacks, json, os
os.umask(0)
found = {{}}
for name in {sorted(set(attacks.ON_FILES) - NOT_EVERYWHERE)!r}:
    at = f"{{place}}/{{name}}"
    os.makedirs(at + "/inner")
    for file in ("file", "other"):
        with open(f"{{at}}/{{file}}", "w") as opened:
            opened.write("mine")
    found[name] = attacks.answer(name, at)
for change in (os.rename, os.link):
    at = f"{{place}}/between {{change.__name__}}"
    os.makedirs(at + "/inner")
    with open(at + "/file", "w"):
        pass
    try:
        change(at + "/file", at + "/inner/file")
        found[change.__name__ + " between directories"] = 0
    except OSError as error:
        found[change.__name__ + " between directories"] = -error.errno
print(json.dumps({{name: answer for name, answer in found.items() if answer < 0}}))
"""


def own_places(directory) -> dict[str, pyspawner.SandboxConfig]:
    (directory / "written").mkdir(exist_ok=True)
    (directory / "lower").mkdir(exist_ok=True)
    return {
        "/tmp": SANDBOX,
        "/var/tmp": SANDBOX,
        "/dev/shm": SANDBOX,
        "/out": SandboxConfig(mounts=(Bind(directory / "written", "/out", writable=True),)),
        "/scratch": SandboxConfig(mounts=(Tmpfs("/scratch"),)),
        "/overlay": SandboxConfig(mounts=(Overlay("/overlay", lower=directory / "lower"),)),
        "/": SandboxConfig(chroot_dir=directory / "lower", mounts=(Overlay(),)),
        "/other/shm": SandboxConfig(chroot_dir=directory / "lower", mounts=(Dev("/other"),)),
    }


@pytest.mark.parametrize(
    "place", ["/tmp", "/var/tmp", "/dev/shm", "/out", "/scratch", "/overlay", "/", "/other/shm"]
)
def test_what_is_the_childs_own_can_be_changed_in_every_way(preloaded, directory, place):
    sandbox = own_places(directory)[place]
    child = support.spawn(preloaded, OWN, sandbox=sandbox, place=place)
    assert support.communicate(child).text == "{}\n"
    assert child.layers["landlock"].startswith(f"ABI {KERNEL}")


def test_before_abi_2_files_do_not_change_directories_in_what_is_the_childs_own(preloaded):
    sandbox = SandboxConfig(max_landlock_abi=1)
    found = json.loads(support.run(preloaded, OWN, sandbox=sandbox, place="/tmp").text)
    between = ["rename between directories", "link between directories"]
    assert found == dict.fromkeys(between, -errno.EXDEV)


# Programs that use it, each says so at last.
WORKS = {
    "a unix socket with a name": """
        import socket
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as user:
            server.bind("/tmp/socket")
            server.listen()
            user.connect("/tmp/socket")
            user.sendall(b"works")
            print(server.accept()[0].recv(5).decode())
    """,
    "an abstract unix socket of its own": """
        import os, socket
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("\\0own")
            server.listen()
            if os.fork() == 0:
                with socket.socket(socket.AF_UNIX) as user:
                    user.connect("\\0own")
                    user.sendall(b"works")
                os._exit(0)
            print(server.accept()[0].recv(5).decode())
    """,
    "a named pipe": """
        import os
        os.mkfifo("/tmp/pipe")
        if os.fork() == 0:
            with open("/tmp/pipe", "w") as pipe:
                pipe.write("works")
            os._exit(0)
        print(open("/tmp/pipe").read())
    """,
    "the devices": """
        assert open("/dev/null", "w").write("x") == 1
        assert open("/dev/null", "r+b", buffering=0).read() == b""
        assert open("/dev/zero", "rb").read(4) == bytes(4)
        assert len(open("/dev/urandom", "rb").read(4)) == 4
        open("/dev/stdout", "w").write("works\\n")
    """,
    "a device's truncation": """
        import os
        # As `command > /dev/null` does.
        os.open("/dev/null", os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
        print("works")
    """,
    "semaphores and queues": """
        import multiprocessing
        fork = multiprocessing.get_context("fork")
        queue = fork.Queue()
        process = fork.Process(target=lambda: queue.put("works"))
        process.start()
        print(queue.get())
        process.join()
    """,
    "shared memory with a name": """
        from multiprocessing import shared_memory
        memory = shared_memory.SharedMemory(create=True, size=5)
        memory.buf[:5] = b"works"
        print(bytes(memory.buf[:5]).decode())
        memory.close()
        memory.unlink()
    """,
    "programs, and signals to them": """
        import signal, subprocess
        process = subprocess.Popen(["/bin/sleep", "1000"])
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        print(subprocess.run(["/bin/echo", "works"], stdout=subprocess.PIPE).stdout.decode().strip())
    """,
    "a script of its own": """
        import os, subprocess
        with open("/tmp/script", "w") as script:
            script.write("#!/bin/sh\\necho works\\n")
        os.chmod("/tmp/script", 0o755)
        print(subprocess.run(["/tmp/script"], stdout=subprocess.PIPE).stdout.decode().strip())
    """,
    "threads": """
        import signal, threading
        def work():
            open("/tmp/file", "w").write("works")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        signal.signal(signal.SIGUSR1, lambda *_: print(open("/tmp/file").read()))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    """,
    "its own /proc": """
        import os
        assert os.listdir("/proc/self/fd")
        assert "CapEff" in open("/proc/self/status").read()
        print("works")
    """,
}


@pytest.mark.parametrize("abi", [0, 1, 7])
@pytest.mark.parametrize("name", WORKS)
def test_what_programs_do_works(client, name, abi):
    sandbox = SandboxConfig(max_landlock_abi=abi)
    assert support.run(client, WORKS[name], sandbox=sandbox).text == "works\n"


@pytest.mark.parametrize("target", ["/dev", "/other"])
def test_pseudoterminals_work(client, target):
    source = f"""
    import fcntl, os, termios
    leader = os.open("{target}/ptmx", os.O_RDWR | os.O_NOCTTY)
    # TIOCSPTLCK, TIOCGPTN
    fcntl.ioctl(leader, 0x40045431, bytes(4))
    number = int.from_bytes(fcntl.ioctl(leader, 0x80045430, bytes(4)), "little")
    follower = os.open(f"{target}/pts/{{number}}", os.O_RDWR | os.O_NOCTTY)
    termios.tcgetattr(follower)
    os.write(leader, b"works\\n")
    print(os.read(follower, 6).decode().strip())
    """
    sandbox = SandboxConfig(mounts=(Dev(target, ptmx=True),))
    assert support.run(client, source, sandbox=sandbox).text == "works\n"


def test_a_rule_of_the_childs_own_takes_away_and_gives_nothing_back(client, bell):
    """Landlock stacks: of two rules the stricter one counts."""
    path, reader = bell
    source = f"""
    import attacks, ctypes, os
    # Handles and allows everything of ABI 1, below the root.
    handled = ctypes.c_uint64(0x1fff)
    ruleset = attacks.call({CREATE_RULESET}, ctypes.byref(handled), 8, 0)
    assert ruleset >= 0
    rule = ctypes.create_string_buffer((0x1fff).to_bytes(8, "little") + os.open("/", os.O_PATH).to_bytes(4, "little"))
    assert attacks.call({CREATE_RULESET + 1}, ruleset, 1, rule, 0) == 0
    assert attacks.call({CREATE_RULESET + 2}, ruleset, 0) == 0
    attacks.attempt("write", path, "x")
    """
    assert int(support.run(client, source, path=str(path)).text) == -errno.EACCES
    assert os.read(reader, 1) == b""
