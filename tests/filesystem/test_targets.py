"""Targets of ``mounts``: their order, what is made for them, and where they cannot lead to; and what a configuration may not say."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

import pyspawner
import support
from pyspawner import Bind, Dev, Overlay, Proc, SandboxConfig, Tmpfs
from support import run_caller

# Alone: no optional layer, so that the child is root in its own namespaces, with every capability.
ALONE, ALL = frozenset({"none of the layers"}), frozenset()
each_sandbox = pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])

LOCKED = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV


@pytest.fixture
def sources(directory):
    """Two directories to bind, each with a file that says which it is, and an inner directory."""
    for name in ("one", "two"):
        (directory / name / "inner").mkdir(parents=True)
        (directory / name / "which").write_text(name)
        (directory / name / "inner" / f"of-{name}").touch()
    return directory / "one", directory / "two"


@pytest.fixture
def root(directory):
    """A root for children, with links to a secret beside it."""
    (directory / "secret").mkdir()
    root = directory / "root"
    (root / "place" / "inner").mkdir(parents=True)
    (root / "file").write_text("file")
    (root / "absolute").symlink_to(directory / "secret")
    (root / "relative").symlink_to("../secret")
    (root / "climbing").symlink_to("../" * 40 + "etc")
    (root / "inside").symlink_to("place")
    (root / "absolute-inside").symlink_to("/place/inner")
    (root / "dangling").symlink_to("nothing")
    (root / "loop").symlink_to("loop")
    return root


def run(client, code, *mounts, layers=ALL, chroot_dir=None, **names):
    sandbox = SandboxConfig(chroot_dir=chroot_dir, mounts=mounts, skip_sandbox_except=layers)
    return support.run(client, code, sandbox=sandbox, **names).text


def refused(client, *mounts, chroot_dir=None) -> pyspawner.SandboxError:
    """The error of a spawn with these mounts; after it, everything still works."""
    with pytest.raises(pyspawner.SandboxError) as caught:
        run(client, "print('it ran')", *mounts, chroot_dir=chroot_dir)
    assert caught.value.layer == "mounts"
    assert run(client, "print('still works')", chroot_dir=chroot_dir) == "still works\n"
    return caught.value


def everything(directory: Path) -> list[tuple[str, int, int]]:
    paths = sorted(directory.rglob("*"))
    return [(str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in [directory, *paths]]


# Order. ---------------------------------------------------------------------------------------------------

WHICH = "print(open('/data/which').read())"


@each_sandbox
def test_a_later_one_covers_an_earlier_one(client, sources, layers):
    one, two = sources
    assert run(client, WHICH, Bind(one, "/data"), Bind(two, "/data"), layers=layers) == "two\n"
    assert run(client, WHICH, Bind(two, "/data"), Bind(one, "/data"), layers=layers) == "one\n"


@each_sandbox
def test_a_later_one_may_be_in_an_earlier_one(client, sources, layers):
    one, two = sources
    code = "import os; print(open('/data/which').read(), sorted(os.listdir('/data/inner')))"
    text = run(client, code, Bind(one, "/data"), Bind(two, "/data/inner"), layers=layers)
    assert text == "one ['inner', 'which']\n"


def test_an_earlier_one_in_a_later_one_is_covered(client, sources):
    one, two = sources
    code = "import os; print(os.listdir('/data/inner'))"
    assert run(client, code, Bind(one, "/data/inner"), Bind(two, "/data")) == "['of-two']\n"


def test_all_kinds_go_into_each_other(client, sources):
    one, two = sources
    mounts = (
        Tmpfs("/work"),
        Bind(one, "/work/read"),
        Tmpfs("/work/read/inner"),
        Bind(two, "/work/read/inner/write", writable=True),
        Overlay("/work/copy", lower=one),
        Bind(two / "which", "/work/copy/which"),
        Proc("/work/processes"),
        Dev("/work/devices"),
    )
    code = """
    import os
    for path in ("new", "read/new", "read/inner/new", "read/inner/write/new", "copy/new", "processes/new", "devices/new"):
        try:
            open(f"/work/{path}", "x").close()
            print("written")
        except OSError as error:
            print(error.errno)
    print(open("/work/copy/which").read(), open("/work/read/inner/write/which").read())
    print(os.path.exists("/work/processes/1"), os.path.exists("/work/devices/null"))
    """
    lines = run(client, code, *mounts).splitlines()
    assert lines[0] == lines[2] == lines[3] == lines[4] == "written"
    assert int(lines[1]) in (errno.EROFS, errno.EACCES)
    assert lines[7:] == ["two two", "True True"]
    assert sorted(os.listdir(two)) == ["inner", "new", "which"]
    assert sorted(os.listdir(one)) == ["inner", "which"]


def test_the_same_source_may_be_at_several_places(client, sources):
    one, _ = sources
    code = "print([open(f'/{name}/which').read() for name in 'abc'])"
    assert run(client, code, *(Bind(one, f"/{name}") for name in "abc")) == "['one', 'one', 'one']\n"


# What is missing is made. ---------------------------------------------------------------------------------

MISSING = ["/data", "/data/deep/deeper", "/usr/lib/some/where", "/etc/some/where", "/opt/x", "//srv/./x/"]


@each_sandbox
@pytest.mark.parametrize("target", MISSING)
def test_a_missing_directory_is_made_wherever_it_is(client, sources, target, layers):
    one, _ = sources
    parent = str(Path(target).parent)
    code = """
    import os
    print(open(target + "/which").read(), os.statvfs(target).f_flag & 7)
    print(os.statvfs(parent).f_flag & 1, oct(os.stat(parent).st_mode & 0o777))
    """
    text = run(client, code, Bind(one, target), layers=layers, target=target, parent=parent)
    assert text == f"one {LOCKED}\n1 0o755\n"
    assert not Path(target).exists(), "never on the host"


@each_sandbox
@pytest.mark.parametrize("target", ["/etc/some.conf", "/result", "/usr/share/some/where/file"])
def test_a_missing_file_is_made_wherever_it_is(client, sources, target, layers):
    one, _ = sources
    code = "import os; print(open(target).read(), os.path.isfile(target))"
    assert run(client, code, Bind(one / "which", target), layers=layers, target=target) == "one True\n"
    assert not Path(target).exists()


ENTRIES = """
import os
def kind(path):
    status = os.lstat(path)
    link = os.readlink(path) if os.path.islink(path) else None
    return status.st_mode, status.st_uid, status.st_gid, status.st_ino if link is None else None, link
