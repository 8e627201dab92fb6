"""Limits of a cgroup: of a child and all that it starts, together. Each attack works where the limit is higher."""

from __future__ import annotations

import dataclasses
import textwrap

import pytest
from cgroup_support import WITHOUT_NAMESPACES

import bombs
from pyspawner import Cause, Limits, SandboxConfig
from support import SANDBOX, spawn

pytestmark = pytest.mark.usefixtures("in_use")
MIB = 1 << 20

# What takes 64 MiB of memory, most of it where RLIMIT_DATA does not look.
MEMORY = {
    "shared": """
        import mmap
        kept = mmap.mmap(-1, 64 << 20)
        for at in range(0, 64 << 20, 4096): kept[at] = 1
    """,
    "tmpfs": "file = open('/tmp/x', 'wb')\nfor _ in range(64): file.write(bytes(1 << 20))",
    "memfd": """
        import os
        memfd = os.memfd_create('x')
        for _ in range(64): os.write(memfd, bytes(1 << 20))
    """,
    "System V": """
        import ctypes
        libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p
        at = libc.shmat(libc.shmget(0, 64 << 20, 0o1600), None, 0); ctypes.memset(at, 1, 64 << 20)
    """,
    "pipes": """
        import os
        kept = []
        for _ in range(450):
            kept.append(os.pipe()); os.set_blocking(kept[-1][1], False)
            try:
                while True: os.write(kept[-1][1], bytes(4096))
            except BlockingIOError: pass
    """,
    "sockets": """
        import socket
        kept = []
        for _ in range(400):
            kept.append(socket.socketpair()); kept[-1][0].setblocking(False)
            try:
                while True: kept[-1][0].send(bytes(32768))
            except BlockingIOError: pass
    """,
    "page tables": """
        import mmap
        kept = mmap.mmap(-1, 40 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
        for at in range(0, 40 << 30, 2 << 20): kept[at]
    """,
    "many processes": """
        import os
        ready, tell = os.pipe()
        never, _ = os.pipe()
        for _ in range(8):
            if os.fork() == 0:
                kept = bytearray(8 << 20); os.write(tell, b'x'); os.read(never, 1)
        for _ in range(8): os.read(ready, 1)
    """,
    "a descendant": """
        import os
        if os.fork() == 0:
            import mmap
            kept = mmap.mmap(-1, 64 << 20)
            for at in range(0, 64 << 20, 4096): kept[at] = 1
            os._exit(0)
        os.wait()
    """,
}


@pytest.mark.parametrize("what", MEMORY)
def test_memory_of_every_kind_counts_and_ends_the_child(client, what):
    source = textwrap.dedent(MEMORY[what]) + "\nprint('through')"
    roomy = SandboxConfig(limits=Limits(memory_bytes=900 * MIB))
    through = spawn(client, source, sandbox=roomy).communicate(timeout=120)
    assert (through.stdout, through.cause) == (b"through\n", Cause.EXITED), (through, "the control")
    assert through.usage.peak_memory_bytes > 24 * MIB
    stopped = spawn(client, source, sandbox=SandboxConfig(limits=Limits(memory_bytes=24 * MIB)))
    stopped = stopped.communicate(timeout=120)
    assert (stopped.cause, stopped.returncode, stopped.stdout) == (Cause.OUT_OF_MEMORY, -9, b""), stopped
    sibling = spawn(client, "print('unharmed')").communicate(timeout=60)
    assert sibling.stdout == b"unharmed\n"


def test_processes_that_could_not_be_made_are_counted(client):
    source = """
        import os
        for _ in range(20):
            try:
                if os.fork() == 0: os.read(0, 1); os._exit(0)
            except OSError: pass
    """
    config = SandboxConfig(limits=Limits(processes=8))
    child = spawn(client, source, sandbox=config)
    usage = child.communicate(timeout=60).usage
    assert usage.peak_processes is not None
    assert usage.peak_processes <= 8
    assert usage.refused_processes is not None
    calm = spawn(client, "", sandbox=config).communicate(timeout=60).usage
    assert (calm.peak_processes, calm.refused_processes) == (1, 0)


