"""``open_beneath``: what a hostile child leaves where its caller expects a result is not opened."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import support
from pyspawner import Bind, SandboxConfig, open_beneath
from support import run_caller, visible_directory

SECRET = b"secret"


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "secret").write_bytes(SECRET)
    return tmp_path


@pytest.fixture
def results(outside):
    """The directory that a child had."""
    results = outside / "results"
    (results / "nested" / "deep").mkdir(parents=True)
    (results / "file").write_bytes(b"content")
    (results / "nested" / "deep" / "file").write_bytes(b"deep content")
    return results


# What is opened. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["file", Path("file"), "./file", "nested/../file"])
def test_a_file_is_opened(results, path):
    with open_beneath(results, path) as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("path", ["nested/deep/file", "nested//deep/./file"])
def test_a_file_further_down_is_opened(results, path):
    with open_beneath(str(results), path) as file:
        assert file.read() == b"deep content"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH], ids=["open", "only a place"])
def test_the_directory_may_be_a_descriptor_which_stays_open(results, flags):
    descriptor = os.open(results, flags | os.O_DIRECTORY)
    try:
        for _ in range(2):
            with open_beneath(descriptor, "nested/deep/file") as file:
                assert file.read() == b"deep content"
    finally:
        os.close(descriptor)


def test_a_directory_that_was_moved_is_still_the_descriptors(results, outside):
    descriptor = os.open(results, os.O_PATH | os.O_DIRECTORY)
    results.rename(outside / "moved")
    try:
        with open_beneath(descriptor, "file") as file:
            assert file.read() == b"content"
    finally:
        os.close(descriptor)


def test_links_in_the_directorys_own_path_are_followed(results, outside):
    (outside / "link").symlink_to(results)
    with open_beneath(outside / "link", "file") as file:
        assert file.read() == b"content"


def test_it_is_a_raw_reader_of_bytes_that_no_program_inherits(results):
    with open_beneath(results, "file") as file:
        assert isinstance(file, io.RawIOBase)
        assert (file.readable(), file.writable(), file.seekable()) == (True, False, True)
        assert not os.get_inheritable(file.fileno())
        assert file.seek(3) == 3
        assert file.read(2) == b"te"


def test_an_empty_file_and_a_name_of_any_bytes_are_fine(results):
    name = os.fsdecode(b"\xff\n odd")
    (results / name).touch()
    with open_beneath(results, name) as file:
        assert file.read() == b""


def test_what_a_child_wrote_can_be_read(client):
    with visible_directory() as directory:
        sandbox = SandboxConfig(mounts=(Bind(directory, "/out", writable=True),))
        code = "import os; os.makedirs('/out/a/b'); open('/out/a/b/result', 'w').write('42')"
        assert support.run(client, code, sandbox=sandbox).text == ""
        with open_beneath(directory, "a/b/result") as file:
            assert file.read() == b"42"


# What is not. ---------------------------------------------------------------------------------------------


def refused(directory: Path | int, path: str) -> int:
    """Why it is not opened."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        open_beneath(directory, path)
    assert caught.value.errno is not None
    return caught.value.errno


def a_link_to_a_secret(results, outside):
    (results / "bad").symlink_to(outside / "secret")
    return "bad"


def a_relative_link(results, outside):
    (results / "bad").symlink_to("../secret")
    return "bad"


def a_link_to_a_file_beside_it(results, outside):
    (results / "bad").symlink_to("file")
    return "bad"


def a_dangling_link(results, outside):
    (results / "bad").symlink_to("nonexistent")
    return "bad"


def a_loop(results, outside):
    (results / "bad").symlink_to("bad")
    return "bad"


def a_link_on_the_way(results, outside):
    (results / "bad").symlink_to(outside / "directory")
    return "bad/secret"


def a_link_on_the_way_that_stays_inside(results, outside):
    (results / "bad").symlink_to("nested")
    return "bad/deep/file"


def a_link_to_itself_by_proc(results, outside):
    (results / "bad").symlink_to("/proc/self/cwd")
    return "bad/etc/passwd"


def dots(results, outside):
    return "../secret"


def dots_on_the_way(results, outside):
    return "nested/../../secret"