print({name: kind(f"{place}/{name}") for name in os.listdir(place) if name not in ("new",)})
"""


@each_sandbox
@pytest.mark.parametrize("place", ["/usr", "/etc", "/usr/lib", "/var"])
def test_beside_what_is_made_everything_stays_as_it_was(client, place, layers):
    """The same files, by their inode numbers; only links are made anew, and lead to the same places."""
    seen = eval(run(client, ENTRIES, layers=layers, place=place))
    mirrored = eval(run(client, ENTRIES, Tmpfs(f"{place}/new"), layers=layers, place=place))
    for view in (seen, mirrored):
        for name, (mode, _, _, _, link) in view.items():
            if link is not None:
                view[name] = (mode, link)
    assert mirrored == seen


CONTENT = """
import hashlib, os
for parent, directories, files in os.walk(place):
    directories.sort()
    for name in sorted(files):
        path = os.path.join(parent, name)
        if os.path.islink(path):
            continue
        try:
            with open(path, "rb") as file:
                print(path, hashlib.sha256(file.read()).hexdigest())
        except OSError as error:
            print(path, error.errno)
"""


def test_the_content_of_everything_beside_it_is_the_same(client):
    seen = run(client, CONTENT, place="/etc")
    assert len(seen.splitlines()) > 20
    assert run(client, CONTENT, Tmpfs("/etc/new"), place="/etc") == seen


NOTHING_IS_WRITABLE = """
import os
print(os.statvfs(place).f_flag & 7)
for change in (
    lambda: open(f"{place}/anything", "x"),
    lambda: os.mkdir(f"{place}/directory"),
    lambda: os.symlink("x", f"{place}/link"),
    lambda: os.rmdir(f"{place}/new"),
):
    try:
        change()
        print("done")
    except OSError as error:
        print(error.errno)
