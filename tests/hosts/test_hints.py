"""Hosts that refuse what the sandbox is made of: one clear error that names the remedy, and nothing else happens.

Each host is a caller of its own that puts the obstacle in its own way.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import support

PLAIN = "SANDBOX"
WITHOUT_PROC = "pyspawner.SandboxConfig(proc=False)"
IN_A_ROOT = "pyspawner.SandboxConfig(chroot_dir=directory)"
WITH_MOUNTS = """pyspawner.SandboxConfig(working_dir="/x/home", mounts=(
    pyspawner.Tmpfs("/tmp/first"),
    pyspawner.Bind(directory, "/x", writable=True),
    pyspawner.Overlay("/tmp/second", lower=directory),
    pyspawner.Bind("/etc/passwd", directory / "missing" / "passwd"),
))"""
WITH_A_NETWORK = "pyspawner.SandboxConfig(network=pyspawner.NetworkConfig())"
WITHOUT_SECCOMP = "only('drop_capabilities', 'setuid', 'no_new_privs')"
# Where a module lies below a directory that is closed to strangers.
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
    index: int | None = None
    """Of ``mounts``, the one that it is about."""


def refused(
    call: str, answer: int, layer: str, *remedy: str, prelude: str = "", why: str = "", **more: Any
) -> Host:
    name = f"{call} is {errno.errorcode[answer]}{why}"
    obstacle = f"{prelude}\nobstacles.refuse({answer}, {call!r})"
    return Host(name, layer, answer, remedy, obstacle, **more)


def mistaken(name: str, answer: int, *remedy: str, mount: str, obstacle: str = "", **more: Any) -> Host:
    """A caller that asks for a mount that cannot be. Its next child is one without."""
    sandbox = f"pyspawner.SandboxConfig(mounts=(pyspawner.Tmpfs('/tmp/first'), pyspawner.{mount}))"
    # Which one of them it is stands in the text.
    return Host(name, "mounts", answer, remedy, obstacle, sandbox=sandbox, other=PLAIN, index=1, **more)


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
    refused("unshare", errno.EPERM, "mounts", "CAP_SYS_ADMIN"),
    *[
        refused(call, errno.EPERM, "mounts", *MOUNTING, prelude=A_CLOSED_HOME)
        for call in ("mount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr")
    ],
    *[
        refused(call, errno.EPERM, "mounts", *MOUNTING, sandbox=IN_A_ROOT, why=", root")
        for call in ("mount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr")
    ],
    refused("fsopen", errno.EPERM, "mounts", *MOUNTING, sandbox=WITHOUT_PROC, other=IN_A_ROOT),
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
        "a container that has been given 65,536 ids",
        "id_map",
        errno.EPERM,
        ("mapped", "/etc/subuid"),
        "obstacles.enter_user_namespace('0 0 65536')",
    ),
]

# The caller's mounts are its own.
OWN_MOUNTS = ("unshare", "--mount")
# As a container's root is, by default.
AN_OVERLAY = """
make = 'cd "$1" && mkdir place && mount -t tmpfs none place && cd place && mkdir lower upper work merged && ' \\
    'mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none merged'
