"""Hosts that refuse what the sandbox is made of: one clear error that names the remedy, and nothing else happens.

Each host is a caller of its own that puts the obstacle in its own way.
"""

from __future__ import annotations

import errno
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import support

PLAIN = "SANDBOX"
IN_A_ROOT = "pyspawner.SandboxConfig(chroot_dir=directory)"
WITH_A_NETWORK = "pyspawner.SandboxConfig(network=pyspawner.NetworkConfig())"
WITHOUT_SECCOMP = "only('drop_capabilities', 'setuid', 'no_new_privs')"
# What the view of the host is made with, where a module lies below a directory that is closed to strangers.
A_CLOSED_HOME = "sys.path.append(str(directory / 'home' / 'modules'))"

OWN_NETWORK = ("unshare", "--net")
IN_A_USER_NAMESPACE = "obstacles.enter_user_namespace(obstacles.EVERY_ID)"


def without(capability: str) -> tuple[str, ...]:
    """A program in which no process of the caller has the capability."""
    return ("setpriv", f"--bounding-set=-{capability}", "--inh-caps=-all")


@dataclass(frozen=True)
class Host:
    """A host and the answer that a caller should get there."""

    name: str
    layer: str
    errno: int
    remedy: tuple[str, ...]
    """Words that the hint must have."""

    obstacle: str = ""
    wrapper: tuple[str, ...] = ()
    sandbox: str = PLAIN
    lift: str = "None"
    """What removes the obstacle, so that the next spawn works."""

    other: str = "None"
    """Or another sandbox, which it is not in the way of."""

    error: str = "SandboxError"


def refused(
    call: str, answer: int, layer: str, *remedy: str, prelude: str = "", why: str = "", **more: Any
) -> Host:
    name = f"{call} is {errno.errorcode[answer]}{why}"
    obstacle = f"{prelude}\nobstacles.refuse({answer}, {call!r})"
    return Host(name, layer, answer, remedy, obstacle, **more)


def limited(kind: str, layer: str = "namespaces") -> Host:
    obstacle = f"lift = obstacles.limit_namespaces({kind!r})"
    remedy = ("sysctl", "user.max_user_namespaces", "user.max_net_namespaces")
    return Host(f"max_{kind}_namespaces is reached", layer, errno.ENOSPC, remedy, obstacle, lift="lift")


def incapable(capability: str, layer: str, **more: Any) -> Host:
    remedy = (f"CAP_{capability.upper()}",)
    wrapper = (*more.pop("wrapper", ()), *without(capability))
    return Host(f"no CAP_{capability.upper()}", layer, errno.EPERM, remedy, wrapper=wrapper, **more)


DOCKER = ("Docker", "--security-opt seccomp")
PROFILE = ("seccomp profile",)
MOUNTING = ("CAP_SYS_ADMIN", "AppArmor", "seccomp profile")

# What Docker's default profile lets only a container with CAP_SYS_ADMIN do.
ADMINISTRATION = ("mount", "mount_setattr", "move_mount", "open_tree", "setns", "umount2", "unshare")
# And what it lets no container do.
NEVER = ("keyctl", "pivot_root")
PLAIN_CONTAINER = f"""
obstacles.refuse({errno.ENOSYS}, 'clone3')
obstacles.refuse({errno.EPERM}, *{ADMINISTRATION + NEVER})
"""

HOSTS = [
    refused("clone3", errno.ENOSYS, "namespaces", *DOCKER, "--cap-add SYS_ADMIN"),
    refused("clone3", errno.EPERM, "namespaces", *PROFILE, "user.max_user_namespaces", "apparmor"),
    Host(
        "a plain Docker container", "mounts", errno.EPERM, (*DOCKER, "--cap-add SYS_ADMIN"), PLAIN_CONTAINER
    ),
    refused("keyctl", errno.EPERM, "session", *DOCKER, "keyctl"),
    refused("pivot_root", errno.EPERM, "mounts", *MOUNTING, sandbox=IN_A_ROOT, other=PLAIN),
    refused("umount2", errno.EPERM, "mounts", *MOUNTING, sandbox=IN_A_ROOT, other=PLAIN),
    refused("unshare", errno.EPERM, "mounts", "CAP_SYS_ADMIN"),
    refused("mount", errno.EPERM, "mounts", *MOUNTING),
    refused(
        "open_tree", errno.EPERM, "mounts", *MOUNTING, prelude=A_CLOSED_HOME, sandbox=IN_A_ROOT, why=", root"
    ),
    *[
        refused(call, errno.EPERM, "mounts", *MOUNTING, prelude=A_CLOSED_HOME)
        for call in ("open_tree", "move_mount", "mount_setattr")
    ],
    refused("seccomp", errno.EPERM, "seccomp", *PROFILE, other=WITHOUT_SECCOMP),
    refused("seccomp", errno.EINVAL, "seccomp", "CONFIG_SECCOMP_FILTER", other=WITHOUT_SECCOMP),
    refused("seccomp", errno.ENOSYS, "seccomp", "CONFIG_SECCOMP_FILTER", other=WITHOUT_SECCOMP),
    limited("user"),
    limited("net"),
    limited("pid"),
    limited("mnt", "mounts"),
    incapable("setuid", "id_map"),
    incapable("setgid", "id_map"),
    incapable("sys_admin", "mounts"),
    incapable(
        "net_admin", "network", wrapper=OWN_NETWORK, sandbox=WITH_A_NETWORK, other=PLAIN, error="NetlinkError"
    ),
    Host(
        "an ordinary user",
        "id_map",
        errno.EPERM,
        ("root", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN"),
        # The host's root under another name, so that it can read whatever the tests lie in.
        "obstacles.enter_user_namespace('1000 0 1')",
    ),
    Host(
        "a container that has been given 65,536 ids",
        "id_map",
        errno.EPERM,
        ("mapped", "/etc/subuid"),
        "obstacles.enter_user_namespace('0 0 65536')",
    ),
]
each_host = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)


