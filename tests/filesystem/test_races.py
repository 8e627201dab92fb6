"""Names that change while a child is being made: it sees what they meant at one moment, or is not made; never a secret."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyspawner
import support
from pyspawner import Bind, Overlay, SandboxConfig, Tmpfs

THREADS = 4
# Of each race; all of them together make 2,000 children.
SPAWNS = 500

# Exchanges two names again and again, in one step each, so that there always is something of either name.
KEEP_SWAPPING = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
one, other = map(os.fsencode, sys.argv[1:])
print("ready", flush=True)
while True:
    if libc.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE):
        sys.exit("renameat2 failed")
"""


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Have a process exchange two names; it ends with the block."""
    command = [sys.executable, "-S", "-c", KEEP_SWAPPING, one, other]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
            assert process.poll() is None, "it must have gone on to the end"
        finally:
            process.kill()


@pytest.fixture
def places(directory):
    """A directory, and a link to a secret to be swapped with it."""
    for name in ("real", "secret"):
        (directory / name / "inner").mkdir(parents=True)
        (directory / name / "which").write_text(name)
    (directory / "link").symlink_to("secret")
    return directory


def many(spawn_one: Callable[[int], str], count: int = SPAWNS) -> Counter[str]:
    """What so many calls in a few threads answer."""
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def some(numbers: range) -> None:
        for number in numbers:
            answer = spawn_one(number)
            with lock:
                outcomes[answer] += 1

    threads = [
        threading.Thread(target=some, args=(range(start, count, THREADS),)) for start in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcomes.values()) == count, "a thread has died"
    return outcomes


def outcome(client, code: str, sandbox: SandboxConfig) -> str:
    """What a child prints, or why there was none."""
    try:
        return support.run(client, code, sandbox=sandbox).text.strip()
    except pyspawner.SandboxError as error:
        return f"{error.layer} {errno.errorcode[error.errno or 0]}"


# The source of a bind, and chroot_dir. --------------------------------------------------------------------


def test_a_source_that_is_swapped_for_a_link_shows_the_directory_or_is_an_error(client, places):
    source = places / "real"
    binds = (Bind(source, "/data"), Bind(source, "/data", writable=True), Overlay("/data", lower=source))

    def one(number: int) -> str:
        sandbox = SandboxConfig(mounts=(binds[number % len(binds)],))
        return outcome(client, "print(open('/data/which').read())", sandbox)

    with swapping(places / "real", places / "link"):
        outcomes = many(one)
    assert set(outcomes) <= {"real", "mounts ELOOP", "mounts ENOTDIR"}, outcomes
    assert outcomes["real"] > 0, outcomes
    assert outcomes["real"] < SPAWNS, "the swap must have been met sometimes"


def test_a_chroot_dir_that_is_swapped_for_a_link_shows_the_directory_or_is_an_error(preloaded, places):
    def one(number: int) -> str:
        mounts = (Overlay("/"),) if number % 2 else ()
        sandbox = SandboxConfig(chroot_dir=places / "real", mounts=mounts)
        return outcome(preloaded, "print(open('/which').read())", sandbox)

    with swapping(places / "real", places / "link"):
        outcomes = many(one)
    assert set(outcomes) <= {"real", "mounts ELOOP", "mounts ENOTDIR"}, outcomes
    assert outcomes["real"] > 0, outcomes
    assert outcomes["real"] < SPAWNS, "the swap must have been met sometimes"


def test_control_who_looks_first_and_mounts_by_name_then_shows_the_secret(places):
    """In a mount namespace of its own: mount(2) follows links."""
    program = f"""
import sys; sys.path[:] = {sys.path!r}
import attacks, os, time
MS_BIND, MNT_DETACH = 0x1000, 2
source = {str(places / "real")!r}
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    if os.path.islink(source):
        continue
    if attacks.call("mount", source.encode(), b"/mnt", 0, MS_BIND, 0) == 0:
        which = open("/mnt/which").read()
        attacks.call("umount2", b"/mnt", MNT_DETACH)
        if which == "secret":
            print(which)
            break
