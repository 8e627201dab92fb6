"""Many threads, many spawns, and everything that can run out or die in the middle: clear errors, and nothing left."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pyspawner
from support import children_of_this_process, communicate, open_descriptors, run, spawn

THREADS = 16
SOURCE = "import sys; print(number, sys.stdin.read()); print(number, file=sys.stderr)"


@pytest.fixture
def own_client():
    """A client that a test may break."""
    with pyspawner.Client(child_main="support.run_source") as client:
        yield client


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def spawn_and_check(client: pyspawner.Client, number: int) -> str:
    """What became of one spawn; a wrong output fails the test."""
    try:
        outcome = communicate(spawn(client, SOURCE, number=number), b"%d" % -number)
    except OSError as error:
        return f"{type(error).__name__} {errno.errorcode[error.errno or 0]}"
    if outcome.exitcode == -signal.SIGKILL:
        return "killed"
    assert (outcome.stdout, outcome.stderr) == (b"%d %d\n" % (number, -number), b"%d\n" % number), outcome
    return "right"


def spawn_from_many_threads(client: pyspawner.Client, count: int) -> Counter[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return Counter(pool.map(lambda number: spawn_and_check(client, number), range(count)))


def test_16_threads_and_250_spawns_each(own_client):
    spawn_from_many_threads(own_client, THREADS)  # Whatever is made once is made now.
    before = descriptors_of(own_client.zygote_pid), open_descriptors(), socket.if_nameindex()
    assert spawn_from_many_threads(own_client, THREADS * 250) == {"right": THREADS * 250}
    assert (descriptors_of(own_client.zygote_pid), open_descriptors(), socket.if_nameindex()) == before


def test_the_zygote_is_killed_in_the_middle(own_client):
    done = threading.Semaphore(0)

    def work(number: int) -> str:
        outcome = spawn_and_check(own_client, number)
        done.release()
        return outcome

    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = pool.map(work, range(THREADS * 20))
        for _ in range(THREADS * 5):
            done.acquire()
        os.kill(own_client.zygote_pid, signal.SIGKILL)
        counts = Counter(outcomes)
    assert counts.keys() == {"right", "ZygoteDiedError EPIPE"}
    assert counts["right"] >= THREADS * 5
    assert counts.total() == THREADS * 20


@contextlib.contextmanager
def full_descriptor_table():
    """Every descriptor of this process is taken; answers the fillers, to be closed one by one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 60, hard))
    fillers: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
        yield fillers
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


def test_the_callers_descriptors_run_out(own_client):
    with full_descriptor_table() as fillers:
        # Enough for a few spawns at once, and not for all.
        for _ in range(30):
            os.close(fillers.pop())
        counts = spawn_from_many_threads(own_client, THREADS * 20)
    assert counts.keys() == {"right", "OSError EMFILE"}
    assert spawn_and_check(own_client, 1) == "right"


def test_no_descriptor_at_all_is_left_in_the_caller(own_client):
    """From none to enough, so that each step of a spawn fails once."""
    outcomes = []
    with full_descriptor_table() as fillers:
        while outcomes[-1:] != ["right"]:
            outcomes.append(spawn_with_few_descriptors(own_client))
            os.close(fillers.pop())
    assert set(outcomes[:-1]) == {"EMFILE"}
    assert len(outcomes) > 8, "pipes, socket pair, memfd and pidfd: each must have failed once"


def spawn_with_few_descriptors(client: pyspawner.Client) -> str:
    try:
        child = spawn(client, "print('x')")
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    with child.stdin, child.stdout, child.stderr:
        assert child.stdout.read() == b"x\n"
    assert child.wait()[1] == 0
    return "right"


