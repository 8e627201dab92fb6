"""``Overlay``: a directory that the child may change while the original stays as it is."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import pyspawner
import support
from pyspawner import Bind, Overlay, SandboxConfig, Tmpfs
from support import run_caller

# Alone: no optional layer, so that the child is root in its own namespaces, with every capability.
ALONE, ALL = frozenset({"none of the layers"}), frozenset()
each_sandbox = pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])

PAGE = 4096
MIB = 1024 * 1024
HARMLESS = os.ST_NOSUID | os.ST_NODEV

# What the kernel does not lock in a mount that the child has made itself.
UNLOCKED_ALONE = pytest.param(
    ALONE,
    marks=pytest.mark.xfail(reason="the mounts layer alone does not stop a child that keeps CAP_SYS_ADMIN"),
)


@pytest.fixture
def original(directory):
    """A small tree with a bit of everything, of several owners."""
    root = directory / "original"
    (root / "etc" / "deep" / "deeper").mkdir(parents=True)
    (root / "lib").mkdir()
    (root / "empty").mkdir()
    (root / "closed").mkdir(mode=0o700)
    (root / "shared").mkdir()
    (root / "shared").chmod(0o1777)
    files = {
        "file": 0o644,
        "etc/config": 0o600,
        "etc/deep/program": 0o755,
        "etc/deep/deeper/large": 0o644,
        "lib/setuid": 0o4755,
        "closed/private": 0o400,
        "lib/of-another": 0o644,
        "lib/of-the-childs-number": 0o640,
        "shared/for-all": 0o666,
    }
    for name, mode in files.items():
        (root / name).write_bytes(hashlib.sha256(name.encode()).digest() * (4096 if "large" in name else 3))
        (root / name).chmod(mode)
    os.chown(root / "lib" / "of-another", 33, 34)
    os.chown(root / "lib" / "of-the-childs-number", 1000, 1000)
    (root / "link").symlink_to("etc/config")
    (root / "etc" / "dangling").symlink_to("/nonexistent")
    (root / "lib" / "hard").hardlink_to(root / "file")
    os.mkfifo(root / "pipe")
    os.setxattr(root / "file", "user.note", b"value")
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(10**18, 10**18 + 7), follow_symlinks=False)
    return root


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """Whatever a change could show in: content, kind, mode, owner, links, times, attributes."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_symlink():
            content = path.readlink()
        names = os.listxattr(path, follow_symlinks=False)
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        found[str(path.relative_to(root))] = (
            content,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            status.st_ino,
            status.st_mtime_ns,
            # Nothing can set it back.
            status.st_ctime_ns,
            attributes,
        )
    return found


def run(client, code, *mounts, layers=ALL, chroot_dir=None, **names):
    sandbox = SandboxConfig(chroot_dir=chroot_dir, mounts=mounts, skip_sandbox_except=layers)
    return support.run(client, code, sandbox=sandbox, **names).text


# The original stays. --------------------------------------------------------------------------------------

REWRITE = """
import os
def everything():
    for parent, directories, files in os.walk(place, topdown=False):
        for name in files + directories:
            yield os.path.join(parent, name)

refused = set()
def attempt(change, *arguments, **options):
    try:
        change(*arguments, **options)
    except OSError as error:
        refused.add(error.strerror)

def overwrite(path):
    with open(path, "r+b") as file:
        file.write(b"overwritten")

for path in everything():
    if os.path.isfile(path) and not os.path.islink(path):
        attempt(overwrite, path)
        attempt(os.truncate, path, 5)
        attempt(os.setxattr, path, "user.new", b"value")
    if not os.path.islink(path):
        attempt(os.chmod, path, 0o777)
        attempt(os.utime, path, (1, 1))
    attempt(os.chown, path, os.getuid(), os.getgid(), follow_symlinks=False)
attempt(os.link, place + "/file", place + "/one more")
for path in everything():
    attempt(os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink, path)
left = sorted(os.listdir(place))
for number in range(20):
    os.makedirs(f"{place}/new/{number}")
    with open(f"{place}/new/{number}/file", "w") as file:
        file.write("new")
os.rename(place + "/new", place + "/file")
print(left, len(os.listdir(place + "/file")))
"""


