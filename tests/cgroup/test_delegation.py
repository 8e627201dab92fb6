"""Where a caller may divide the tree of cgroups, its children have one each; elsewhere it is told why not, and what to do."""

from __future__ import annotations

import os

import pytest

import cgroups
from cgroups import Cgroup, run_in
from ordinary_user import UID, ordinary_user

# What a caller in that place gets, with and without insisting, and where the child is.
LOOK = """
    from pathlib import Path
    child = spawn(client, "import sys; sys.stdin.read()")
    with child:
        place = Path(f"/proc/{child.pid}/cgroup").read_text().strip().splitlines()[-1]
        print(child.layers["cgroup"])
    print(place)
    try:
        with spawn(client, "", sandbox=pyspawner.SandboxConfig(limits="required")):
            print("there is one")
    except pyspawner.SandboxError as error:
        print(error.layer, error.errno, error.hint)
"""
HAS_ONE = "2 GiB of memory, no swap, 512 processes and threads, 3600 s of CPU time, together"


def look_from(cgroup: Cgroup, wrapper: list[str] | None = None) -> list[str]:
    return run_in(cgroup, LOOK, wrapper=wrapper or []).splitlines()


def mark(cgroup: Cgroup) -> None:
    """As systemd marks what it has delegated."""
    os.setxattr(cgroup.path, "user.delegate", b"1")


def test_what_systemd_has_delegated_is_divided():
    with cgroups.delegated() as service:
        mark(service)
        layer, place, required = look_from(service.main)
        assert (layer, required) == (HAS_ONE, "there is one")
        assert place.startswith("0::/service/pyspawner-")
        assert [path.name for path in service.path.iterdir() if path.is_dir()] == ["main"], "nothing is left"


def test_what_belongs_to_an_ordinary_user_is_divided():
    with cgroups.delegated(owner=UID) as service, ordinary_user() as user:
        layer, place, required = user.run_caller(LOOK, wrapper=service.main.entering()).splitlines()
        assert (layer, required) == (HAS_ONE, "there is one")
        assert place.startswith("0::/service/pyspawner-")
        assert [path.name for path in service.path.iterdir() if path.is_dir()] == ["main"], "nothing is left"


def test_a_cgroup_of_somebody_elses_is_left_alone():
    with cgroups.delegated() as service:
        layer, place, required = look_from(service.main)
        assert layer.startswith("none (none is delegated to the caller): ")
        assert place == "0::/service/main"
        assert required.startswith(
            "cgroup 13 no part of the tree of cgroups is delegated to the caller. systemd: Delegate=yes"
        )
        assert service.read("cgroup.subtree_control") == ""


def test_a_caller_that_is_in_its_own_part_is_told_to_move():
    with cgroups.undelegated() as cgroup:
        mark(cgroup)
        layer, _, required = look_from(cgroup)
        assert layer.startswith("none (the caller's cgroup has the caller in it): ")
        assert required.startswith(
            "cgroup 16 the caller's cgroup could be divided if the caller were not in it itself"
        )


def test_a_part_without_the_controllers_is_of_no_use():
    with cgroups.delegated(controllers=["pids"]) as service:
        mark(service)
        layer, _, required = look_from(service.main)
        assert layer.startswith("none (the host has no cgroup v2 with the controllers memory and pids): ")
        assert required.startswith("cgroup 19 ")


def test_without_the_controller_cpu_there_are_limits_but_no_pace():
    source = """
        with spawn(client, "", sandbox=pyspawner.SandboxConfig(limits="required")):
            print("there is one")
        try:
            spawn(client, "", sandbox=pyspawner.SandboxConfig(limits=pyspawner.Limits(cpus=0.5)))
        except pyspawner.SandboxError as error:
            print(error.layer, error.errno, error.hint)
    """
    with cgroups.delegated(controllers=["pids", "memory"]) as service:
        mark(service)
        there, refused = run_in(service.main, source).splitlines()
    assert there == "there is one"
    assert refused.startswith("cgroup 2 the controller cpu is not handed out")


def test_a_container_with_a_read_only_tree_is_told_so():
    with cgroups.undelegated() as container:
        layer, _, required = look_from(container, container.as_container())
        assert layer.startswith("none (the tree of cgroups is read-only here): ")
        assert required.startswith("cgroup 30 /sys/fs/cgroup is mounted read-only here. systemd: ")


@pytest.mark.parametrize(
    "entry_point", ["", "mkdir /sys/fs/cgroup/main; echo $$ > /sys/fs/cgroup/main/cgroup.procs; "]
)
def test_a_container_with_a_tree_of_its_own_divides_it_from_a_subgroup(entry_point):
    own_tree = "umount /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; "
    wrapper = ["unshare", "--cgroup", "--mount", "sh", "-ec", own_tree + entry_point + 'exec "$@"', "sh"]
    with cgroups.undelegated() as container:
        layer, place, required = look_from(container, wrapper)
        if entry_point:
            assert (layer, required) == (HAS_ONE, "there is one")
            assert "/pyspawner-" in place
        else:
            assert layer.startswith("none (the caller's cgroup has the caller in it): ")
            assert required.startswith("cgroup 16 ")
