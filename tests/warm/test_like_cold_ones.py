"""A warm child is locked in as a cold one is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pyspawner import Bind, Dev, Limits, NetworkConfig, Overlay, Proc, SandboxConfig, Tmpfs
from support import communicate, only, run, spawn
from warm_support import cool, run_warm, spawn_warm

REPORT = """
import json, os, resource
def lines(path):
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError as error:
        return [type(error).__name__]
def listed(path):
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        return [type(error).__name__]
secure = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "Sig", "Shd", "Threads", "Core", "NSpid", "NSpgid", "NSsid")
# Less the numbers of mounts, devices and peer groups, and the options of filesystems, of which some are numbers too.
mounts = [line.split() for line in lines("/proc/self/mountinfo")]
print(json.dumps({
    "status": [line for line in lines("/proc/self/status") if line.startswith(secure)],
    "mounts": [(mount[3:6], mount[mount.index("-") + 1]) for mount in mounts if "-" in mount],
    "directories": {path: listed(path) for path in ("/", "/tmp", "/dev", "/mnt", "/proc/self/fd", "/sys", "/run")},
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
    "ids": [os.getresuid(), os.getresgid(), os.getgroups(), os.getpid(), os.getppid(), os.getsid(0)],
    "place": [os.getcwd(), os.umask(0o22), dict(os.environ), os.nice(0), os.uname().nodename],
    "network": lines("/proc/net/dev")[2:] and sorted(line.split(":")[0] for line in lines("/proc/net/dev")[2:]),
    "streams": [oct(os.fstat(number).st_mode) + str(os.fstat(number).st_uid) for number in range(3)],
}))
"""


def fill(directory: Path) -> Path:
    for name in ("root", "root/tmp", "root/mnt", "root/proc", "root/dev", "source", "lower"):
        (directory / name).mkdir()
        (directory / name / "file").write_text(name)
    return directory


SANDBOXES = {
    "the default": lambda _: SandboxConfig(),
    "a root of its own": lambda top: SandboxConfig(
        chroot_dir=top / "root", mounts=(Proc("/proc"), Dev("/dev"), Tmpfs("/tmp"))
    ),
    "binds": lambda top: SandboxConfig(
        mounts=(
            Tmpfs("/mnt"),
            Bind(top / "source", "/mnt/read-only"),
            Bind(top / "source", "/mnt/writable", writable=True),
        ),
        working_dir=Path("/mnt/writable"),
    ),
    "an overlay in memory": lambda top: SandboxConfig(mounts=(Overlay("/mnt", lower=top / "lower"),)),
    "without namespaces": lambda _: SandboxConfig.without_namespaces(),
    "a loopback": lambda _: SandboxConfig(network=NetworkConfig.loopback()),
    "limits of a process": lambda _: SandboxConfig(
        limits=Limits(cgroup="never", memory_bytes=512 << 20, processes=20, open_files=64, nice=5)
    ),
    "no limits": lambda _: SandboxConfig(
        limits=Limits(
            memory_bytes=None,
            cpu_seconds=None,
            processes=None,
            open_files=None,
            file_bytes=None,
        )
    ),
}


@pytest.fixture(params=SANDBOXES.values(), ids=list(SANDBOXES))
def sandbox(request, directory):
    return request.param(fill(directory))


def without_ids(text: str) -> str:
    """Host ids follow from the pid."""
    return re.sub(r"\d{5,}", "N", text)


def test_its_layers_are_those_of_a_cold_one(sandbox, preloaded):
    cold, warm = (start(preloaded, "", sandbox=sandbox) for start in (spawn, spawn_warm))
    cold_layers, warm_layers = (
        [(layer, without_ids(words)) for layer, words in child.layers.items()] for child in (cold, warm)
    )
    assert warm_layers == cold_layers
    for child in (cold, warm):
        assert communicate(child).exitcode == 0
    cool(preloaded, sandbox)


def test_it_sees_what_a_cold_one_sees(sandbox, preloaded):
    cold, warm = (json.loads(start(preloaded, REPORT, sandbox=sandbox).text) for start in (run, run_warm))
    cool(preloaded, sandbox)
    is_limited = cold["limits"]["RLIMIT_CPU"] != [-1, -1]
    if is_limited:
        # What it has used before it was woken does not count.
        assert warm["limits"]["RLIMIT_CPU"] >= cold["limits"]["RLIMIT_CPU"]
        del cold["limits"]["RLIMIT_CPU"], warm["limits"]["RLIMIT_CPU"]
    if not sandbox.namespaces:
        # An id of the host's, and its pids.
        for of in (cold, warm):
            del of["ids"], of["streams"]
            of["status"] = [without_ids(line) for line in of["status"] if not line.startswith("NS")]
    assert warm == cold


def test_files_that_it_writes_are_the_callers(directory, preloaded):
    fill(directory)
    sandbox = SandboxConfig(mounts=(Bind(directory / "source", "/mnt", writable=True),))
    source = "import os; open('/mnt/new', 'w').write('x'); print(os.stat('/mnt/file').st_uid)"
    assert run_warm(preloaded, source, sandbox=sandbox).text == "1000\n"
    cool(preloaded, sandbox)
    assert (directory / "source" / "new").stat().st_uid == 0


ATTACKS = [
    "setuid",
    "mount",
    "setns",
    "unshare NEWUSER",
    "clone NEWUSER",
    "ptrace",
    "bpf",
    "keyctl",
    "io_uring_setup",
    "perf_event_open",
    "socket AF_PACKET",
    "seccomp second filter",
]
ATTEMPT = "import attacks; attacks.attempt(name)"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_as_in_a_cold_one(name, preloaded):
    cold, warm = (start(preloaded, ATTEMPT, name=name) for start in (run, run_warm))
    cool(preloaded, SandboxConfig())
    assert (warm.exitcode, warm.stdout, warm.stderr) == (cold.exitcode, cold.stdout, cold.stderr)


@pytest.mark.parametrize("name", ["unshare NEWUSER", "setuid", "perf_event_open", "seccomp second filter"])
def test_control_an_attack_by_a_warm_one_without_the_layers_works(name, preloaded):
    outcome = run_warm(preloaded, ATTEMPT, sandbox=only(), name=name)
    cool(preloaded, only())
    assert int(outcome.text) >= 0