"""


@each_sandbox
@pytest.mark.parametrize("place", ["/", "/etc", "/usr/lib"])
def test_what_is_made_anew_is_read_only_too(client, place, layers):
    lines = run(client, NOTHING_IS_WRITABLE, Tmpfs(f"{place}/new"), layers=layers, place=place).split()
    flags, *answers = map(int, lines)
    assert flags == LOCKED
    assert set(answers[:3]) <= {errno.EROFS, errno.EACCES}
    assert answers[3] in (errno.EROFS, errno.EACCES, errno.EBUSY)


HIDDEN = ["/run", "/var/run", "/sys", "/mnt", "/media", "/home", "/root"]
HIDING = """
import os
for path in paths:
    print(path, sorted(os.listdir(path)), os.access(path, os.W_OK))
"""


@each_sandbox
def test_what_is_hidden_stays_hidden_when_the_root_is_made_anew(client, layers):
    paths = [path for path in HIDDEN if Path(path).is_dir()]
    plain = run(client, HIDING, layers=layers, paths=paths)
    assert run(client, HIDING, Tmpfs("/new"), Tmpfs("/var/new"), layers=layers, paths=paths) == plain
    assert "['" not in "".join(line for line in plain.splitlines() if line.startswith(("/run ", "/mnt ")))
    assert os.listdir("/run") != [], "the control"
    assert os.listdir("/sys") != [], "the control"


LIFT = """
import attacks, os
for path in ["/", *paths]:
    for _ in range(4):
        attacks.call("umount2", path.encode(), 2)
for path in paths:
    try:
        print(path, sorted(os.listdir(path)))
    except OSError:
        print(path, [])
"""


def test_a_child_with_all_its_own_capabilities_cannot_lift_what_hides(client):
    """The directory made anew is the child's own, and may go; what was there before is locked."""
    paths = [path for path in HIDDEN if Path(path).is_dir() and path != "/var/run"]
    for line in run(client, LIFT, Tmpfs("/new"), layers=ALONE, paths=paths).splitlines():
        path, listing = line.split(" ", 1)
        if path != "/root":
            assert listing == "[]", line
        # Of the interpreter that the tests run with there may be something in it.
        assert not set(eval(listing)) & {".ssh", ".bashrc", ".profile"}, line


def test_targets_in_hidden_and_in_private_places_work_too(client, sources):
    one, _ = sources
    mounts = [
        Bind(one, target)
        for target in ("/run/service", "/home/user/data", "/tmp/a/b", "/dev/shm/c", "/root/d")
    ]
    code = "import os; print([open(target + '/which').read() for target in targets], os.listdir('/run'), os.listdir('/tmp/a'))"
    text = run(client, code, *mounts, targets=[str(mount.target) for mount in mounts])
    assert text == f"{['one'] * 5} ['service'] ['b']\n"
    assert not Path("/run/service").exists()
    assert not Path("/tmp/a/b").exists()


@each_sandbox
def test_in_a_root_of_ones_own_what_is_missing_is_made_too_and_the_root_stays_as_it_is(
    preloaded, root, sources, layers
):
    one, _ = sources
    before = everything(root)
    mounts = (Bind(one, "/new/deep"), Bind(one / "which", "/place/inner/file"), Tmpfs("/place/inner/deep"))
    code = (
        "import os; print(sorted(os.listdir('/')), sorted(os.listdir('/place/inner')), open('/file').read())"
    )
    text = run(preloaded, code, *mounts, chroot_dir=root, layers=layers)
    entries = sorted([*os.listdir(root), "new"])
    assert text == f"{entries} ['deep', 'file'] file\n"
    assert everything(root) == before


@each_sandbox
@pytest.mark.parametrize("layout", ["nothing is missing", "the root is made anew"])
def test_nothing_of_the_set_up_is_left_behind_the_root(preloaded, client, root, layers, layout):
    """The way up from the root leads to what is mounted over the root, if anything is: the host's tree, for example."""
    mounts = () if layout == "nothing is missing" else (Tmpfs("/new"),)
    code = """
    import os
    print(os.path.samefile("/..", "/"), os.path.exists("/../host"), os.path.exists("/../host/etc/passwd"))
    os.chdir("/..")
    print(os.path.exists("host"), os.path.exists("mask"), os.path.exists("scratch"))
    """
    expected = "True False False\nFalse False False\n"
    assert run(preloaded, code, *mounts, chroot_dir=root, layers=layers) == expected
    assert run(client, code, *mounts, layers=layers) == expected


