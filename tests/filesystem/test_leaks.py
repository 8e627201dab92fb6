"""After a thousand children, good and bad, nothing is left: no mount, no descriptor, no process, no file."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from support import run_caller, visible_directory

SPAWNS = 1_000

# In a process of its own, whose children, descriptors and mounts are nobody else's.
PREPARE = """
import collections, json, os, threading, time
from pathlib import Path
from pyspawner import Bind, Dev, Overlay, Proc, SandboxConfig, SandboxError, Tmpfs

directory = Path(PLACE)
THREADS = 4
for name in ("source/inner", "root/place", *(f"upper{number}" for number in range(THREADS)), "broken", "many"):
    (directory / name).mkdir(parents=True)
(directory / "source" / "file").write_text("content")
(directory / "broken" / "changes").symlink_to("/")
for number in range(1_025):
    (directory / "many" / str(number)).touch()
TARGETS = ["/data", "/more", "/copy", "/new", "/etc/file", "/usr/lib/new", "/dev/x"]
source, root, file = directory / "source", directory / "root", directory / "source" / "file"

good = {
    "nothing": SandboxConfig(),
    "a root": SandboxConfig(chroot_dir=root),
    "binds": SandboxConfig(mounts=(Bind(source, "/data"), Bind(file, "/etc/file"), Bind(source, "/data/inner", writable=True))),
    "memory": SandboxConfig(mounts=(Tmpfs("/usr/lib/new"), Tmpfs("/usr/lib/new/nested"))),
    "a copied root": SandboxConfig(chroot_dir=root, mounts=(Overlay("/"), Proc(), Dev(ptmx=True))),
    "a kept copy": SandboxConfig(mounts=(Overlay("/copy", lower=source, upper=directory / "upper0"),)),
    "another place": SandboxConfig(mounts=(Dev(ptmx=True),), working_dir=source, proc=False),
}
bad = {
    "no root": SandboxConfig(chroot_dir=directory / "missing"),
    "no source": SandboxConfig(mounts=(Bind(source, "/data"), Bind(directory / "missing", "/more"))),
    "another kind": SandboxConfig(mounts=(Bind(source, "/data"), Bind(source, "/etc/passwd"))),
    "a file on the way": SandboxConfig(chroot_dir=root, mounts=(Tmpfs("/new"), Tmpfs("/new/x"), Proc("/dev/x/y"), Bind(file, "/place"))),
    "too many entries": SandboxConfig(mounts=(Tmpfs("/new"), Tmpfs(directory / "many" / "new"))),
    "owners": SandboxConfig(mounts=(Bind(source, "/data"), Bind("/proc/sys", "/more", writable=True))),
    "an upper": SandboxConfig(mounts=(Overlay("/copy", lower=source, upper=directory / "broken"),)),
    "no overlay": SandboxConfig(mounts=(Overlay("/copy", lower=source, size_bytes=4096),)),
    "no such place": SandboxConfig(mounts=(Tmpfs("/new"),), working_dir="/missing"),
    "nonsense": SandboxConfig(mounts=(Tmpfs("relative"),)),
}

def descriptors(pid):
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if not target.startswith(f"/proc/{pid}/fd"):
            found[entry.name] = target
    return found

def state():
    zygote = client.zygote_pid
    return {
        "mounts of the caller": Path("/proc/self/mountinfo").read_text(),
        "mounts of the zygote": Path(f"/proc/{zygote}/mountinfo").read_text(),
        "descriptors of the caller": descriptors(os.getpid()),
        "descriptors of the zygote": descriptors(zygote),
        "children": sorted(children_of_this_process()),
        # Others may use /srv and /tmp at the same time.
        "targets": [name for name in TARGETS if os.path.lexists(name)],
        "root": sorted(os.listdir("/")),
        "directory": sorted(os.listdir(directory)),
        "usr/lib": sorted(os.listdir("/usr/lib")),
        "root/": sorted(os.listdir(root)),
        "source/": sorted(os.listdir(source)),
    }

outcomes = collections.Counter()
def attempt(name, config):
    try:
        outcome = run(client, "pass", sandbox=config)
    except (SandboxError, ValueError) as error:
        outcomes[f"{name}: {type(error).__name__}"] += 1
    else:
        outcomes[f"{name}: {outcome.exitcode}"] += 1

def settled_state():
    # What a child leaves is cleared away by the kernel a moment after its end.
    deadline = time.monotonic() + 10
    while True:
        now = state()
        if now == before or time.monotonic() > deadline:
            return now
        time.sleep(0.05)
"""

MIXED = """
kinds = list({**good, **bad}.items())
for name, config in kinds:
    attempt(name, config)
before = state()
outcomes.clear()

def some(thread):
    # An upper serves one child at a time.
    upper = directory / f"upper{thread}"
    own = {"a kept copy": SandboxConfig(mounts=(Overlay("/copy", lower=source, upper=upper),))}
    for number in range(thread, SPAWNS, THREADS):
        name, config = kinds[number % len(kinds)]
        attempt(name, own.get(name, config))

threads = [threading.Thread(target=some, args=(thread,)) for thread in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([before, settled_state(), outcomes]))
"""

# Whatever child there is at any moment is killed, which is mostly one that is being set up.
KILLED = """
kinds = list(good.items())
for name, config in kinds:
    attempt(name, config)
