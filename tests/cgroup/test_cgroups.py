"""The kernel that the tests of limits run on: each layout is what it says, and limits are kept."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Sequence

import cgroups
from cgroups import CONTROLLERS
from ordinary_user import UID, ordinary_user

MIB = 1024 * 1024


def python(wrapper: Sequence[str], source: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the standard library alone."""
    command = [*wrapper, sys.executable, "-I", "-S", "-c", source]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")


# Layouts, as a caller in one sees them. ---------------------------------------------------------------------


def look(manage: str) -> str:
    """A program that says where it is, what it could limit, and whether it may make a cgroup and enable a controller for it."""
    return f"""
import json
from pathlib import Path

def answer(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0

directory = Path("/sys/fs/cgroup{manage}")
own = Path("/proc/self/cgroup").read_text().strip()
controllers = (directory / "cgroup.controllers").read_text().split()
made = answer((directory / "made").mkdir)
enabled = answer((directory / "cgroup.subtree_control").write_text, "+memory")
print(json.dumps([own, sorted({{*controllers}} & {{*{CONTROLLERS}}}), made, enabled]))
"""


def test_a_service_manages_what_is_delegated_to_it():
    with cgroups.delegated() as service:
        done = python(service.main.entering(), look("/service"))
        assert json.loads(done.stdout) == ["0::/service/main", [*CONTROLLERS], 0, 0], done
        assert service.read("cgroup.subtree_control") == "memory"


def test_an_ordinary_user_manages_what_is_delegated_to_it():
    with cgroups.delegated(owner=UID) as service, ordinary_user() as user:
        output = user.python(look("/service"), wrapper=service.main.entering())
    assert json.loads(output) == ["0::/service/main", [*CONTROLLERS], 0, 0]


def test_an_ordinary_user_manages_nothing_else():
    with cgroups.undelegated(controllers=["pids"]) as cgroup, ordinary_user() as user:
        output = user.python(look("/undelegated"), wrapper=cgroup.entering())
    assert json.loads(output) == ["0::/undelegated", ["pids"], errno.EACCES, errno.EACCES]


def test_root_in_a_container_manages_nothing():
    with cgroups.undelegated() as cgroup:
        done = python(cgroup.as_container(), look("/"))
    assert done.stderr == ""
    assert json.loads(done.stdout) == ["0::/", [*CONTROLLERS], errno.EROFS, errno.EROFS], done


def test_a_cgroup_with_processes_cannot_pass_its_controllers_on():
    with cgroups.undelegated() as cgroup:
        done = python(cgroup.entering(), look("/undelegated"))
    assert json.loads(done.stdout) == ["0::/undelegated", [*CONTROLLERS], 0, errno.EBUSY], done


# Limits. ----------------------------------------------------------------------------------------------------

FORK = "import os; os.fork() or os._exit(0); os.wait()"
ALLOCATE = f"data = b'1' * {128 * MIB}"


def test_pids_max_refuses_a_fork():
    with cgroups.delegated() as service:
        service.write("pids.max", 2)
        assert python(service.main.entering(), FORK).returncode == 0, "the control"
        service.write("pids.max", 1)
        done = python(service.main.entering(), FORK)
        assert "BlockingIOError" in done.stderr, done
        assert service.count("pids.events")["max"] == 1


def test_memory_max_kills():
    with cgroups.delegated() as service:
        assert python(service.main.entering(), ALLOCATE).returncode == 0, "the control"
        service.write("memory.max", 64 * MIB)
        assert python(service.main.entering(), ALLOCATE).returncode == -signal.SIGKILL
        assert service.count("memory.events")["oom_kill"] == 1


CLONE_INTO_CGROUP = """
import attacks, ctypes, os, signal
from pathlib import Path

CLONE_INTO_CGROUP = 0x2_0000_0000
arguments = (ctypes.c_uint64 * 11)(CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD)
arguments[10] = os.open(directory, os.O_PATH)
pid = attacks.call("clone3", arguments, ctypes.sizeof(arguments))
if pid == 0:
    os.write(1, Path("/proc/self/cgroup").read_bytes())
    os._exit(0)
assert os.waitpid(pid, 0) == (pid, 0)
"""


def test_a_process_can_be_born_in_a_cgroup():
    with cgroups.delegated() as service:
        child = service.new("child")
        source = (
            f"import sys; sys.path[:] = {sys.path!r}; directory = {str(child.path)!r}\n{CLONE_INTO_CGROUP}"
        )
        assert python(service.main.entering(), source).stdout == f"0::{child.name}\n"


# pyspawner. -------------------------------------------------------------------------------------------------

SPAWN = """
from pathlib import Path

child = spawn(client, "import sys; print(sys.stdin.read())")
print(Path(f"/proc/{child.pid}/cgroup").read_text().strip(), *child.layers)
print(communicate(child, b"in a service").text)
"""


def test_a_caller_in_a_service_has_children_with_every_layer():
    with cgroups.delegated() as service:
        place, *layers, output = cgroups.run_in(service.main, SPAWN).split(maxsplit=13)
    assert place == "0::/service/main"
    assert layers == [
        *("namespaces", "cgroup", "id_map", "network", "mounts", "session", "drop_capabilities"),
        *("setuid", "no_new_privs", "landlock", "rlimits", "seccomp"),
    ]
    assert output == "in a service\n\n"