def an_absolute_path(results, outside):
    return str(outside / "secret")


def an_absolute_path_of_a_file_in_it(results, outside):
    return str(results / "file")


def a_pipe(results, outside):
    os.mkfifo(results / "bad")
    return "bad"


def a_socket(results, outside):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(results / "bad"))
    return "bad"


def a_device(results, outside):
    os.mknod(results / "bad", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    return "bad"


def a_block_device(results, outside):
    os.mknod(results / "bad", 0o666 | stat.S_IFBLK, os.makedev(7, 0))
    return "bad"


def a_second_name_of_a_secret(results, outside):
    (results / "bad").hardlink_to(outside / "secret")
    return "bad"


def a_directory(results, outside):
    return "nested"


def itself(results, outside):
    return "."


def nothing(results, outside):
    return "nonexistent"


def something_below_a_file(results, outside):
    return "file/below"


def an_empty_path(results, outside):
    return ""


REFUSED = [
    (a_link_to_a_secret, errno.ELOOP),
    (a_relative_link, errno.ELOOP),
    (a_link_to_a_file_beside_it, errno.ELOOP),
    (a_dangling_link, errno.ELOOP),
    (a_loop, errno.ELOOP),
    (a_link_on_the_way, errno.ELOOP),
    (a_link_on_the_way_that_stays_inside, errno.ELOOP),
    (a_link_to_itself_by_proc, errno.ELOOP),
    (dots, errno.EXDEV),
    (dots_on_the_way, errno.EXDEV),
    (an_absolute_path, errno.EXDEV),
    (an_absolute_path_of_a_file_in_it, errno.EXDEV),
    (a_pipe, errno.EINVAL),
    (a_socket, errno.EINVAL),
    (a_device, errno.EINVAL),
    (a_block_device, errno.EINVAL),
    (a_second_name_of_a_secret, errno.EMLINK),
    (a_directory, errno.EISDIR),
    (itself, errno.EISDIR),
    (nothing, errno.ENOENT),
    (something_below_a_file, errno.ENOTDIR),
    (an_empty_path, errno.ENOENT),
]


@pytest.mark.parametrize(("make", "expected"), REFUSED, ids=[make.__name__ for make, _ in REFUSED])
def test_what_is_no_plain_file_in_the_directory_is_not_opened(results, outside, make, expected):
    path = make(results, outside)
    assert refused(results, path) == expected
    descriptor = os.open(results, os.O_PATH | os.O_DIRECTORY)
    try:
        assert refused(descriptor, path) == expected
    finally:
        os.close(descriptor)


LEADS_OUT = [
    a_link_to_a_secret,
    a_relative_link,
    a_link_on_the_way,
    dots,
    an_absolute_path,
    a_second_name_of_a_secret,
]


@pytest.mark.parametrize("make", LEADS_OUT)
def test_control_a_plain_open_reads_the_secret(results, outside, make):
    assert (results / make(results, outside)).read_bytes() == SECRET


def test_a_pipe_does_not_block_as_a_plain_open_does(results, outside):
    """In processes, since a test that hangs tells nobody anything."""
    path = results / a_pipe(results, outside)
    ours = f"import sys; sys.path[:] = {sys.path!r}\nimport pyspawner; pyspawner.open_beneath({str(results)!r}, 'bad')"
    done = subprocess.run([sys.executable, "-c", ours], check=False, capture_output=True, timeout=60)
    assert b"OSError" in done.stderr
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["cat", path], check=False, timeout=0.5)


LEASE = """
import fcntl, os, signal, sys
# A holder that does not care is given /proc/sys/fs/lease-break-time, 45 seconds by default.
signal.signal(signal.SIGIO, signal.SIG_IGN)
descriptor = os.open("/out/file", os.O_RDWR)
try:
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    print("taken", flush=True)
except PermissionError:
    print("refused", flush=True)
sys.stdin.read()
"""


