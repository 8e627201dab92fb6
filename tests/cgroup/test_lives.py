"""A child's cgroup: it is born in it, and it is removed with it, whoever reaps the child and whatever has happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cgroup_support import WITHOUT_NAMESPACES

import pyspawner
from pyspawner import Cause, Limits, SandboxConfig, SandboxError
from support import children_of_this_process, run, spawn

pytestmark = pytest.mark.usefixtures("in_use")
CGROUPS = Path("/sys/fs/cgroup")
HANG = "import threading; threading.Event().wait()"


def test_a_child_sees_its_own_cgroup_as_the_root(client):
    assert run(client, "print(open('/proc/self/cgroup').read())").text.strip() == "0::/"


def by_communicate(child):
    child.communicate()


def by_wait(child):
    child.wait()


def by_poll(child):
    while child.poll() is None:
        pass


@pytest.mark.parametrize("reap", [by_communicate, by_wait, by_poll])
def test_it_is_gone_when_the_child_is_reaped(client, cgroup_of, reap):
    with spawn(client, HANG) as child:
        directory = cgroup_of(child)
        assert directory.is_dir()
        child.kill()
        reap(child)
        assert not directory.exists()


def test_if_somebody_else_reaps_the_child_it_is_gone_with_the_next_one(client, cgroup_of):
    child = spawn(client, HANG)
    directory = cgroup_of(child)
    child.kill()
    os.waitpid(child.pid, 0)
    spawn(client, "").communicate()
    assert not directory.exists()
    with pytest.raises(ChildProcessError):
        child.communicate()


def test_a_child_that_nobody_holds_keeps_it_and_its_limits(client, cgroup_of):
    child = spawn(client, HANG)
    pid, directory = child.pid, cgroup_of(child)
    for pipe in (child.stdin, child.stdout, child.stderr):
        pipe.close()
    del child, pipe
    spawn(client, "").communicate()
    assert (directory / "pids.max").read_text() == "512\n"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    spawn(client, "").communicate()
    assert not directory.exists()


def test_a_spawn_that_fails_leaves_none(client):
    before = sorted(CGROUPS.rglob("pyspawner-*/*/"))
    with pytest.raises(SandboxError):
        client.spawn_child(sandbox_config=SandboxConfig(chroot_dir=Path("/nonexistent")))
    with pytest.raises(SandboxError):
        client.spawn_child(sandbox_config=SandboxConfig(working_dir=Path("/nonexistent")))
    assert sorted(CGROUPS.rglob("pyspawner-*/*/")) == before


def test_a_hundred_children_leave_none(client):
    children = [spawn(client, "") for _ in range(100)]
    for child in children:
        child.communicate()
    # What the fixture looks for, and that there is only the client's own directory.
    (own,) = CGROUPS.glob(f"pyspawner-{os.getpid()}-*")
    assert not [path for path in own.iterdir() if path.is_dir()]


def test_a_client_takes_its_part_of_the_tree_with_it(client):
    before = sorted(CGROUPS.glob("pyspawner-*"))
    with pyspawner.Client(child_main="support.run_source") as own:
        spawn(own, "").communicate()
        assert len(sorted(CGROUPS.glob("pyspawner-*"))) == len(before) + 1
    del own
    assert sorted(CGROUPS.glob("pyspawner-*")) == before


CRASH = """
import os, sys
sys.path[:] = {path!r}
import pyspawner
from support import *
client = pyspawner.Client(child_main="support.run_source")
children = [spawn(client, "import threading; threading.Event().wait()") for _ in range(3)]
print([child.pid for child in children], flush=True)
sys.stdin.read()
"""


def test_what_a_caller_leaves_that_crashes_the_next_one_removes(client):
    caller = subprocess.Popen(
        [sys.executable, "-c", CRASH.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with caller:
        assert caller.stdout is not None
        caller.stdout.readline()
        (left,) = CGROUPS.glob(f"pyspawner-{caller.pid}-*")
        with pyspawner.Client(child_main="support.run_source") as other:
            spawn(other, "").communicate()
        assert left.is_dir(), "it is in use"
        caller.kill()
    populated = left / "cgroup.events"
    for child in [path for path in left.iterdir() if path.is_dir()]:
        # The watchdog ends them.
        while "populated 1" in (child / "cgroup.events").read_text():
            pass
    assert "populated 0" in populated.read_text()
    with pyspawner.Client(child_main="support.run_source") as other:
        spawn(other, "").communicate()
    assert not left.exists()


def test_a_fork_of_the_caller_takes_nothing_away(client, cgroup_of):
    with spawn(client, HANG) as child:
        pid = os.fork()
        if pid == 0:
            del child, client
            os._exit(0)
        os.waitpid(pid, 0)
        assert cgroup_of(child).is_dir()
        assert child.poll() is None


def test_without_namespaces_a_daemon_is_dead_when_its_child_is_reaped(client):
    source = """
        import os
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print(os.getpid(), flush=True); os.read(0, 1)
                import threading; threading.Event().wait()
            os._exit(0)
        os.wait()
    """
    before = children_of_this_process()
    completed = spawn(client, source, sandbox=WITHOUT_NAMESPACES).communicate(timeout=60)
    assert completed.cause is Cause.EXITED
    daemon = int(completed.stdout)
    assert not Path(f"/proc/{daemon}").exists() or "Z" in Path(f"/proc/{daemon}/stat").read_text()
    assert children_of_this_process() == before


def test_a_host_that_allows_no_more_cgroups_says_so(client):
    limit = CGROUPS / "cgroup.max.descendants"
    if not limit.exists():
        (own,) = CGROUPS.glob(f"pyspawner-{os.getpid()}-*")
        limit = own / "cgroup.max.descendants"
    before = limit.read_text()
    limit.write_text("0")
    try:
        with pytest.raises(SandboxError) as caught:
            spawn(client, "")
    finally:
        limit.write_text(before)
    assert (caught.value.layer, "cgroup.max.descendants" in caught.value.hint) == ("cgroup", True)
    assert spawn(client, "print('works')").communicate(timeout=60).stdout == b"works\n"


def test_required_is_satisfied(client):
    for limits in ("required", Limits(cgroup="required")):
        with spawn(client, "", sandbox=SandboxConfig(limits=limits)) as child:
            assert child.layers["cgroup"].endswith("together")
    with spawn(client, "", sandbox=SandboxConfig(limits=Limits(cgroup="never"))) as child:
        assert child.layers["cgroup"].startswith("none (as asked)")