SPLIT = """
    import os, time
    for _ in range(3): os.fork()
    while time.process_time() < 0.5: pass
    os.read(0, 1)
    print('through')
"""


def test_cpu_time_of_all_processes_counts_together(client):
    with spawn(client, SPLIT, sandbox=SandboxConfig(limits=Limits(cpu_seconds=1))) as child:
        stopped = child.communicate(timeout=120)
    assert stopped.cause is Cause.CPU_TIME
    assert stopped.usage.user_seconds + stopped.usage.system_seconds >= 0.99
    through = spawn(client, SPLIT).communicate(timeout=120)
    assert (through.cause, b"through" in through.stdout) == (Cause.EXITED, True), "the control"


def test_usage_is_that_of_descendants_too_that_nobody_waits_for(client):
    source = """
        import os, time
        ready, tell = os.pipe()
        if os.fork() == 0:
            while time.process_time() < 0.5: pass
            os.write(tell, b'x'); os._exit(0)
        os.read(ready, 1)
    """
    usage = spawn(client, source).communicate(timeout=120).usage
    assert usage.user_seconds + usage.system_seconds >= 0.5
    assert usage.peak_processes == 2


# Of memory, one where the limits of each process do not look.
BOMBS = {name: bombs.BOMBS[name] for name in ("forks", "threads", "double forks")} | {
    "memory": """
        import os, mmap
        kept = []
        while True:
            kept.append(mmap.mmap(-1, 1 << 20)); kept[-1].write(bytes(1 << 20))
    """,
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_harms_no_sibling(client, what):
    config = SandboxConfig(limits=Limits(processes=32, memory_bytes=32 * MIB, cpu_seconds=60, cpus=0.5))
    with spawn(client, "print('ready', flush=True)\n" + textwrap.dedent(BOMBS[what]), sandbox=config) as bomb:
        assert bomb.stdout.readline() == b"ready\n"
        for _ in range(3):
            assert spawn(client, "print('unharmed')").communicate(timeout=120).stdout == b"unharmed\n"
        cause = bomb.communicate(timeout=120 if what == "memory" else 1).cause
    assert cause is (Cause.OUT_OF_MEMORY if what == "memory" else Cause.TIMED_OUT)


@pytest.mark.parametrize("base", [SANDBOX, WITHOUT_NAMESPACES], ids=["with namespaces", "without"])
def test_limits_are_written_before_the_child_lives(client, base, cgroup_of):
    limits = Limits(memory_bytes=100 * MIB, processes=33, cpus=0.5, nice=5)
    config = dataclasses.replace(base, limits=limits)
    with spawn(client, "import sys; sys.stdin.read()", sandbox=config) as child:
        directory = cgroup_of(child)
        read = lambda name: (directory / name).read_text().strip()  # noqa: E731
        assert (read("memory.max"), read("memory.oom.group")) == (str(100 * MIB), "1")
        assert (read("pids.max"), read("cpu.max"), read("cpu.weight.nice")) == ("33", "50000 100000", "5")
        assert read("cgroup.procs") == str(child.pid)


def test_no_limit_is_no_limit(client, cgroup_of):
    limits = Limits(memory_bytes=None, processes=None, cpu_seconds=None)
    with spawn(client, "import sys; sys.stdin.read()", sandbox=SandboxConfig(limits=limits)) as child:
        assert [(cgroup_of(child) / name).read_text() for name in ("memory.max", "pids.max")] == [
            "max\n",
            "max\n",
        ]
        assert child.layers["cgroup"] == "no limits"


def test_a_number_that_is_too_large_for_the_kernel_is_no_limit(client):
    limits = Limits(memory_bytes=2**63 - 1, processes=2**63 - 1, cpus=1e9, cpu_seconds=1e9)
    done = spawn(client, "print('works')", sandbox=SandboxConfig(limits=limits)).communicate(timeout=60)
    assert done.stdout == b"works\n"