def test_a_lease_of_a_child_that_still_runs_does_not_block_as_it_does_a_plain_open(client):
    """fcntl(2), F_SETLEASE: whoever else opens the file waits for its holder."""
    with visible_directory() as directory:
        (directory / "file").write_bytes(b"content")
        sandbox = SandboxConfig(mounts=(Bind(directory, "/out", writable=True),))
        child = support.spawn(client, LEASE, sandbox=sandbox)
        try:
            answer = child.stdout.readline()
            assert answer in (b"taken\n", b"refused\n")
            if answer == b"refused\n":
                return
            with pytest.raises(subprocess.TimeoutExpired):
                subprocess.run(["cat", directory / "file"], check=False, timeout=0.5)
            ours = (
                f"import sys; sys.path[:] = {sys.path!r}\nimport pyspawner\n"
                f"pyspawner.open_beneath({str(directory)!r}, 'file')"
            )
            subprocess.run([sys.executable, "-c", ours], check=False, capture_output=True, timeout=10)
        finally:
            child.kill()
            support.communicate(child)


def test_the_error_is_the_one_that_open_raises_and_names_the_file(results):
    with pytest.raises(FileNotFoundError) as missing:
        open_beneath(results, "nonexistent")
    assert missing.value.filename in (results / "nonexistent", str(results / "nonexistent"))
    with pytest.raises(IsADirectoryError):
        open_beneath(results, "nested")
    with pytest.raises(NotADirectoryError):
        open_beneath(results / "file", "anything")


@pytest.mark.parametrize("path", ["a\0b", "\0"])
def test_a_nul_byte_is_an_error(results, path):
    with pytest.raises((ValueError, OSError)):
        open_beneath(results, path)


@pytest.mark.parametrize("path", [None, 3, ["file"]])
def test_another_type_is_a_type_error(results, path):
    with pytest.raises(TypeError):
        open_beneath(results, path)


@pytest.mark.parametrize("directory", [-1, 1_000_000, 2**40])
def test_a_descriptor_that_is_none_is_an_error(directory):
    with pytest.raises(OSError):  # noqa: PT011
        open_beneath(directory, "file")


def test_a_descriptor_of_a_file_is_an_error(results):
    with (results / "file").open() as file, pytest.raises(NotADirectoryError):
        open_beneath(file.fileno(), "anything")


def test_another_filesystem_below_it_is_not_entered(tmp_path):
    """In a mount namespace of the test's own; a bind is another mount too, if not another filesystem."""
    for name in ("tmpfs", "bind", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "file").write_bytes(SECRET)
    (tmp_path / "single").touch()
    code = f"""
    for path in ("tmpfs/file", "bind/file", "single"):
        plain = open({str(tmp_path)!r} + "/" + path, "rb").read()
        try:
            pyspawner.open_beneath({str(tmp_path)!r}, path)
        except OSError as error:
            print(path, plain, error.errno)
    """
    prelude = (
        f"mount -t tmpfs tmpfs {tmp_path}/tmpfs && cp {tmp_path}/other/file {tmp_path}/tmpfs && "
        f"mount --bind {tmp_path}/other {tmp_path}/bind && "
        f'mount --bind {tmp_path}/other/file {tmp_path}/single && exec "$@"'
    )
    lines = run_caller(code, wrapper=["unshare", "--mount", "sh", "-c", prelude, "sh"]).splitlines()
    assert lines == [f"{path} {SECRET!r} {errno.EXDEV}" for path in ("tmpfs/file", "bind/file", "single")]


# Races. ---------------------------------------------------------------------------------------------------

AT_FDCWD, RENAME_EXCHANGE = -100, 2
_libc = ctypes.CDLL(None, use_errno=True)


def swap(one: Path, other: Path) -> None:
    """Exchange two names in one step, so that there always is something of each name."""
    paths = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


SWAPS = 2_000


def read_while_swapping(one: Path, other: Path, read) -> tuple[set[bytes], set[int | None]]:
    """What ``read`` returns and which errors it raises while two names are exchanged to and fro."""
    done = threading.Event()

    def keep_swapping() -> None:
        for _ in range(SWAPS):
            swap(one, other)
        done.set()

    contents: set[bytes] = set()
    errors: set[int | None] = set()
    swapper = threading.Thread(target=keep_swapping)
    swapper.start()
    while not done.is_set():
        try:
            contents.add(read())
        except OSError as error:
            errors.add(error.errno)
    swapper.join()
    return contents, errors