TABLE = """
import os
mounts = [line.split()[4] for line in open("/proc/self/mountinfo")]
print([path for path in mounts if path.startswith(("/host", "/mask", "/scratch", "/lower", "/upper", "/tree"))], mounts.count("/"))
"""


@each_sandbox
def test_the_table_of_mounts_has_nothing_of_the_set_up(client, layers):
    """Of a root that was made anew the one below it is out of sight."""
    assert run(client, TABLE, layers=layers) == "[] 1\n"
    assert run(client, TABLE, Tmpfs("/new"), layers=layers) == "[] 1\n"


# Links. ---------------------------------------------------------------------------------------------------

LEADING_OUT = ["/absolute", "/relative", "/climbing", "/absolute/deep", "/relative/deep", "/climbing/deep"]


@pytest.mark.parametrize("target", LEADING_OUT)
def test_a_link_in_the_root_does_not_lead_a_target_out_of_it(preloaded, root, sources, target):
    """It leads to a place in the root, which is made, or nowhere, which is an error; it never touches the host's."""
    one, _ = sources
    assert (root / target.split("/")[1]).is_dir(), "the control: on the host it leads somewhere"
    host = [everything(root.parent / "secret"), sorted(os.listdir("/etc")), everything(root)]
    for mount in (Bind(one, target), Bind(one, target, writable=True), Tmpfs(target)):
        code = """
        import os
        found = [path for path, _, files in os.walk("/") if "which" in files]
        print(found)
        """
        try:
            text = run(preloaded, code, mount, chroot_dir=root)
        except pyspawner.SandboxError as error:
            assert error.errno in (errno.ENOENT, errno.EEXIST, errno.ELOOP)  # noqa: PT017
        else:
            assert isinstance(mount, Tmpfs) or eval(text) != []
    assert [everything(root.parent / "secret"), sorted(os.listdir("/etc")), everything(root)] == host


@each_sandbox
@pytest.mark.parametrize("link", [("/inside", "/place"), ("/absolute-inside", "/place/inner")])
def test_a_link_that_stays_in_the_root_leads_to_its_place(preloaded, root, sources, link, layers):
    one, _ = sources
    target, place = link
    code = "import os; print(os.path.islink(target), open(place + '/which').read())"
    text = run(preloaded, code, Bind(one, target), chroot_dir=root, layers=layers, target=target, place=place)
    assert text == "True one\n"


@pytest.mark.parametrize("target", ["/dangling", "/dangling/deep", "/loop", "/loop/deep"])
def test_a_link_that_leads_nowhere_is_an_error_that_says_so(preloaded, root, sources, target):
    before = everything(root)
    error = refused(preloaded, Bind(sources[0], target), chroot_dir=root)
    assert error.errno in (errno.ELOOP, errno.EEXIST, errno.ENOENT)
    assert "mounts[0]" in str(error)
    assert "symbolic link" in error.hint
    assert everything(root) == before


def test_a_link_of_proc_does_not_lead_a_target_anywhere(preloaded, root, sources):
    error = refused(preloaded, Proc("/place"), Bind(sources[0], "/place/self/root/new"), chroot_dir=root)
    assert error.errno in (errno.ELOOP, errno.ENOENT, errno.EXDEV)
    assert "mounts[1]" in str(error)


