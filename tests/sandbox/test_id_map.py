"""The layer ``id_map``: each living child has its own host ids, and no group of the caller's. Always on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import from_outside
import pytest

import attacks
import support
from support import SANDBOX, attack, attack_outside, only, run_caller, visible_directory

# Alone: no optional layer, so that the child is root in its own namespace.
SANDBOXES = {"alone": only(), "all layers": SANDBOX}
each_sandbox = pytest.mark.parametrize("sandbox", SANDBOXES.values(), ids=SANDBOXES)

# Which would forbid any writing to /proc.
ALL_BUT_LANDLOCK = only("drop_capabilities", "setuid", "no_new_privs", "seccomp")

MAPS = """
for name in ("uid_map", "gid_map", "setgroups"):
    with open(f"/proc/self/{name}") as file:
        print(*file.read().split())
"""


@pytest.fixture
def directory():
    with visible_directory() as directory:
        yield directory


def first_host_id(child) -> int:
    return int(re.findall(r"\d+", child.layers["id_map"])[-1])


@each_sandbox
def test_a_child_has_65536_ids_that_no_host_user_has(client, sandbox):
    child = support.spawn(client, MAPS, sandbox=sandbox)
    first = first_host_id(child)
    assert first >= 65_536
    assert support.communicate(child).text == f"0 {first} 65536\n0 {first} 65536\ndeny\n"


def test_living_children_have_different_ids(client):
    children = [support.spawn(client, "import sys; sys.stdin.read()") for _ in range(10)]
    firsts = sorted(first_host_id(child) for child in children)
    for child in children:
        support.communicate(child)
    assert all(second - first >= 65_536 for first, second in pairwise(firsts))


SHOW_HOST_IDS = """
import os, sys
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("sandbox", "inside"), [(only(), 0), (only("setuid"), 1000), (SANDBOX, 1000)])
def test_the_host_sees_every_id_of_a_child_in_its_range(client, sandbox, inside):
    """Whatever other layers do: a child that still had the host's uid 0 would own the host's files."""
    child = support.spawn(client, SHOW_HOST_IDS, sandbox=sandbox)
    child.stdout.readline()
    status = Path(f"/proc/{child.pid}/status").read_text()
    expected = [str(first_host_id(child) + inside)] * 4
    support.communicate(child)
    for name in ("Uid", "Gid"):
        assert re.findall(rf"^{name}:\s+(.*)$", status, re.MULTILINE)[0].split() == expected


@each_sandbox
def test_a_file_that_only_the_hosts_root_can_read_is_not_readable(client, directory, sandbox):
    secret = directory / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    assert int(attack(client, "open", str(secret), sandbox=sandbox).text) == -errno.EACCES
    secret.chmod(0o604)
    assert int(attack(client, "open", str(secret), sandbox=sandbox).text) >= 0


@each_sandbox
def test_a_file_of_another_child_is_not_readable(client, directory, sandbox):
    """Every child is uid 1000, or root with all capabilities, and each is another user to the other."""
    mine, theirs = directory / "mine", directory / "theirs"
    owner = support.spawn(client, "import sys; sys.stdin.read()", sandbox=sandbox)
    reader = support.spawn(
        client,
        "import attacks, sys; sys.stdin.read(); [attacks.attempt('open', path) for path in (mine, theirs)]",
        sandbox=sandbox,
        mine=str(mine),
        theirs=str(theirs),
    )
    inside = 0 if sandbox != SANDBOX else 1000
    for path, child in ((mine, reader), (theirs, owner)):
        path.touch(0o600)
        os.chown(path, first_host_id(child) + inside, first_host_id(child) + inside)
    answers = support.communicate(reader).text.split()
    support.communicate(owner)
    assert int(answers[0]) >= 0
    assert int(answers[1]) == -errno.EACCES


# The maps are written once, by the zygote. ----------------------------------------------------------------

REWRITES = [("uid_map", "0 0 1"), ("gid_map", "0 0 1"), ("setgroups", "allow")]
REWRITE = "import attacks, sys; sys.stdin.read(); attacks.attempt('write', path, text, place=place)"


@each_sandbox
@pytest.mark.parametrize(("name", "text"), REWRITES)
def test_the_maps_cannot_be_rewritten(client, name, text, sandbox):
    """For one thing, because ``/proc`` is read-only."""
    for place in attacks.PLACES:
        outcome = attack(client, "write", f"/proc/self/{name}", text, sandbox=sandbox, place=place)
        assert int(outcome.text) in (-errno.EROFS, -errno.EACCES), place


@pytest.mark.parametrize("sandbox", [only(), ALL_BUT_LANDLOCK], ids=["alone", "all layers but landlock"])
@pytest.mark.parametrize(("name", "text"), REWRITES)
def test_the_maps_cannot_be_rewritten_in_a_proc_that_is_writable_either(client, name, text, sandbox):
    for place in attacks.PLACES:
        names = {"path": f"/mnt/self/{name}", "text": text, "place": place}
        child = support.spawn(client, REWRITE, sandbox=sandbox, **names)
        from_outside.show_proc(child, "/mnt")
        assert int(support.communicate(child).text) in (-errno.EPERM, -errno.EACCES), place