@each_sandbox
def test_a_child_that_deletes_and_rewrites_its_whole_root_changes_nothing_of_the_original(
    preloaded, original, layers
):
    before = everything(original)
    overlay = Overlay("/")
    text = run(preloaded, REWRITE, overlay, chroot_dir=original, layers=layers, place="/")
    assert text == "[] 20\n"
    assert everything(original) == before


@each_sandbox
def test_the_next_child_finds_the_original(preloaded, original, layers):
    look = "import os; print(sorted(os.listdir('/')), open('/etc/config', 'rb').read()[:32].hex())"
    for _ in range(3):
        text = run(preloaded, look, Overlay("/"), chroot_dir=original, layers=layers)
        assert text.split("] ")[0] == str(sorted(os.listdir(original))).rstrip("]")
        assert text.split("] ")[1].strip() == hashlib.sha256(b"etc/config").hexdigest()
        run(preloaded, REWRITE, Overlay("/"), chroot_dir=original, layers=layers, place="/")


def test_two_children_at_the_same_time_do_not_see_each_others_changes(preloaded, original):
    code = """
    import os, sys
    open(f"/{name}", "w").close()
    open("/file", "w").write(name)
    print("written", flush=True)
    sys.stdin.read()
    print(open("/file").read(), [entry for entry in os.listdir("/") if entry in ("first", "second")])
    """
    sandbox = SandboxConfig(chroot_dir=original, mounts=(Overlay("/"),))
    children = [support.spawn(preloaded, code, sandbox=sandbox, name=name) for name in ("first", "second")]
    for child in children:
        assert child.stdout.readline() == b"written\n"
    texts = [support.communicate(child).text for child in children]
    assert texts == ["first ['first']\n", "second ['second']\n"]


def test_control_through_a_writable_bind_it_is_all_gone(client, original):
    run(client, REWRITE, Bind(original, "/out", writable=True), layers=ALONE, place="/out")
    assert sorted(os.listdir(original)) == ["file"]


def test_control_without_an_overlay_the_root_is_read_only(preloaded, original):
    code = "import attacks; attacks.attempt('open for writing', '/shared/for-all')"
    assert run(preloaded, code, chroot_dir=original) == f"{-errno.EROFS}\n"


@each_sandbox
def test_a_directory_of_the_root_can_be_overlaid_alone(preloaded, original, layers):
    before = everything(original)
    code = f"{REWRITE}\nimport attacks\nattacks.attempt('open for writing', '/shared/for-all')"
    text = run(preloaded, code, Overlay("/etc"), chroot_dir=original, layers=layers, place="/etc")
    assert text == f"[] 20\n{-errno.EROFS}\n"
    assert everything(original) == before


@each_sandbox
def test_in_the_default_view_a_directory_of_the_host_can_be_overlaid_anywhere(client, original, layers):
    before = everything(original)
    text = run(client, REWRITE, Overlay("/opt/copy", lower=original), layers=layers, place="/opt/copy")
    assert text == "[] 20\n"
    assert everything(original) == before


def test_what_is_mounted_over_an_overlay_is_made_in_the_copy(preloaded, original):
    before = everything(original)
    code = "import os; print(os.listdir('/new/place'), os.path.isdir('/new'))"
    assert run(preloaded, code, Overlay("/"), Tmpfs("/new/place"), chroot_dir=original) == "[] True\n"
    assert everything(original) == before


OWNERS = """
import attacks, os
for name in ("file", "lib/of-another", "lib/of-the-childs-number"):
    print(name, os.stat(name).st_uid, os.stat(name).st_gid)
attacks.attempt("open", "closed/private")
attacks.attempt("open for writing", "lib/of-another")
attacks.attempt("open", "lib/of-the-childs-number")
"""