def test_dots_in_a_link_do_not_fail_because_somebody_renames_something_elsewhere(preloaded, root, directory):
    """openat2(2) answers ``EAGAIN`` when any rename on the machine crosses its way."""
    (root / "place" / "up").symlink_to("../place/inner")
    code = f"""
    import threading
    from pathlib import Path
    one, other = Path({str(directory / "a")!r}), Path({str(directory / "b")!r})
    one.touch()
    done = threading.Event()
    def keep_renaming():
        while not done.is_set():
            one.rename(other)
            other.rename(one)
    renaming = threading.Thread(target=keep_renaming)
    renaming.start()
    mounts = (pyspawner.Tmpfs("/place/up"),)
    sandbox = pyspawner.SandboxConfig(chroot_dir=Path({str(root)!r}), mounts=mounts)
    try:
        for _ in range(200):
            run(client, "pass", sandbox=sandbox)
    finally:
        done.set()
        renaming.join()
    print("every time")
    """
    assert run_caller(code) == "every time\n"


# Kinds that do not match, and other impossible targets. ---------------------------------------------------


def test_a_directory_does_not_go_on_a_file_or_a_file_on_a_directory(preloaded, root, sources):
    one, _ = sources
    on_a_file = refused(preloaded, Tmpfs("/fine"), Bind(one, "/file"), chroot_dir=root)
    on_a_directory = refused(preloaded, Tmpfs("/fine"), Bind(one / "which", "/place"), chroot_dir=root)
    assert (on_a_file.errno, on_a_directory.errno) == (errno.ENOTDIR, errno.EISDIR)
    for error in (on_a_file, on_a_directory):
        assert "mounts[1]" in str(error)
        assert "not of one kind" in error.hint


@pytest.mark.parametrize("make", [Tmpfs, Proc, Dev, lambda target: Overlay(target, lower="/srv")])
def test_nothing_that_is_a_directory_goes_on_a_file(client, make):
    error = refused(client, make("/etc/passwd"))
    assert error.errno == errno.ENOTDIR
    assert "mounts[0]" in str(error)


def test_a_way_through_a_file_is_an_error_that_says_so(client):
    error = refused(client, Tmpfs("/etc/passwd/below"))
    assert error.errno == errno.ENOTDIR
    assert "no directory" in error.hint


def test_a_way_through_a_directory_that_is_closed_to_the_child_is_an_error(client, directory):
    """Whoever sets the child up has no more rights on the host's files than the child."""
    (directory / "closed" / "inner").mkdir(parents=True)
    (directory / "closed").chmod(0o700)
    for target in ("closed/inner", "closed/new"):
        error = refused(client, Tmpfs(directory / target))
        assert error.errno == errno.EACCES
        assert "mounts[0]" in str(error)


def test_a_parent_with_too_many_entries_is_an_error_that_says_what_to_do(client, directory):
    for number in range(1_025):
        (directory / str(number)).touch()
    error = refused(client, Tmpfs(directory / "new"))
    assert error.errno == errno.E2BIG
    assert "beforehand" in error.hint
    (directory / "new").mkdir()
    assert run(client, "print('fine')", Tmpfs(directory / "new")) == "fine\n"


