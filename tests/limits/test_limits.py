"""``Limits`` without a cgroup: what each process of a child may use. Each limit stops, and is not met without it."""

from __future__ import annotations

import os
import resource
import textwrap

import pytest

from bombs import BOMBS
from pyspawner import Cause, Limits, SandboxConfig, SandboxError
from support import run, spawn

MIB = 1024 * 1024


def sandbox(**limits) -> SandboxConfig:
    return SandboxConfig(limits=Limits(cgroup="never", **limits))


@pytest.fixture(params=["with namespaces", "without namespaces"])
def each(request):
    """A sandbox with these limits, of each kind."""
    if request.param == "with namespaces":
        return sandbox
    return lambda **limits: SandboxConfig.without_namespaces(limits=Limits(cgroup="never", **limits))


# Source, the limit that stops it, and what its exception is then. Where it does not stop, it prints "through".
STOPPED = {
    "a large list": ("x = [0] * (50 << 20)", {"memory_bytes": 256 * MIB}, "MemoryError"),
    "an anonymous mapping": (
        "import mmap; x = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)",
        {"memory_bytes": 100 * MIB},
        "OSError: [Errno 12]",
    ),
    "the heap by sbrk": (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); c.sbrk.restype = ctypes.c_long\n"
        "if c.sbrk(200 << 20) == -1: raise OSError(ctypes.get_errno(), 'sbrk')",
        {"memory_bytes": 100 * MIB},
        "OSError: [Errno 12]",
    ),
    "processes": (
        """
            import os
            for _ in range(30):
                if os.fork() == 0: os.read(0, 1); os._exit(0)
        """,
        {"processes": 20},
        "BlockingIOError",
    ),
    "processes of processes": (
        """
            import os
            def chain(left):
                if left and os.fork() == 0:
                    chain(left - 1); os._exit(0)
                if left and os.wait()[1]: raise SystemExit(1)
            chain(30)
        """,
        {"processes": 20},
        "BlockingIOError",
    ),
    "threads": (
        """
            import threading; stop = threading.Event()
            try:
                for _ in range(30): threading.Thread(target=stop.wait).start()
            finally: stop.set()
        """,
        {"processes": 20},
        "RuntimeError: can't start new thread",
    ),
    "descriptors": (
        "import os; fds = [os.dup(0) for _ in range(100)]",
        {"open_files": 64},
        "OSError: [Errno 24]",
    ),
    "sockets": (
        "import socket; pairs = [socket.socketpair() for _ in range(50)]",
        {"open_files": 64},
        "OSError: [Errno 24]",
    ),
    "a memfd": (
        "import os; os.ftruncate(os.memfd_create('x'), 20 << 20)",
        {"file_bytes": 10 * MIB},
        "OSError: [Errno 27]",
    ),
}
# Without namespaces there is nothing to write to.
STOPPED_FILES = {
    "a file": (
        "open('/tmp/x', 'wb').write(bytes(20 << 20))",
        {"file_bytes": 10 * MIB},
        "OSError: [Errno 27]",
    ),
    "a sparse file": (
        "import os; open('/tmp/x', 'wb').truncate(1 << 30)",
        {"file_bytes": 10 * MIB},
        "OSError: [Errno 27]",
    ),
    "/tmp": ("open('/tmp/x', 'wb').write(bytes(20 << 20))", {"tmp_bytes": 10 * MIB}, "OSError: [Errno 28]"),
    "/dev/shm": (
        "open('/dev/shm/x', 'wb').write(bytes(20 << 20))",
        {"tmp_bytes": 10 * MIB},
        "OSError: [Errno 28]",
    ),
    "/tmp and /var/tmp": (
        "open('/tmp/x', 'wb').write(bytes(6 << 20)); open('/var/tmp/x', 'wb').write(bytes(6 << 20))",
        {"tmp_bytes": 10 * MIB},
        "OSError: [Errno 28]",
    ),
    "many files": (
        "for number in range(1000): open(f'/tmp/{number}', 'w').close()",
        {"tmp_bytes": 2 * MIB},
        "OSError: [Errno 28]",
    ),
}


def outcome(client, source, config):
    return spawn(client, textwrap.dedent(source) + "\nprint('through')", sandbox=config).communicate(
        timeout=120
    )


def check_stopped(client, make, source, limits, words):
    unlimited = {name: 2**40 if name == "tmp_bytes" else None for name in limits}
    through = outcome(client, source, make(**unlimited))
    assert (through.stdout.split()[:1], through.stderr) == ([b"through"], b""), "the control"
    stopped = outcome(client, source, make(**limits))
    assert words in stopped.stderr.decode()
    assert stopped.stdout.count(b"through") < through.stdout.count(b"through")


@pytest.mark.parametrize("what", STOPPED)
def test_a_limit_stops(preloaded, each, what):
    check_stopped(preloaded, each, *STOPPED[what])