def test_the_child_stands_in_for_the_caller_and_for_nobody_else(preloaded, original):
    lines = run(preloaded, OWNERS, Overlay("/"), chroot_dir=original).splitlines()
    assert lines[:3] == ["file 1000 1000", "lib/of-another 33 34", "lib/of-the-childs-number 0 0"]
    private, of_another, of_the_number = map(int, lines[3:])
    assert private >= 0
    assert (of_another, of_the_number) == (-errno.EACCES, -errno.EACCES)


def test_what_is_mounted_below_the_original_is_not_part_of_it(original):
    code = f"""
    mounts = (pyspawner.Overlay("/opt/copy", lower={str(original)!r}),)
    look = "import os; print(os.listdir('/opt/copy/empty'))"
    print(run(client, look, sandbox=pyspawner.SandboxConfig(mounts=mounts)).text)
    """
    prelude = f'mount -t tmpfs tmpfs {original}/empty && touch {original}/empty/below && exec "$@"'
    assert run_caller(code, wrapper=["unshare", "--mount", "sh", "-c", prelude, "sh"]).strip() == "[]"


# Out of sight. --------------------------------------------------------------------------------------------

VIEW = """
import os
# The way up from the root leads to what is mounted over the root, if anything is.
print(os.path.samefile("/..", "/"), *[path for path in hidden if os.path.exists(path)])
"""
# Where the set-up of a child has its parts.
HIDDEN = [
    f"{root}/{name}"
    for root in ("", "/..")
    for name in ("host", "lower", "upper", "scratch", "tree0", "mask")
]


@each_sandbox
def test_nothing_of_the_set_up_is_left_behind_an_overlay_of_the_root(preloaded, original, layers):
    text = run(preloaded, VIEW, Overlay("/"), chroot_dir=original, layers=layers, hidden=HIDDEN)
    assert text == "True\n"


@each_sandbox
def test_nothing_of_the_set_up_is_left_behind_another_overlay(client, original, layers):
    overlay = Overlay("/opt", lower=original)
    assert run(client, VIEW, overlay, layers=layers, hidden=HIDDEN) == "True\n"


LIFT = """
import attacks, os
MNT_DETACH = 2
for _ in range(8):
    attacks.call("umount2", place.encode(), MNT_DETACH)
    attacks.attempt("open for writing", place + "/file")
    print(sorted(os.listdir(place)))
"""


def test_a_child_with_all_its_own_capabilities_that_lifts_the_overlay_finds_what_is_read_only(
    preloaded, original
):
    before = everything(original)
    overlay = Overlay("/etc/deep", lower=original)
    lines = run(preloaded, LIFT, overlay, chroot_dir=original, layers=ALONE, place="/etc/deep").splitlines()
    assert set(lines[::2]) <= {str(-errno.ENOENT), str(-errno.EROFS)}
    assert set(lines[1::2]) == {"['deeper', 'program']"}
    assert everything(original) == before


REMOUNT = """
import attacks, os
attacks.attempt("open", place + "/null")
if (pid := os.fork()) == 0:
    # In a process of its own: a filter may end it.
    attacks.call("mount", 0, place.encode(), 0, 0x1020, 0)
    os._exit(0)
os.waitpid(pid, 0)
print(os.statvfs(place).f_flag & 6)
attacks.attempt("open", place + "/null")
"""