@functools.cache
def what_happens(host: Host) -> dict[str, Any]:
    with support.visible_directory() as directory:
        os.mkfifo(directory / "bell")
        (directory / "bell").chmod(0o666)
        (directory / "home" / "modules").mkdir(parents=True)
        (directory / "home").chmod(0o700)
        source = f"""
import obstacles, sys
directory = Path({str(directory)!r})
{host.obstacle}
obstacles.tell_what_happens(directory, {host.sandbox}, lift={host.lift}, other={host.other})
"""
        return json.loads(support.run_caller(source, wrapper=host.wrapper))


def ran(spawn: dict[str, Any]) -> bool:
    return (spawn["class"], spawn.get("text"), spawn["rang"]) == (None, "it ran\n", True)


@each_host
def test_the_error_names_layer_errno_and_remedy_and_nothing_has_happened(host):
    told = what_happens(host)
    first = told["spawns"][0]
    print(first["text"])
    assert (first["class"], first["is an OSError"]) == (host.error, True), first["text"]
    assert (first["layer"], first["errno"]) == (host.layer, host.errno)
    assert not first["rang"], "user code has run"
    assert not first["left behind"]
    assert not told["left behind"]
    assert {word: word in first["hint"] for word in host.remedy} == dict.fromkeys(host.remedy, True)
    assert host.layer in first["text"]
    assert first["text"].count(first["hint"]) == 1
    assert "\n" not in first["text"]


@each_host
def test_the_next_spawn_works_or_says_the_same_again(host):
    first, second = what_happens(host)["spawns"]
    if (host.lift, host.other) == ("None", "None"):
        assert second == first
    else:
        assert ran(second)
    assert not second["left behind"]


# The same callers without their obstacles.
CONTROLS = [
    Host("plain", "", 0, ()),
    Host("in a root", "", 0, (), sandbox=IN_A_ROOT),
    Host("with a network", "", 0, (), wrapper=OWN_NETWORK, sandbox=WITH_A_NETWORK),
    Host("without seccomp", "", 0, (), sandbox=WITHOUT_SECCOMP),
    Host("home closed", "", 0, (), A_CLOSED_HOME),
    Host("in a user namespace", "", 0, (), IN_A_USER_NAMESPACE),
    Host("without a capability that is not needed", "", 0, (), wrapper=without("sys_boot")),
    Host("a call refused that is not needed", "", 0, (), f"obstacles.refuse({errno.EPERM}, 'reboot')"),
]


@pytest.mark.parametrize("host", CONTROLS, ids=lambda host: host.name)
def test_control_without_the_obstacle_user_code_runs(host):
    told = what_happens(host)
    assert [ran(spawn) for spawn in told["spawns"]] == [True, True], told
    assert not told["left behind"]


START = """
before = children_of_this_process(), open_descriptors()
try:
    pyspawner.Client(child_main="support.run_source", preload_imports=["json", {module!r}]).close()
    print("it started")
except pyspawner.ZygoteStartError as error:
    print(error)
assert (children_of_this_process(), open_descriptors()) == before
"""


def test_a_thread_that_comes_back_after_the_fork_is_named():
    """Such a zygote cannot be cloned safely. The reader learns which thread it is, and of which module."""
    text = support.run_caller(START.format(module="thread_after_fork"))
    assert "comes-back" in text
    assert "thread_after_fork" in text
    assert "preload_imports" in text, "what to do"
    assert ": pyspawner," not in text, "the first thread, which is no obstacle"


def test_control_a_thread_that_does_not_come_back_is_no_obstacle(monkeypatch):
    monkeypatch.syspath_prepend(Path(support.__file__).parent / "libraries")
    assert support.run_caller(START.format(module="thread_started_at_import")) == "it started\n"