"""
    with swapping(places / "real", places / "link"):
        command = ["unshare", "--mount", sys.executable, "-c", program]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "secret\n"


# What was opened is what is used. -------------------------------------------------------------------------


@contextmanager
def spawned_with_a_pause(
    client, code: str, sandbox: SandboxConfig, is_opened: Callable[[], bool]
) -> Iterator[list[str]]:
    """Spawn a child, and pause when the caller has opened what it names; go on at the end of the block."""
    answers: list[str] = []
    spawning = threading.Thread(target=lambda: answers.append(outcome(client, code, sandbox)))
    os.kill(client.zygote_pid, signal.SIGSTOP)
    try:
        spawning.start()
        deadline = time.monotonic() + 30
        # It waits for the zygote then, in poll(2).
        while not (is_opened() and is_polling(spawning)):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield answers
    finally:
        os.kill(client.zygote_pid, signal.SIGCONT)
        spawning.join()


POLL_CALLS = {"x86_64": {7, 271}, "aarch64": {73}}[os.uname().machine]


def is_polling(thread: threading.Thread) -> bool:
    words = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()
    return words[0].isdigit() and int(words[0]) in POLL_CALLS


KINDS = {
    "read-only": lambda place: SandboxConfig(mounts=(Bind(place, "/data"),)),
    "writable": lambda place: SandboxConfig(mounts=(Bind(place, "/data", writable=True),)),
    "a copy": lambda place: SandboxConfig(mounts=(Overlay("/data", lower=place),)),
}


@pytest.mark.cold
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_source_that_is_swapped_after_it_was_opened_is_what_it_was(client, places, kind):
    code = "print(open('/data/which').read())"
    with spawned_with_a_pause(client, code, kind(places / "real"), lambda: True) as answers:
        (places / "real").rename(places / "moved")
        (places / "real").symlink_to("secret")
    assert answers == ["real"]


@pytest.mark.cold
def test_a_chroot_dir_that_is_swapped_after_it_was_opened_is_what_it_was(preloaded, places):
    sandbox = SandboxConfig(chroot_dir=places / "real")
    with spawned_with_a_pause(preloaded, "print(open('/which').read())", sandbox, lambda: True) as answers:
        (places / "real").rename(places / "moved")
        (places / "real").symlink_to("secret")
    assert answers == ["real"]


# Where a link in an upper could lead to: from the place where overlays are mounted, and from the upper itself.
LINKS = ["other", "/upper/other", "/../out/other", "/proc/self/cwd/upper/other"]


@pytest.mark.parametrize("link", LINKS)
def test_an_upper_whose_directories_are_swapped_for_links_after_they_were_checked_writes_nowhere_else(
    client, places, link
):
    """As a hostile child could that has the upper in a writable bind. Overlayfs follows links in the paths it is given."""
    upper, out = places / "upper", places / "out"
    for path in (upper / "other", out / "other", out / "work"):
        path.mkdir(parents=True)
    mounts = (
        Bind(out, "/out", writable=True),
        Overlay("/data", lower=places / "real", upper=upper),
    )
    code = "open('/data/written', 'x').close()"
    sandbox = SandboxConfig(mounts=mounts)
    with spawned_with_a_pause(client, code, sandbox, (upper / "work").exists) as answers:
        (upper / "changes").rmdir()
        (upper / "changes").symlink_to(link)
        if "out" in link:
            # Both must be of one mount.
            (upper / "work").rmdir()
            (upper / "work").symlink_to("/../out/work")
    written = [str(path.relative_to(places)) for path in places.rglob("written")]
    assert written == [], answers


# The target, in a directory that somebody else writes to. -------------------------------------------------

# Has a directory, nothing and links take turns at one place.
HOSTILE = """
import itertools, os
os.chdir("/out")
os.mkdir("place")
for link in links:
    os.symlink(link, f"link{links.index(link)}")
print("ready", flush=True)
for number in itertools.count():
    try:
        os.rename("place", "away")
        os.rename(f"link{number % len(links)}", "place")
        os.rename("place", f"link{number % len(links)}")
        os.rename("away", "place")
    except OSError:
        # What the other child mounts there may be in the way.
        continue