@pytest.mark.parametrize(
    "writes", [["uid_map", "0 0 1"], ["setgroups", "allow"], ["setgroups", "deny", "gid_map", "0 0 1"]]
)
def test_control_outside_the_maps_of_a_fresh_namespace_can_be_written(writes):
    pairs = [(f"/proc/self/{name}", text) for name, text in zip(writes[::2], writes[1::2], strict=True)]
    assert attack_outside("new user namespace, then write", *pairs) == len(writes[-1])


# Groups. --------------------------------------------------------------------------------------------------


def test_a_child_cannot_take_groups(client):
    for place in attacks.PLACES:
        assert (
            int(attack(client, "setgroups to some", 5, sandbox=only(), place=place).text) == -errno.EPERM
        ), place


def test_control_outside_root_can_take_groups():
    assert attack_outside("setgroups to some", 5) == 0


@each_sandbox
def test_a_file_of_the_callers_supplementary_group_is_not_readable(directory, sandbox):
    group = 4_242_424
    secret = directory / "secret"
    secret.write_text("secret")
    os.chown(secret, 0, group)
    secret.chmod(0o040)
    names = sorted(sandbox.skip_sandbox_except)
    source = f"""
    import os
    sandbox = pyspawner.SandboxConfig(skip_sandbox_except=frozenset({names!r}))
    print(os.getgroups(), attack(client, "open", {str(secret)!r}, sandbox=sandbox).text)
    print(run(client, "import os; print(os.getgroups())", sandbox=sandbox).text)
    """
    answers = run_caller(source, extra_groups=[group]).split()
    assert answers == [f"[{group}]", str(-errno.EACCES), "[]"]


def test_control_outside_it_is_readable_by_that_group_alone(directory):
    group = 4_242_424
    secret = directory / "secret"
    secret.write_text("secret")
    os.chown(secret, 0, group)
    secret.chmod(0o040)
    for groups, expected in (([group], 0), ([], 1)):
        command = ["cat", str(secret)]
        done = subprocess.run(
            command, check=False, capture_output=True, user=65534, group=65534, extra_groups=groups
        )
        assert done.returncode == expected


# Programs with the host's privileges. ---------------------------------------------------------------------


@pytest.fixture
def setuid_root_program(directory):
    program = Path(shutil.copy("/usr/bin/id", directory))
    program.chmod(0o6755)
    return str(program)


@pytest.mark.parametrize("sandbox", [only("setuid"), SANDBOX], ids=["alone", "all layers"])
def test_a_setuid_program_of_the_hosts_root_changes_nothing(client, setuid_root_program, sandbox):
    """Without ``no_new_privs`` and on a mount that is not nosuid, too: the host's root has no place in the child's map."""
    source = """
    import subprocess, sys
    sys.stdin.read()
    for program in programs:
        [subprocess.run([program, option]) for option in ("-u", "-g")]
    """
    programs = [setuid_root_program, "/mnt/id"]
    child = support.spawn(client, source, sandbox=sandbox, programs=programs)
    from_outside.show(child, Path(setuid_root_program).parent, "/mnt")
    assert support.communicate(child).text == "1000\n" * 4


def test_control_one_of_the_childs_own_root_there_changes_something(client, setuid_root_program):
    source = "import os, sys; sys.stdin.read(); os.execv('/mnt/id', ['id', '-u'])"
    child = support.spawn(client, source, sandbox=only("setuid"))
    os.chown(setuid_root_program, first_host_id(child), first_host_id(child))
    Path(setuid_root_program).chmod(0o6755)
    from_outside.show(child, Path(setuid_root_program).parent, "/mnt")
    assert support.communicate(child).text == "0\n"


def test_control_outside_it_makes_root(setuid_root_program):
    command = [setuid_root_program, "-u"]
    done = subprocess.run(command, check=True, capture_output=True, user=65534, group=65534)
    assert done.stdout == b"0\n"


def test_a_pid_that_shares_its_range_with_a_living_process_is_passed_over(directory):
    """Ranges follow from pids, of which there may be more than ranges: here the child's first pid is the caller's plus their number."""
    script = f"""
        import os, pathlib
        kernel = pathlib.Path("/proc/sys/kernel")
        (kernel / "pid_max").write_text("4194304")
        with pyspawner.Client(child_main="support.run_source") as client:
            for config in (SANDBOX, pyspawner.SandboxConfig(chroot_dir=pathlib.Path({str(directory)!r}))):
                (kernel / "ns_last_pid").write_text(str(os.getpid() + 65534 - 1))
                child = spawn(client, "pass", sandbox=config)
                communicate(child)
                print(child.pid > os.getpid() + 65534, pathlib.Path(f"/proc/{{child.pid - 65534}}").exists())
    """
    assert run_caller(script, wrapper=["unshare", "--pid", "--fork", "--mount-proc"]) == "True False\n" * 2