@pytest.mark.parametrize("layers", [UNLOCKED_ALONE, ALL], ids=["alone", "all layers"])
def test_an_overlay_is_nosuid_nodev_and_stays_so(client, original, layers):
    os.mknod(original / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    sandbox = SandboxConfig(mounts=(Overlay("/opt", lower=original),), skip_sandbox_except=layers)
    words = support.run(client, REMOUNT, sandbox=sandbox, place="/opt").stdout.split()
    assert list(map(int, words)) == [-errno.EACCES, HARMLESS, -errno.EACCES]


@each_sandbox
def test_a_device_node_of_the_original_is_dead(client, original, layers):
    """Even where the mount is no longer nodev: the filesystem itself belongs to the child."""
    os.mknod(original / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (original / "null").chmod(0o666)
    assert support.attack_outside("open", str(original / "null")) >= 0, "the control"
    sandbox = SandboxConfig(mounts=(Overlay("/opt", lower=original),), skip_sandbox_except=layers)
    words = support.run(client, REMOUNT, sandbox=sandbox, place="/opt").stdout.split()
    assert (int(words[0]), int(words[2])) == (-errno.EACCES, -errno.EACCES)


# Limits. --------------------------------------------------------------------------------------------------

FILL = """
import errno, os
descriptor = os.open("/opt/fill", os.O_CREAT | os.O_WRONLY)
written = 0
try:
    while written < 1 << 30:
        written += os.write(descriptor, bytes(4096))
except OSError as error:
    print(written, error.errno)
"""


@each_sandbox
@pytest.mark.parametrize("pages", [8, 256])
def test_changes_take_as_many_bytes_as_it_says_and_no_more(client, original, pages, layers):
    overlay = Overlay("/opt", lower=original, size_bytes=pages * PAGE)
    written, answer = map(int, run(client, FILL, overlay, layers=layers).split())
    assert answer == errno.ENOSPC
    assert (pages - 4) * PAGE <= written <= pages * PAGE


def test_a_file_of_the_original_that_is_too_large_to_copy_cannot_be_changed(client, original):
    before = everything(original)
    code = """
    import os
    try:
        os.open("/opt/etc/deep/deeper/large", os.O_WRONLY)
    except OSError as error:
        print(error.errno)
    print(os.stat("/opt/etc/deep/deeper/large").st_size)
    """
    overlay = Overlay("/opt", lower=original, size_bytes=8 * PAGE)
    assert run(client, code, overlay) == f"{errno.ENOSPC}\n{4096 * 32}\n"
    assert run(
        client, code.replace("os.O_WRONLY)", "os.O_WRONLY); print(0)"), Overlay("/opt", lower=original)
    ) == (f"0\n{4096 * 32}\n"), "the control"
    assert everything(original) == before


def test_the_number_of_changes_is_bounded_too(client, original):
    code = """
    for number in range(100_000):
        try:
            open(f"/opt/{number}", "x").close()
        except OSError as error:
            print(number, error.errno)
            break
    """
    overlay = Overlay("/opt", lower=original, size_bytes=MIB)
    number, answer = map(int, run(client, code, overlay).split())
    assert answer == errno.ENOSPC
    assert number < MIB / PAGE + 64


def test_without_a_word_it_is_64_mib(client, original):
    code = "import os; s = os.statvfs('/opt'); print(s.f_blocks * s.f_frsize)"
    assert run(client, code, Overlay("/opt", lower=original)) == f"{64 * MIB}\n"


# An upper keeps the changes. ------------------------------------------------------------------------------

CHANGE = """
import os
with open("/opt/file", "w") as file:
    file.write("changed")
os.makedirs("/opt/new/deep")
with open("/opt/new/deep/file", "w") as file:
    file.write("new")
os.symlink("anywhere", "/opt/new/link")
os.unlink("/opt/etc/config")
os.unlink("/opt/lib/of-another")
"""
LOOK = """
import os
print(open("/opt/file").read(), open("/opt/new/deep/file").read(), os.readlink("/opt/new/link"))
print(os.path.exists("/opt/etc/config"), os.stat("/opt/new").st_uid == os.getuid())
"""


@pytest.fixture
def upper(directory):
    (directory / "upper").mkdir()
    return directory / "upper"


@each_sandbox
def test_an_upper_keeps_the_changes_for_the_next_child_and_the_original_stays(
    client, original, upper, layers
):
    before = everything(original)
    overlay = Overlay("/opt", lower=original, upper=upper)
    run(client, CHANGE, overlay, layers=layers)
    for _ in range(2):
        assert run(client, LOOK, overlay, layers=layers) == "changed new anywhere\nFalse True\n"
    assert everything(original) == before


def test_the_changes_are_in_the_subdirectory_changes_and_belong_to_the_caller(client, original, upper):
    run(client, CHANGE, Overlay("/opt", lower=original, upper=upper))
    assert sorted(os.listdir(upper)) == ["changes", "work"]
    changes = upper / "changes"
    assert (changes / "file").read_text() == "changed"
    assert (changes / "new" / "deep" / "file").read_text() == "new"
    assert (changes / "new" / "link").readlink() == Path("anywhere")
    # Deleted: marked as such, by what is no device but overlayfs' own sign.
    assert [(changes / name).lstat().st_rdev for name in ("etc/config", "lib/of-another")] == [0, 0]
    for path in [changes, *changes.rglob("*")]:
        if path.name not in ("config", "of-another"):
            assert (path.lstat().st_uid, path.lstat().st_gid) == (os.geteuid(), os.getegid()), path


@pytest.mark.xfail(
    reason="what the kernel makes for itself belongs to the root of the child, which is nobody on the host"
)
def test_nothing_in_an_upper_belongs_to_anybody_but_the_caller(client, original, upper):
    run(client, CHANGE, Overlay("/opt", lower=original, upper=upper))
    others = [
        str(path.relative_to(upper))
        for path in upper.rglob("*")
        if path.lstat().st_uid not in (os.geteuid(), 33)
    ]
    assert others == []


def test_with_an_upper_there_is_no_limit_of_bytes(client, original, upper):
    code = "open('/opt/large', 'wb').write(bytes(1024 * 1024))"
    run(client, code, Overlay("/opt", lower=original, upper=upper, size_bytes=PAGE))
    assert (upper / "changes" / "large").stat().st_size == MIB


def test_two_layers_of_changes_do_not_meet(client, original, directory):
    for name in ("first", "second"):
        (directory / name).mkdir()
        code = f"open('/opt/by', 'x').write({name!r})"
        run(client, code, Overlay("/opt", lower=original, upper=directory / name))
    written = [(directory / name / "changes" / "by").read_text() for name in ("first", "second")]
    assert written == ["first", "second"]


def test_no_setuid_file_is_left_in_an_upper(client, original, upper):
    """It would belong to the caller, and whoever can reach it on the host could run it."""
    code = """
    import os
    try:
        os.chmod(os.open("/opt/program", os.O_CREAT | os.O_WRONLY), 0o6755)
    except OSError:
        pass
    """
    run(client, code, Overlay("/opt", lower=original, upper=upper))
    assert (upper / "changes" / "program").stat().st_mode & (stat.S_ISUID | stat.S_ISGID) == 0


# Bad uppers and lowers. -----------------------------------------------------------------------------------


def missing(upper: Path, secret: Path) -> Path:
    return upper / "missing"


def a_file(upper: Path, secret: Path) -> Path:
    (upper / "file").touch()
    return upper / "file"


def a_symbolic_link(upper: Path, secret: Path) -> Path:
    (upper / "link").symlink_to(secret)
    return upper / "link"


def with_hostile_changes(upper: Path, secret: Path) -> Path:
    (upper / "changes").symlink_to(secret)
    return upper


def with_hostile_work(upper: Path, secret: Path) -> Path:
    (upper / "work").symlink_to(secret)
    return upper


def with_a_dangling_link(upper: Path, secret: Path) -> Path:
    (upper / "changes").symlink_to(secret / "made")
    return upper


def with_changes_that_are_a_file(upper: Path, secret: Path) -> Path:
    (upper / "changes").touch()
    return upper


BAD_UPPERS = [
    (missing, errno.ENOENT),
    (a_file, errno.ENOTDIR),
    (a_symbolic_link, errno.ENOTDIR),
    (with_hostile_changes, errno.ENOTDIR),
    (with_hostile_work, errno.ENOTDIR),
    (with_a_dangling_link, errno.ENOTDIR),
    (with_changes_that_are_a_file, errno.ENOTDIR),
]


@pytest.mark.parametrize(("make", "expected"), BAD_UPPERS)
def test_a_bad_upper_is_an_error_that_says_what_to_do_and_nothing_is_written_anywhere(
    client, original, upper, make, expected
):
    secret = original.parent / "secret"
    secret.mkdir()
    overlay = Overlay("/opt", lower=original, upper=make(upper, secret))
    with pytest.raises(pyspawner.SandboxError, match=r"mounts\[0\]") as caught:
        client.spawn_child([CHANGE, {}], sandbox_config=SandboxConfig(mounts=(overlay,)))
    assert (caught.value.layer, caught.value.errno) == ("mounts", expected)
    assert os.listdir(secret) == []
    assert caught.value.hint != ""


@pytest.mark.parametrize("make", [missing, a_file, a_symbolic_link])
def test_a_bad_lower_is_an_error_that_says_what_to_do(client, upper, directory, make):
    expected = {missing: errno.ENOENT, a_file: errno.ENOTDIR, a_symbolic_link: errno.ENOTDIR}[make]
    overlay = Overlay("/opt", lower=make(upper, directory))
    with pytest.raises(pyspawner.SandboxError, match=r"mounts\[0\]") as caught:
        client.spawn_child(["print('it ran')", {}], sandbox_config=SandboxConfig(mounts=(overlay,)))
    assert (caught.value.layer, caught.value.errno) == ("mounts", expected)
    assert caught.value.hint != ""


def test_an_original_that_chroot_dir_does_not_have_is_an_error(preloaded, original):
    """And where it has a link, the link leads nowhere but to places in it."""
    (original.parent / "secret").mkdir()
    (original / "out").symlink_to(original.parent / "secret")
    for target in ("/missing", "/out"):
        sandbox = SandboxConfig(chroot_dir=original, mounts=(Overlay(target),))
        with pytest.raises(pyspawner.SandboxError, match=r"mounts\[0\]") as caught:
            preloaded.spawn_child(["print('it ran')", {}], sandbox_config=sandbox)
        assert caught.value.errno == errno.ENOENT


def test_an_original_inside_its_own_upper_is_refused(client, directory):
    (directory / "changes").mkdir()
    overlay = Overlay("/opt", lower=directory / "changes", upper=directory)
    with pytest.raises(pyspawner.SandboxError) as caught:
        client.spawn_child(["print('it ran')", {}], sandbox_config=SandboxConfig(mounts=(overlay,)))
    assert caught.value.layer == "mounts"
    assert caught.value.hint != ""


def test_an_upper_inside_its_own_original_is_refused(client, original):
    """The child would change what stays as it is: its changes would show up below the original."""
    before = everything(original)
    (original / "empty").joinpath("upper").mkdir()
    overlay = Overlay("/opt", lower=original, upper=original / "empty" / "upper")
    with pytest.raises(pyspawner.SandboxError):
        run(client, CHANGE, overlay)
    (original / "empty" / "upper").rmdir()
    assert everything(original).keys() == before.keys()


ON_AN_OVERLAY = """
from pathlib import Path
mounts = {
    "a writable Bind": pyspawner.Bind(SOURCE, "/opt", writable=True),
    "an Overlay": pyspawner.Overlay("/opt", lower=SOURCE),
    "an upper": pyspawner.Overlay("/opt", lower="/usr/share", upper=SOURCE),
}
for name, mount in mounts.items():
    try:
        client.spawn_child(["print('it ran')", {}], sandbox_config=pyspawner.SandboxConfig(mounts=(mount,)))
    except pyspawner.SandboxError as error:
        print(name, error.errno, error.layer, "cannot map the owners" in error.hint, "Docker" in error.hint)
sandbox = pyspawner.SandboxConfig(mounts=(pyspawner.Bind(SOURCE, "/opt"),))
print(run(client, "import os; print(os.path.isfile('/opt/file'))", sandbox=sandbox).text)
"""


def test_a_filesystem_that_cannot_map_owners_is_a_clear_error(directory):
    """An overlayfs, as the root of most containers is."""
    for name in ("lower", "upper", "work", "merged"):
        (directory / name).mkdir()
    (directory / "lower" / "file").touch()
    options = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
    prelude = f'mount -t overlay overlay -o {options} {directory}/merged && exec "$@"'
    code = f"SOURCE = {str(directory / 'merged')!r}{ON_AN_OVERLAY}"
    text = run_caller(code, wrapper=["unshare", "--mount", "sh", "-c", prelude, "sh"])
    said = f"{errno.EINVAL} mounts True True"
    assert text.splitlines() == [
        f"a writable Bind {said}",
        f"an Overlay {said}",
        f"an upper {said}",
        "True",
        "",
    ]


def test_control_a_plain_overlay_mounted_by_root_in_the_open_writes_through_a_hostile_link(directory):
    """Why the directories of an upper are looked at: the kernel follows links in their paths."""
    for name in ("lower", "upper", "secret"):
        (directory / name).mkdir()
    (directory / "upper" / "work").mkdir()
    (directory / "upper" / "changes").symlink_to(directory / "secret")
    options = f"lowerdir={directory}/lower,upperdir={directory}/upper/changes,workdir={directory}/upper/work"
    script = f"mount -t overlay overlay -o {options} /mnt && touch /mnt/written"
    subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True)
    assert os.listdir(directory / "secret") == ["written"]


def test_an_overlay_needs_no_python_of_the_hosts(preloaded, original):
    """Its child has in memory what it runs: what is said in the root is said by nobody else."""
    assert sys.executable.startswith("/")
    code = "import os, sys; print(os.path.exists(sys.executable))"
    assert run(preloaded, code, Overlay("/"), chroot_dir=original) == "False\n"


def test_one_child_at_a_time_has_an_upper(client, original, upper):
    sandbox = SandboxConfig(mounts=(Overlay("/copy", lower=original, upper=upper),))
    first = support.spawn(client, "import sys; print(sys.stdin.read())", sandbox=sandbox)
    for _ in range(2):
        with pytest.raises(pyspawner.SandboxError, match="an upper serves one child at a time") as raised:
            support.spawn(client, "", sandbox=sandbox)
        assert (raised.value.errno, raised.value.layer) == (errno.EBUSY, "mounts")
    assert support.communicate(first, b"first").text == "first\n"
    assert support.run(client, "print('second')", sandbox=sandbox).text == "second\n"


def test_a_child_of_another_process_counts_too(client, original, upper):
    sandbox = SandboxConfig(mounts=(Overlay("/copy", lower=original, upper=upper),))
    first = support.spawn(client, "import sys; sys.stdin.read()", sandbox=sandbox)
    source = f"""
from pyspawner import Overlay, SandboxConfig, SandboxError
sandbox = SandboxConfig(mounts=(Overlay("/copy", lower={str(original)!r}, upper={str(upper)!r}),))
try:
    spawn(client, "", sandbox=sandbox)
except SandboxError as error:
    print(error.errno)
"""
    assert run_caller(source) == f"{errno.EBUSY}\n"
    assert support.communicate(first).exitcode == 0


def test_a_spawn_that_fails_leaves_an_upper_free(client, original, upper):
    overlay = Overlay("/copy", lower=original, upper=upper)
    for mounts in ((overlay, Bind("/nonexistent", "/x")), (overlay, Tmpfs("/etc/passwd"))):
        with pytest.raises(pyspawner.SandboxError):
            support.spawn(client, "", sandbox=SandboxConfig(mounts=mounts))
        assert support.run(client, "", sandbox=SandboxConfig(mounts=(overlay,))).exitcode == 0


def test_an_upper_is_free_when_its_child_was_reaped_by_other_means(client, original, upper):
    sandbox = SandboxConfig(mounts=(Overlay("/copy", lower=original, upper=upper),))
    first = support.spawn(client, "", sandbox=sandbox)
    os.waitpid(first.pid, 0)
    assert support.run(client, "", sandbox=sandbox).exitcode == 0
    for pipe in (first.stdin, first.stdout, first.stderr):
        pipe.close()