before = state()
outcomes.clear()
ours = set(before["children"])
done = threading.Event()

def keep_killing():
    while not done.is_set():
        for pid in children_of_this_process() - ours:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        # Later and later in the life of a child, then early again.
        time.sleep(next(pauses))

import itertools
pauses = itertools.cycle([number / 10_000 for number in range(0, 80, 4)])
killer = threading.Thread(target=keep_killing)
killer.start()
for number in range(SPAWNS):
    attempt(*kinds[number % len(kinds)])
done.set()
killer.join()
print(json.dumps([before, settled_state(), outcomes]))
"""


def spawn_many(code: str, spawns: int) -> tuple[dict[str, object], dict[str, object], Counter[str]]:
    with visible_directory() as directory:
        text = run_caller(f"PLACE, SPAWNS = {str(directory)!r}, {spawns}\n{PREPARE}\n{code}")
    before, after, outcomes = json.loads(text.splitlines()[-1])
    return before, after, Counter(outcomes)


GOOD = ["nothing", "a root", "binds", "memory", "a copied root", "a kept copy", "another place"]
BAD = [
    "no root",
    "no source",
    "another kind",
    "a file on the way",
    "too many entries",
    "owners",
    "an upper",
    "no such place",
]


def test_a_thousand_children_good_and_bad_leave_nothing():
    before, after, outcomes = spawn_many(MIXED, SPAWNS)
    for part, value in before.items():
        assert after[part] == value, part
    share = SPAWNS // 17
    assert sum(outcomes.values()) == SPAWNS
    # A child with the least of Pythons may not end well, but it ran.
    for name in GOOD:
        assert sum(count for outcome, count in outcomes.items() if outcome.startswith(f"{name}: ")) >= share
        assert outcomes[f"{name}: SandboxError"] == 0, outcomes
    for name in BAD:
        assert outcomes[f"{name}: SandboxError"] >= share, outcomes
    assert outcomes["nonsense: ValueError"] >= share


def test_children_that_are_killed_while_they_are_set_up_leave_nothing():
    before, after, outcomes = spawn_many(KILLED, 300)
    for part, value in before.items():
        assert after[part] == value, part
    failed = sum(count for outcome, count in outcomes.items() if outcome.endswith(": SandboxError"))
    assert failed > 10, outcomes


def test_control_a_mount_and_a_descriptor_that_are_left_are_noticed():
    """In a mount namespace of the test's own."""
    code = f"PLACE, SPAWNS = '/nonexistent', 0\n{PREPARE}".replace(
        "directory = Path(PLACE)", "import tempfile; directory = Path(tempfile.mkdtemp(dir='/mnt'))"
    )
    code += """
before = state()
os.system(f"mount -t tmpfs tmpfs {root}")
descriptor = os.open("/", os.O_RDONLY)
after = state()
print([part for part in before if before[part] != after[part]])
"""
    prelude = 'mount -t tmpfs tmpfs /mnt && exec "$@"'
    text = run_caller(code, wrapper=["unshare", "--mount", "sh", "-c", prelude, "sh"])
    noticed = eval(text.splitlines()[-1])
    assert set(noticed) >= {"mounts of the caller", "descriptors of the caller"}


@pytest.mark.parametrize("kind", ["reading", "writing"])
def test_a_child_that_ends_lets_go_of_its_sources(kind):
    """A directory that children had can be unmounted and removed at once: nobody holds it."""
    code = f"""
    import os, subprocess, time
    from pathlib import Path
    place = Path("/mnt/place")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    (place / "file").touch()
    bind = pyspawner.Bind(place, "/data", writable={kind == "writing"})
    for mounts, chroot_dir in (((bind,), None), ((), place), ((pyspawner.Overlay("/copy", lower=place),), None)):
        sandbox = pyspawner.SandboxConfig(mounts=mounts, chroot_dir=chroot_dir)
        run(client, "pass", sandbox=sandbox)
    deadline = time.monotonic() + 10
    while subprocess.run(["umount", place], capture_output=True).returncode:
        # What a child has is let go of a moment after its end.
        assert time.monotonic() < deadline
        time.sleep(0.05)
    place.rmdir()
    print(os.listdir("/mnt"))
    """
    prelude = 'mount -t tmpfs tmpfs /mnt && exec "$@"'
    text = run_caller(code, wrapper=["unshare", "--mount", "sh", "-c", prelude, "sh"])
    assert text == "[]\n"


def test_the_zygotes_own_directory_does_not_grow(client):
    """Its root has a place for each tree of the largest spawn so far, and keeps no more than that."""
    from pyspawner import Bind, SandboxConfig
    from support import run

    listing = Path(f"/proc/{client.zygote_pid}/root")
    with visible_directory() as directory:
        sandbox = SandboxConfig(mounts=tuple(Bind(directory, f"/m{number}") for number in range(30)))
        run(client, "pass", sandbox=sandbox)
        before = sorted(os.listdir(listing))
        for _ in range(20):
            run(client, "pass", sandbox=sandbox)
        assert sorted(os.listdir(listing)) == before
        assert len(before) < 80