def test_a_parent_of_a_thousand_entries_of_every_kind_can_be_made_anew(client, directory):
    for number in range(1_000):
        path = directory / str(number)
        (path.touch, path.mkdir)[number % 2]()
    os.mkfifo(directory / "pipe")
    os.mknod(directory / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (directory / "link").symlink_to("nowhere")
    (directory / "private").touch(mode=0o600)
    code = """
    import os, stat
    modes = [stat.S_IFMT(os.lstat(f"{place}/{name}").st_mode) for name in os.listdir(place)]
    print(len(modes), *[modes.count(kind) for kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFLNK)])
    """
    assert run(client, code, Tmpfs(directory / "new"), place=str(directory)) == "1005 1 1 1\n"


# What a configuration may not say. ------------------------------------------------------------------------

SOURCE = "/usr"
FINE = Tmpfs("/fine")


def wrong_paths(field: str, make) -> dict[str, tuple[object, str]]:
    return {
        f"{field} is empty": (make(""), field),
        f"{field} has a NUL byte": (make("/da\0ta"), field),
        f"{field} is too long": (make("/" + "x/" * 2048), field),
    }


def wrong_targets(name: str, make) -> dict[str, tuple[object, str]]:
    return {
        f"{name}: {problem}": (value, "target")
        for problem, value in {
            "relative": make("data"),
            "dots": make("/data/../etc"),
            "dots at its end": make("/.."),
            "empty": make(""),
            "NUL": make("/da\0ta"),
            "too long": make("/" + "x" * 4095),
        }.items()
    }


WRONG: dict[str, tuple[object, str]] = {
    **wrong_targets("Bind", lambda target: Bind(SOURCE, target)),
    **wrong_targets("Tmpfs", Tmpfs),
    **wrong_targets("Overlay", lambda target: Overlay(target, lower=SOURCE)),
    **wrong_targets("Proc", Proc),
    **wrong_targets("Dev", Dev),
    **wrong_paths("source", lambda path: Bind(path, "/data")),
    **wrong_paths("lower", lambda path: Overlay("/data", lower=path)),
    **wrong_paths("upper", lambda path: Overlay("/data", lower=SOURCE, upper=path)),
    "a Bind of the root": (Bind(SOURCE, "/"), "root"),
    "a Bind of the root, written otherwise": (Bind(SOURCE, "//."), "root"),
    "a Tmpfs of the root": (Tmpfs("/"), "root"),
    "a Proc of the root": (Proc("/"), "root"),
    "a Dev of the root": (Dev("/"), "root"),
    "no size": (Tmpfs("/data", size_bytes=0), "size_bytes"),
    "less than a page": (Tmpfs("/data", size_bytes=4095), "size_bytes"),
    "no inodes": (Tmpfs("/data", max_inodes=0), "max_inodes"),
    "an Overlay of less than a page": (Overlay("/data", lower=SOURCE, size_bytes=4095), "size_bytes"),
    "an Overlay of nothing": (Overlay("/data"), "lower"),
    "an Overlay of the host's root": (Overlay(), "lower"),
    "an Overlay of the root with a lower": (Overlay("/", lower=SOURCE), "lower"),
}


@pytest.mark.parametrize(("wrong", "field"), WRONG.values(), ids=WRONG)
def test_nonsense_is_a_value_error_that_names_the_field_and_which_of_them(client, wrong, field):
    with pytest.raises(ValueError, match=r"mounts\[1\]") as caught:
        client.spawn_child([], sandbox_config=SandboxConfig(mounts=(FINE, wrong)))
    assert field in str(caught.value)


WRONG_TYPES: dict[str, tuple[object, str]] = {
    "a source": (Bind(3, "/data"), "source"),  # pyright: ignore[reportArgumentType]
    "no source": (Bind(None, "/data"), "source"),  # pyright: ignore[reportArgumentType]
    "a target": (Bind(SOURCE, 3), "target"),  # pyright: ignore[reportArgumentType]
    "writable": (Bind(SOURCE, "/data", writable="yes"), "writable"),  # pyright: ignore[reportArgumentType]
    "a size": (Tmpfs("/data", size_bytes="64M"), "size_bytes"),  # pyright: ignore[reportArgumentType]
    "half a byte": (Tmpfs("/data", size_bytes=4096.5), "size_bytes"),  # pyright: ignore[reportArgumentType]
    "inodes": (Tmpfs("/data", max_inodes=None), "max_inodes"),  # pyright: ignore[reportArgumentType]
    "a lower": (Overlay("/data", lower=7), "lower"),  # pyright: ignore[reportArgumentType]
    "an upper": (Overlay("/data", lower=SOURCE, upper=7), "upper"),  # pyright: ignore[reportArgumentType]
    "ptmx": (Dev(ptmx="no"), "ptmx"),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize(("wrong", "field"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_a_value_of_another_type_is_a_type_error_that_names_the_field(client, wrong, field):
    with pytest.raises(TypeError, match=field):
        client.spawn_child([], sandbox_config=SandboxConfig(mounts=(FINE, wrong)))


OUT_OF_RANGE = {
    "a negative size": (Tmpfs("/data", size_bytes=-1), "size_bytes"),
    "negative inodes": (Tmpfs("/data", max_inodes=-5), "max_inodes"),
    "a huge size": (Tmpfs("/data", size_bytes=2**64), "size_bytes"),
    "a negative size of an Overlay": (Overlay("/data", lower=SOURCE, size_bytes=-1), "size_bytes"),
}


@pytest.mark.parametrize(("wrong", "field"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_a_number_out_of_range_is_an_error_that_names_the_field(client, wrong, field):
    with pytest.raises((ValueError, OverflowError), match=field):
        client.spawn_child([], sandbox_config=SandboxConfig(mounts=(FINE, wrong)))


def test_the_largest_numbers_are_fine_or_a_clear_error(client):
    for mount in (Tmpfs("/data", size_bytes=2**63 - 1), Tmpfs("/data", max_inodes=2**63 - 1)):
        try:
            assert run(client, "print('ran')", mount) == "ran\n"
        except pyspawner.SandboxError as error:
            assert "mounts[0]" in str(error)  # noqa: PT017


@pytest.mark.parametrize("mounts", [("/data",), (None,), (SOURCE, "/data"), ({"target": "/data"},)])
def test_something_that_is_no_mount_is_a_type_error(client, mounts):
    with pytest.raises(TypeError, match="Bind, Tmpfs, Overlay, Proc and Dev"):
        client.spawn_child([], sandbox_config=SandboxConfig(mounts=mounts))


@pytest.mark.parametrize("mounts", [FINE, None, 3])
def test_mounts_that_are_no_tuple_are_a_type_error(client, mounts):
    with pytest.raises(TypeError):
        client.spawn_child([], sandbox_config=SandboxConfig(mounts=mounts))


def test_a_list_of_mounts_is_as_good(client):
    sandbox = SandboxConfig(mounts=[FINE])  # pyright: ignore[reportArgumentType]
    assert support.run(client, "import os; print(os.listdir('/fine'))", sandbox=sandbox).text == "[]\n"


def test_thirty_mounts_are_fine_and_one_more_is_a_value_error(client, sources):
    one, _ = sources
    kinds = (
        lambda target: Bind(one, target),
        lambda target: Bind(one, target, writable=True),
        Tmpfs,
        lambda target: Overlay(target, lower=one),
        Proc,
        Dev,
    )
    mounts = tuple(kinds[number % len(kinds)](f"/m{number}") for number in range(30))
    code = (
        "import os; print(len([name for name in os.listdir('/') if name[0] == 'm' and name[1:].isdigit()]))"
    )
    assert run(client, code, *mounts) == "30\n"
    with pytest.raises(ValueError, match=r"mounts\[30\].*30"):
        run(client, code, *mounts, FINE)


@pytest.mark.parametrize(
    "make",
    [Bind, lambda source, target: Bind(source, target, writable=True)],
)
def test_thirty_of_one_kind_are_fine(client, sources, make):
    code = (
        "import os; print(len([name for name in os.listdir('/') if name[0] == 'm' and name[1:].isdigit()]))"
    )
    mounts = tuple(make(sources[0], f"/m{number}") for number in range(30))
    assert run(client, code, *mounts) == "30\n"


def test_thirty_overlays_with_uppers_are_fine(client, sources, directory):
    """Two descriptors each."""
    mounts = []
    for number in range(30):
        (directory / f"upper{number}").mkdir()
        mounts.append(Overlay(f"/m{number}", lower=sources[0], upper=directory / f"upper{number}"))
    code = "for number in range(30): open(f'/m{number}/{number}', 'x').close()"
    run(client, code, *mounts)
    assert [os.listdir(mount.upper / "changes") for mount in mounts] == [[str(n)] for n in range(30)]


def test_targets_that_are_too_long_together_are_a_value_error(client):
    mounts = tuple(Tmpfs(f"/{number}" + "/x" * 1_000) for number in range(5))
    with pytest.raises(ValueError, match="8 KiB"):
        run(client, "pass", *mounts)


def test_a_wrong_one_is_noticed_before_anything_is_made(client, directory):
    upper = directory / "upper"
    upper.mkdir()
    mounts = (Overlay("/data", lower=SOURCE, upper=upper), Bind(SOURCE, "relative"))
    with pytest.raises(ValueError, match=r"mounts\[1\]"):
        run(client, "pass", *mounts)
    assert os.listdir(upper) == []


def test_a_name_of_dots_only_is_a_name(client):
    code = "import os; print(os.listdir('/...'), os.path.isdir('/usr'))"
    assert run(client, code, Tmpfs("/...")) == "[] True\n"