subprocess.run(["sh", "-c", make, "sh", directory], check=True)
"""
# As containers have it. A user namespace that is made after that cannot lift the cover.
MASK_PROC = 'subprocess.run(["mount", "--bind", "/dev/null", "/proc/timer_list"], check=True)'
A_MASKED_PROC = f"""
{MASK_PROC}
{IN_A_USER_NAMESPACE}
assert attacks.call("unshare", attacks.NEWNS) == 0
"""

MISTAKES = [
    mistaken("a source that is missing", errno.ENOENT, "does not exist", mount="Bind('/srv/missing', '/x')"),
    mistaken(
        "a lower that is missing", errno.ENOENT, "does not exist", mount="Overlay('/x', lower='/srv/missing')"
    ),
    mistaken(
        "a source that is a symbolic link",
        errno.ELOOP,
        *("symbolic link", "os.path.realpath()"),
        mount="Bind(directory / 'link', '/x')",
        obstacle="(directory / 'link').symlink_to(directory)",
    ),
    mistaken(
        "a lower that is a file",
        errno.ENOTDIR,
        "must be a directory",
        mount="Overlay('/x', lower='/etc/passwd')",
    ),
    mistaken(
        "an upper that is a symbolic link",
        errno.ENOTDIR,
        *("upper", "not a symbolic link"),
        mount="Overlay('/x', lower=directory, upper=directory / 'link')",
        obstacle="(directory / 'link').symlink_to(directory)",
    ),
    mistaken(
        "a target below a file", errno.ENOTDIR, "target", "no directory", mount="Tmpfs('/etc/passwd/below')"
    ),
    mistaken(
        "a target that is a link to something missing",
        errno.EEXIST,
        *("target", "symbolic link", "leads nowhere"),
        mount="Tmpfs(directory / 'link')",
        obstacle="(directory / 'link').symlink_to('missing')",
    ),
    mistaken(
        "a target below a link that leads to itself",
        errno.ELOOP,
        *("target", "symbolic link", "leads nowhere"),
        mount="Tmpfs(directory / 'link' / 'below')",
        obstacle="(directory / 'link').symlink_to('link')",
    ),
    mistaken("a directory for a file", errno.ENOTDIR, "not of one kind", mount="Tmpfs('/etc/passwd')"),
    mistaken("a file for a directory", errno.EISDIR, "not of one kind", mount="Bind('/etc/passwd', '/tmp')"),
    mistaken(
        "a missing target in a directory of many entries",
        errno.E2BIG,
        *("target is missing", "too many entries", "beforehand"),
        mount="Tmpfs(directory / 'missing')",
        obstacle="[(directory / str(number)).touch() for number in range(1025)]",
    ),
    mistaken(
        "a writable bind of a filesystem that cannot map owners",
        errno.EINVAL,
        *("cannot map the owners", "writable Bind", "ext4", "overlayfs", "In Docker"),
        mount="Bind(directory / 'place' / 'merged', '/x', writable=True)",
        obstacle=AN_OVERLAY,
        wrapper=OWN_MOUNTS,
    ),
    mistaken(
        "a writable bind before Linux 5.12",
        errno.ENOSYS,
        *("writable Bind", "Linux 5.12"),
        mount="Bind(directory, '/x', writable=True)",
        obstacle=f"obstacles.refuse({errno.ENOSYS}, 'mount_setattr')",
    ),
    *[
        mistaken(
            f"an overlay before Linux 5.19, {errno.errorcode[answer]}",
            answer,
            *("Linux 5.19", "user attributes"),
            mount="Overlay('/x', lower=directory)",
            obstacle=f"obstacles.refuse_value({answer}, obstacles.FSCONFIG, 1, obstacles.FSCONFIG_SET_FLAG)",
        )
        for answer in (errno.EINVAL, errno.EPERM)
    ],
    *[
        Host(
            f"a working_dir that {what}",
            "mounts",
            answer,
            ("working_dir must be a directory", "may enter"),
            sandbox=f"pyspawner.SandboxConfig(working_dir={path})",
            other=PLAIN,
        )
        for what, path, answer in [
            ("is missing", "'/srv/missing'", errno.ENOENT),
            ("is a file", "'/etc/passwd'", errno.ENOTDIR),
            ("is closed", "directory / 'home'", errno.EACCES),
        ]
    ],
]
A_MASKED_CONTAINER = Host(
    "a container with a masked /proc",
    "mounts",
    errno.EPERM,
    ("systempaths=unconfined", "procMount: Unmasked", "SandboxConfig(proc=False)"),
    A_MASKED_PROC,
    OWN_MOUNTS,
    other=WITHOUT_PROC,
)
HOSTS += [
    A_MASKED_CONTAINER,
    dataclasses.replace(A_MASKED_CONTAINER, name="a container with a masked /proc, root", other=IN_A_ROOT),
]
HOSTS += MISTAKES
each_host = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)


@functools.cache
def what_happens(host: Host) -> dict[str, Any]:
    with support.visible_directory() as directory:
        (directory / "bell").touch()
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
    assert ("mounts[" in first["text"]) == (host.index is not None)
    assert host.index is None or f"mounts[{host.index}]" in first["text"]
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


# Many of them, and at once: now and then a child has ended before its caller looks.
FAIL_OFTEN = """
from concurrent.futures import ThreadPoolExecutor
def fail(_):
    try:
        spawn(client, "", sandbox=pyspawner.SandboxConfig(working_dir=Path("/srv/missing")))
    except pyspawner.SandboxError as error:
        return error.layer, error.errno
with ThreadPoolExecutor(3) as pool:
    print(set(pool.map(fail, range(300))))
"""


def test_what_a_child_said_before_its_end_is_never_lost():
    expected = {("mounts", errno.ENOENT)}
    assert support.run_caller(FAIL_OFTEN) == f"{expected}\n"


# The same callers without their obstacles.
CONTROLS = [
    Host("plain", "", 0, ()),
    Host("in a root", "", 0, (), sandbox=IN_A_ROOT),
    Host("with a network", "", 0, (), wrapper=OWN_NETWORK, sandbox=WITH_A_NETWORK),
    Host("without seccomp", "", 0, (), sandbox=WITHOUT_SECCOMP),
    Host("home closed", "", 0, (), A_CLOSED_HOME),
    Host("with mounts", "", 0, (), sandbox=WITH_MOUNTS),
    # Root can see a whole one all the same.
    Host("a masked /proc", "", 0, (), MASK_PROC, OWN_MOUNTS),
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