"""


def everything(directory: Path) -> list[tuple[str, int, int]]:
    paths = sorted(directory.rglob("*"))
    return [(str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in [directory, *paths]]


def test_a_target_that_a_hostile_child_swaps_for_links_never_leads_to_the_host(client, places):
    """Not even where everybody may write, or where the caller may: what is mounted and made is in the child's root, or nowhere."""
    shared, victim = places / "shared", places / "victim"
    shared.mkdir()
    victim.mkdir()
    victim.chmod(0o777)
    links = [
        str(victim),
        "../victim",
        "../" * 30 + "etc",
        "/etc",
        "/",
        "/tmp",
        "/proc/self/root",
        "/proc/1/cwd",
        "nothing",
        "link0",
    ]
    bind = Bind(shared, "/out", writable=True)
    hostile = support.spawn(client, HOSTILE, sandbox=SandboxConfig(mounts=(bind,)), links=links)
    assert hostile.stdout.readline() == b"ready\n"
    targets = (
        Bind(places / "secret", "/out/place"),
        Tmpfs("/out/place/deep/deeper"),
        Bind(places / "secret" / "which", "/out/place/file", writable=True),
        Bind(places / "secret", "/out/new"),
    )

    def one(number: int) -> str:
        sandbox = SandboxConfig(mounts=(bind, targets[number % len(targets)]))
        return outcome(client, "print('ran')", sandbox)

    host = [
        everything(victim),
        everything(places / "secret"),
        sorted(os.listdir("/")),
        sorted(os.listdir("/etc")),
    ]
    mounts = Path("/proc/self/mountinfo").read_text()
    try:
        outcomes = many(one)
    finally:
        hostile.kill()
        support.communicate(hostile)
    assert host == [
        everything(victim),
        everything(places / "secret"),
        sorted(os.listdir("/")),
        sorted(os.listdir("/etc")),
    ]
    assert Path("/proc/self/mountinfo").read_text() == mounts
    known = {"place", "away", "new", *(f"link{number}" for number in range(len(links)))}
    assert {path.name for path in shared.iterdir()} <= known
    refusals = {"ENOENT", "EEXIST", "ELOOP", "ENOTDIR", "EISDIR", "EACCES", "EXDEV", "EROFS", "EBUSY"}
    assert set(outcomes) <= {"ran", *(f"mounts {name}" for name in refusals)}, outcomes
    assert outcomes["ran"] > 0, outcomes


def test_control_who_follows_a_link_at_the_target_writes_to_the_host(places):
    """As a root that mounts and makes directories by name does."""
    (places / "shared").mkdir()
    (places / "victim").mkdir()
    (places / "shared" / "place").symlink_to("../victim")
    (places / "shared" / "place" / "deep").mkdir(parents=True)
    assert os.listdir(places / "victim") == ["deep"]


# Two children and one directory at the same time. ---------------------------------------------------------


def test_children_that_make_the_same_targets_at_the_same_time_all_run(client, places):
    """In one writable directory: whoever comes second finds them made."""
    (places / "shared").mkdir()
    bind = Bind(places / "shared", "/out", writable=True)

    def one(number: int) -> str:
        target = f"/out/{number // THREADS}/deep/deeper"
        return outcome(client, "print('ran')", SandboxConfig(mounts=(bind, Tmpfs(target))))

    outcomes = many(one)
    assert outcomes == {"ran": SPAWNS}, outcomes


# The answer. ----------------------------------------------------------------------------------------------


def test_why_there_is_no_child_is_never_lost_on_the_way(client):
    """A child that cannot go on says why and ends at once, with its next order unread: its words must get through all the same."""
    sandbox = SandboxConfig(mounts=(Tmpfs("/etc/passwd"),))
    outcomes = many(lambda _: outcome(client, "print('it ran')", sandbox), 2 * SPAWNS)
    assert outcomes == {"mounts ENOTDIR": 2 * SPAWNS}, outcomes