@pytest.fixture
def raced(results, outside):
    """A file and a link, a directory and a link, a file and a pipe, to be swapped."""
    (results / "link").symlink_to(outside / "secret")
    (results / "nested" / "secret").write_bytes(b"harmless")
    (results / "linked").symlink_to(outside / "directory")
    os.mkfifo(results / "pipe")
    (results / "double").hardlink_to(outside / "secret")
    return results


def plain_read(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read()


def beneath(directory: Path, path: str) -> bytes:
    with open_beneath(directory, path) as file:
        return file.read()


def test_a_file_that_is_swapped_for_a_link_gives_its_content_or_an_error(raced):
    contents, errors = read_while_swapping(raced / "file", raced / "link", lambda: beneath(raced, "file"))
    assert contents <= {b"content"}
    assert errors <= {errno.ELOOP}


def reads_the_secret_sometimes(one: Path, other: Path, read) -> bool:
    """Whether ``read`` does, if it is tried often enough."""
    return any(SECRET in read_while_swapping(one, other, read)[0] for _ in range(100))


def test_control_a_plain_open_gives_the_secret_sometimes(raced):
    assert reads_the_secret_sometimes(raced / "file", raced / "link", lambda: plain_read(raced / "file"))


def test_control_so_does_an_open_that_looked_first(raced):
    """Check and use apart: the reason why nothing less than the kernel's own check is enough."""

    def look_then_open() -> bytes:
        if (raced / "file").is_symlink():
            return b"a link"
        return plain_read(raced / "file")

    assert reads_the_secret_sometimes(raced / "file", raced / "link", look_then_open)


def test_a_directory_that_is_swapped_for_a_link_gives_its_content_or_an_error(raced):
    contents, errors = read_while_swapping(
        raced / "nested", raced / "linked", lambda: beneath(raced, "nested/secret")
    )
    assert contents <= {b"harmless"}
    assert errors <= {errno.ELOOP}


def test_control_a_plain_open_follows_the_link_on_the_way_sometimes(raced):
    assert reads_the_secret_sometimes(
        raced / "nested", raced / "linked", lambda: plain_read(raced / "nested" / "secret")
    )


def test_a_file_that_is_swapped_for_a_pipe_does_not_block(raced):
    contents, errors = read_while_swapping(raced / "file", raced / "pipe", lambda: beneath(raced, "file"))
    assert contents <= {b"content"}
    assert errors <= {errno.EINVAL}


def test_a_file_that_is_swapped_for_a_second_name_of_a_secret_gives_its_content_or_an_error(raced):
    contents, errors = read_while_swapping(raced / "file", raced / "double", lambda: beneath(raced, "file"))
    assert contents <= {b"content"}
    assert errors <= {errno.EMLINK}


def test_dots_do_not_lead_out_of_a_directory_that_is_moved_while_it_is_searched(results, outside):
    """``nested`` moves in and out: from outside, ``..`` of it would be the directory with the secret."""
    inside, away = results / "nested", outside / "nested"
    done = threading.Event()

    def keep_moving() -> None:
        for _ in range(SWAPS):
            inside.rename(away)
            away.rename(inside)
        done.set()

    mover = threading.Thread(target=keep_moving)
    mover.start()
    contents: set[bytes] = set()
    errors: set[int | None] = set()
    while not done.is_set():
        try:
            contents.add(beneath(results, "nested/deep/../../file"))
            contents.add(beneath(results, "nested/../secret"))
        except OSError as error:
            errors.add(error.errno)
    mover.join()
    assert contents <= {b"content"}
    # EAGAIN would say nothing that the caller can act on: the kernel means "ask again".
    assert errors <= {errno.ENOENT, errno.EXDEV}


def test_dots_inside_do_not_fail_because_somebody_renames_something_elsewhere(results, tmp_path):
    """openat2(2) answers ``EAGAIN`` when any rename on the machine crosses its way."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    program = f"import os\nwhile True:\n    os.rename({str(one)!r}, {str(other)!r}); os.rename({str(other)!r}, {str(one)!r})"
    with subprocess.Popen([sys.executable, "-S", "-c", program]) as renaming:
        try:
            for _ in range(50_000):
                assert beneath(results, "nested/../file") == b"content"
        finally:
            renaming.kill()