@pytest.mark.parametrize("what", STOPPED_FILES)
def test_a_limit_of_files_stops(client, what):
    check_stopped(client, sandbox, *STOPPED_FILES[what])


BURN = "import time\nwhile time.process_time() < 1.5: pass"


def test_a_process_that_has_used_its_cpu_time_is_killed(preloaded, each):
    assert outcome(preloaded, BURN, each(cpu_seconds=None)).stdout == b"through\n", "the control"
    stopped = outcome(preloaded, BURN, each(cpu_seconds=1))
    assert (stopped.returncode, stopped.cause, stopped.stdout) == (-9, Cause.CPU_TIME, b"")
    assert stopped.usage.user_seconds + stopped.usage.system_seconds > 0.8


def test_cpu_time_counts_in_threads_too(preloaded, each):
    source = "import threading\n" + "def burn():\n    while True: pass\n"
    source += (
        "threads = [threading.Thread(target=burn) for _ in range(3)]\nfor thread in threads: thread.start()"
    )
    assert outcome(preloaded, source, each(cpu_seconds=1)).cause is Cause.CPU_TIME


def test_no_handler_keeps_a_child_alive_that_has_used_its_cpu_time(preloaded, each):
    source = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert outcome(preloaded, source, each(cpu_seconds=1)).cause is Cause.CPU_TIME


def test_waiting_uses_no_cpu_time(client):
    assert outcome(client, "import time; time.sleep(1.2)", sandbox(cpu_seconds=1)).cause is Cause.EXITED


@pytest.mark.parametrize(
    ("limit", "resource_name", "value"),
    [
        # Behind the watchdog, which is exact. What a warm child has used before does not count, so that its limit is higher.
        pytest.param({"cpu_seconds": 66}, "RLIMIT_CPU", 100, marks=pytest.mark.cold),
        ({"processes": 40}, "RLIMIT_NPROC", 40),
        ({"open_files": 50}, "RLIMIT_NOFILE", 50),
        ({"file_bytes": 4096}, "RLIMIT_FSIZE", 4096),
    ],
)
def test_soft_and_hard_limit_are_one_and_cannot_be_raised(preloaded, each, limit, resource_name, value):
    source = """
        import resource
        which = getattr(resource, name)
        print(resource.getrlimit(which) == (value, value))
        for higher in (value + 1, resource.RLIM_INFINITY):
            try:
                resource.setrlimit(which, (higher, higher))
            except (ValueError, OSError):
                print("refused")
        resource.setrlimit(which, (value - 1, value - 1))
        print(resource.getrlimit(which) == (value - 1, value - 1))
    """
    done = run(preloaded, source, sandbox=each(**limit), name=resource_name, value=value)
    assert done.text.split() == ["True", "refused", "refused", "True"]


def test_memory_is_counted_beside_what_the_zygote_has(preloaded):
    source = """
        import resource
        data, = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")]
        print(resource.getrlimit(resource.RLIMIT_DATA)[0] - data * 1024)
    """
    left = int(run(preloaded, source, sandbox=sandbox(memory_bytes=64 * MIB)).text)
    assert 56 * MIB < left <= 64 * MIB


@pytest.mark.cold
def test_what_a_child_starts_has_its_limits(client):
    source = """
        import subprocess, sys
        code = "import resource as r; print([r.getrlimit(x)[1] for x in (r.RLIMIT_NOFILE, r.RLIMIT_FSIZE, r.RLIMIT_CPU)])"
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    """
    config = sandbox(open_files=99, file_bytes=12345, cpu_seconds=78)
    assert run(client, source, sandbox=config).text.strip() == "[99, 12345, 118]"


def test_limits_are_there_when_nothing_is_said(client):
    source = """
        import resource
        for name in ("DATA", "CPU", "NPROC", "NOFILE", "FSIZE"):
            print(resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] != resource.RLIM_INFINITY)
    """
    assert run(client, source).text.split() == ["True"] * 5


def test_a_child_has_never_more_than_its_caller(client):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    source = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[1])"
    assert int(run(client, source, sandbox=sandbox(open_files=2**40)).text) == hard


def test_niceness_is_added_to_the_callers_and_cannot_be_taken_back(preloaded, each):
    source = """
        import os
        print(os.nice(0))
        try:
            os.nice(-1)
        except PermissionError:
            print("refused")
    """
    done = run(preloaded, source, sandbox=each(nice=7))
    assert done.text.split() == [str(os.nice(0) + 7), "refused"]


def test_a_child_is_the_first_to_go_when_memory_is_short(preloaded, each):
    source = """
        print(open("/proc/self/oom_score_adj").read().strip())
        try:
            open("/proc/self/oom_score_adj", "w").write("0")
        except OSError:
            print("refused")
    """
    assert run(preloaded, source, sandbox=each()).text.split() == ["1000", "refused"]