def test_the_zygotes_descriptors_run_out(own_client):
    """From none to enough, so that each step of a clone fails once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = []
    for limit in range(3, 64):
        resource.prlimit(own_client.zygote_pid, resource.RLIMIT_NOFILE, (limit, hard))
        try:
            communicate(spawn(own_client, "pass"))
            break
        except pyspawner.SandboxError as error:
            seen.append(error)
    resource.prlimit(own_client.zygote_pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert "no file descriptor left" in str(seen[0])
    assert {error.layer for error in seen} >= {"namespaces", "id_map"}
    assert {error.errno for error in seen} == {errno.EIO, errno.EMFILE}
    assert spawn_and_check(own_client, 2) == "right"


@pytest.fixture
def process_limit(own_client):
    """Sets how many processes the zygote and its children may be, through a pids cgroup of version 1 or 2."""
    v1 = Path("/sys/fs/cgroup/pids")
    group = (v1 if v1.exists() else Path("/sys/fs/cgroup")) / f"pyspawner-test-{os.getpid()}"
    group.mkdir()
    (group / "cgroup.procs").write_text(str(own_client.zygote_pid))
    yield lambda limit: (group / "pids.max").write_text(str(limit))
    # The zygote leaves it by its end.
    own_client.close()
    deadline = time.monotonic() + 30
    while (group / "cgroup.procs").read_text():
        assert time.monotonic() < deadline, "a process is left in the cgroup"
        time.sleep(0.01)
    group.rmdir()


def test_the_process_limit_is_reached(own_client, process_limit):
    process_limit(4)  # The zygote and three children.
    counts = spawn_from_many_threads(own_client, THREADS * 20)
    assert counts.keys() == {"right", "SandboxError EAGAIN"}
    with_three = [spawn(own_client, "import sys; sys.stdin.read()") for _ in range(3)]
    with pytest.raises(pyspawner.SandboxError, match="limit of processes is reached") as caught:
        spawn(own_client, "pass")
    assert (caught.value.layer, caught.value.errno) == ("namespaces", errno.EAGAIN)
    assert "RLIMIT_NPROC" in caught.value.hint
    for child in with_three:
        communicate(child)
    assert spawn_and_check(own_client, 3) == "right"


def test_children_are_killed_during_set_up(own_client):
    spared = children_of_this_process()
    stop = threading.Event()

    def kill_every_new_child() -> None:
        while not stop.is_set():
            for pid in children_of_this_process() - spared:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_every_new_child)
    killer.start()
    try:
        counts = spawn_from_many_threads(own_client, THREADS * 20)
    finally:
        stop.set()
        killer.join()
    allowed = {"right", "killed", "SandboxError ECHILD", "SandboxError ESRCH"}
    assert counts.keys() <= allowed, counts
    assert counts["SandboxError ECHILD"] + counts["SandboxError ESRCH"] > 0, (
        f"none was killed in time: {counts}"
    )
    assert spawn_and_check(own_client, 4) == "right"


def test_a_thousand_children_at_once_is_no_limit_of_ours(own_client):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    try:
        children = [spawn(own_client, "import sys; print(sys.stdin.read())") for _ in range(1000)]
        for number, child in enumerate(children):
            with child.stdin, child.stdout, child.stderr:
                child.stdin.write(b"%d" % number)
                child.stdin.close()
                assert child.stdout.read() == b"%d\n" % number
            assert child.wait()[1] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_spawn_after_each_kind_of_failure_works(client):
    with pytest.raises(pyspawner.SandboxError):
        spawn(client, "pass", sandbox=pyspawner.SandboxConfig(chroot_dir=Path("/no/such/directory")))
    with pytest.raises(ValueError, match="kernel_veth_name"):
        spawn(client, "pass", sandbox=pyspawner.SandboxConfig(network=pyspawner.NetworkConfig("x" * 16)))
    with pytest.raises(TypeError):
        spawn(client, "pass", thing=threading.Lock())
    assert run(client, "print('fine')").text == "fine\n"


def test_a_stopped_zygote_with_a_full_queue_does_not_block_close():
    """Its socket holds some hundred requests; those that do not fit must not wait with anything locked."""
    client = pyspawner.Client(child_main="support.run_source")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    os.kill(client.zygote_pid, signal.SIGSTOP)
    errors: list[Exception] = []

    def work() -> None:
        try:
            spawn(client, "pass")
        except (RuntimeError, OSError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(600)]
    try:
        for thread in threads:
            thread.start()
        client.close()
        for thread in threads:
            thread.join()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(errors) == len(threads)
    assert {type(error) for error in errors} <= {pyspawner.ZygoteDiedError, RuntimeError}
    assert any("closed" in str(error) for error in errors), "the queue was never full"