# What is said of them. ------------------------------------------------------------------------------------


def test_layers_tell_what_is_limited_and_what_not(client):
    with spawn(client, "", sandbox=sandbox(memory_bytes=100 * MIB, processes=None, nice=3)) as child:
        layers = dict(child.layers)
    assert layers["rlimits"] == (
        "each process: 100 MiB of data beside the zygote's, 3600 s of CPU time, 1024 descriptors, files of 8 GiB; 3 nicer; "
        "the first to go when memory is short"
    )
    assert layers["cgroup"] == (
        "none (as asked): memory and CPU time are limited for each process, and not for all together"
    )


def test_repr_prints_the_defaults():
    assert repr(Limits()) == (
        "Limits(memory_bytes=2147483648, cpu_seconds=3600, processes=512, open_files=1024, file_bytes=8589934592, "
        "tmp_bytes=268435456, nice=0, cpus=None, cgroup='if_delegated')"
    )


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"memory_bytes": 4 * MIB - 1}, "memory_bytes must be at least 4194304 bytes, not 4194303"),
        ({"cpu_seconds": 0}, "cpu_seconds must be at least 0.001, not 0"),
        ({"cpu_seconds": float("nan")}, "cpu_seconds must be a positive number, not NaN"),
        ({"cpu_seconds": -1.5}, "cpu_seconds must be a positive number, not -1.5"),
        ({"cpus": 0.001}, "cpus must be at least 0.01, not 0.001"),
        ({"cpus": 1, "cgroup": "never"}, 'cpus needs a cgroup, and this configuration has cgroup="never"'),
        ({"processes": 0}, "processes must be at least 1, not 0"),
        ({"open_files": 15}, "open_files must be at least 16, not 15"),
        ({"tmp_bytes": 0}, "tmp_bytes must be at least 4096 bytes, not 0"),
        ({"nice": 20}, "nice must be from 0 to 19, not 20"),
        ({"nice": -1}, "nice must not be negative, nor 2\\*\\*63 or more: -1"),
        (
            {"memory_bytes": 2**63},
            "memory_bytes must not be negative, nor 2\\*\\*63 or more: 9223372036854775808",
        ),
        ({"cgroup": "maybe"}, 'cgroup must be "if_delegated", "required" or "never", not "maybe"'),
    ],
)
def test_a_limit_that_makes_no_sense_is_a_value_error(client, limits, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        client.spawn_child(sandbox_config=SandboxConfig(limits=Limits(**limits)))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"memory_bytes": "2 GiB"}, "memory_bytes must be an int, not '2 GiB'"),
        ({"memory_bytes": 1e9}, "memory_bytes must be an int, not 1000000000.0"),
        ({"cpu_seconds": "1"}, "cpu_seconds must be a number, not '1'"),
        ({"tmp_bytes": None}, "tmp_bytes must be an int, not None"),
        ({"nice": None}, "nice must be an int, not None"),
    ],
)
def test_a_limit_of_another_type_is_a_type_error_where_it_is_made(limits, words):
    with pytest.raises(TypeError, match=f"^{words}$"):
        Limits(**limits)


def test_limits_of_another_type_are_a_type_error(client):
    with pytest.raises(TypeError, match=r'^limits must be Limits\(\.\.\.\) or "required", not 5$'):
        client.spawn_child(sandbox_config=SandboxConfig(limits=5))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("limits", ["required", Limits(cgroup="required"), Limits(cpus=1)], ids=repr)
def test_without_a_cgroup_v2_what_needs_one_fails_and_says_what_to_do(client, limits):
    # This test is for hosts without one. The others are in tests/cgroup.
    with spawn(client, "") as child:
        assert child.layers["cgroup"].startswith("none (")
    with pytest.raises(SandboxError) as caught:
        client.spawn_child(sandbox_config=SandboxConfig(limits=limits))
    assert (caught.value.layer, bool(caught.value.hint)) == ("cgroup", True)


# Bombs. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_harms_no_sibling_and_ends_at_the_timeout(client, what):
    config = sandbox(processes=64, memory_bytes=128 * MIB, tmp_bytes=64 * MIB, nice=19)
    with spawn(client, "print('ready', flush=True)\n" + textwrap.dedent(BOMBS[what]), sandbox=config) as bomb:
        assert bomb.stdout.readline() == b"ready\n"
        for _ in range(3):
            sibling = spawn(
                client,
                "import threading, os; t = threading.Thread(target=os.getpid); t.start(); print(sum(range(10**5)))",
            )
            assert sibling.communicate(timeout=60).check().stdout == b"4999950000\n"
        ended = bomb.communicate(timeout=0.5)
    assert ended.cause is Cause.TIMED_OUT, ended
