"""The layer ``mounts``: ``chroot_dir`` as the root, or what is readable of the host. Always on."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import attacks
import pyspawner
import support
from support import SANDBOX, attack_outside, only, run_caller

# Alone: no optional layer, so that the child is root in its own namespaces, with every capability.
ALONE, ALL = frozenset({"none of the layers"}), frozenset()
each_sandbox = pytest.mark.parametrize("layers", [ALONE, ALL], ids=["alone", "all layers"])

LOCKED = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV


@pytest.fixture
def root(directory):
    """What children get as their root; beside it lies what they must not see."""
    (directory / "secret").write_text("secret")
    root = directory / "root"
    (root / "inner").mkdir(parents=True)
    (root / "writable").mkdir()
    (root / "writable").chmod(0o777)
    (root / "file").write_text("inside")
    (root / "absolute").symlink_to(directory / "secret")
    (root / "relative").symlink_to("../secret")
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "null").chmod(0o666)
    return root


def entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def run_in(client, root, source, *, layers=ALL, **names):
    sandbox = pyspawner.SandboxConfig(chroot_dir=root, skip_sandbox_except=layers)
    return support.run(client, source, sandbox=sandbox, **names)


# The root. ------------------------------------------------------------------------------------------------


@each_sandbox
def test_the_root_is_the_directory_and_the_working_directory_is_the_root(preloaded, root, layers):
    source = "import os; print(os.getcwd(), sorted(os.listdir('/')), open('file').read())"
    expected = f"/ {entries(root)} inside\n"
    assert run_in(preloaded, root, source, layers=layers).text == expected


def test_the_handle_says_so(preloaded, root):
    child = support.spawn(preloaded, "", sandbox=pyspawner.SandboxConfig(chroot_dir=root))
    support.communicate(child)
    assert str(root) in child.layers["mounts"]


@each_sandbox
def test_the_root_is_read_only_nosuid_nodev(preloaded, root, layers):
    source = "import os; print(os.statvfs('/').f_flag)"
    assert int(run_in(preloaded, root, source, layers=layers).text) & LOCKED == LOCKED


WRITE = """
import attacks
for path in ("file", "writable/new"):
    try:
        open(path, "w").close()
        print("written")
    except OSError as error:
        print(error.strerror)
"""


@each_sandbox
def test_nothing_can_be_written(preloaded, root, layers):
    (root / "file").chmod(0o666)
    refusal = os.strerror(errno.EROFS) + "\n"
    assert run_in(preloaded, root, WRITE, layers=layers).text == refusal * 2


def test_control_outside_a_stranger_can_write(root):
    """It has no capability, and only the modes let it."""
    (root / "file").chmod(0o666)
    program = f"import sys; sys.path[:] = {sys.path!r}\nimport attacks, os; os.setuid(4242)\n{WRITE}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    assert done.stdout == "written\n" * 2


OPEN_DEVICE = "import attacks; attacks.attempt('open', path)"


@each_sandbox
def test_a_device_node_is_dead(preloaded, root, layers):
    answer = run_in(preloaded, root, OPEN_DEVICE, layers=layers, path="/null").text
    assert int(answer) == -errno.EACCES


def test_control_outside_the_device_node_works(root):
    assert attack_outside("open", str(root / "null")) >= 0


@pytest.mark.parametrize("root", [Path("/"), None], ids=["in a directory", "in the host's tree"])
def test_a_setuid_program_is_dead(client, directory, root):
    """Made for the root of the child's own namespace, and without ``no_new_privs``."""
    program = shutil.copy("/usr/bin/id", directory)
    sandbox = pyspawner.SandboxConfig(chroot_dir=root, skip_sandbox_except=frozenset({"setuid"}))
    source = "import os, sys; sys.stdin.read(); os.execv(program, [program, '-u'])"
    child = support.spawn(client, source, sandbox=sandbox, program=program)
    first_id = int(re.findall(r"\d+", child.layers["id_map"])[-1])
    os.chown(program, first_id, first_id)
    Path(program).chmod(0o4755)
    inside = support.communicate(child).text
    outside = subprocess.check_output([program, "-u"], text=True, user=first_id + 1000)
    assert outside == f"{first_id}\n", "the control: the same ids"
    assert inside == "1000\n"


@each_sandbox
@pytest.mark.parametrize("link", ["absolute", "relative"])
def test_symbolic_links_do_not_lead_out(preloaded, root, link, layers):
    assert (root / link).read_text() == "secret", "the control"
    answer = run_in(preloaded, root, OPEN_DEVICE, layers=layers, path=f"/{link}").text
    assert int(answer) == -errno.ENOENT


def test_a_mount_below_the_directory_is_locked_too(root):
    """In a mount namespace of the test's own."""
    source = f"""
    import os
    root = Path({str(root)!r})
    with pyspawner.Client(child_main="support.run_source") as client:
        sandbox = pyspawner.SandboxConfig(chroot_dir=root)
        look = "import os; print(os.listdir('/inner'), os.statvfs('/inner').f_flag)"
        print(run(client, look, sandbox=sandbox).text)
    """
    prelude = f'mount -t tmpfs tmpfs {root}/inner && touch {root}/inner/below && exec "$@"'
    text = run_caller(source, wrapper=["unshare", "--mount", "sh", "-c", prelude, "sh"])
    listing, flags = text.split()
    assert listing == "['below']"
    assert int(flags) & LOCKED == LOCKED


# Escapes. Each prints what it sees at last: the directory's entries or nothing, if it fails. --------------

LOOK = """
    print(sorted(os.listdir("/")), os.path.exists("/secret"), os.path.exists("/etc/passwd"))
"""
ESCAPES = {
    "dots": """
    os.chdir("/" + "../" * 64)
    """,
    "a second chroot": """
    os.chroot("inner")
    os.chdir("../" * 64)
    os.chroot(".")
    """,
    "unmounting the root": """
    attacks.call("umount2", b"/", 2)
    os.chdir("/")
    """,
    "moving the root away": """
    attacks.call("pivot_root", b"/", b"/inner")
    attacks.call("mount", b"/", b"/inner", 0, 0x2000, 0)
    os.chdir("/")
    """,
    "a mount namespace of its own": """
    attacks.call("unshare", attacks.NEWNS)
    attacks.call("umount2", b"/", 2)
    os.chdir("/../../..")
    """,
    "an open descriptor": """
    for descriptor in range(4096):
        try:
            os.fchdir(descriptor)
            os.chroot(".")
        except OSError:
            pass
    """,
}


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
def test_a_child_with_all_its_own_capabilities_does_not_get_out(preloaded, root, escape):
    seen = run_in(
        preloaded, root, f"import attacks, os\n{dedented(escape)}{dedented(LOOK)}", layers=ALONE
    ).text
    assert seen in (f"{entries(root)} False False\n", "[] False False\n")


@pytest.mark.parametrize("escape", ["dots", "an open descriptor"])
def test_a_child_under_all_layers_does_not_get_out(preloaded, root, escape):
    source = ESCAPES[escape].replace("os.chroot", "os.chdir")
    seen = run_in(preloaded, root, f"import attacks, os\n{dedented(source)}{dedented(LOOK)}").text
    assert seen == f"{entries(root)} False False\n"


def dedented(source: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in source.splitlines()) + "\n"


@pytest.mark.parametrize("escape", ["a second chroot", "an open descriptor"])
def test_control_from_a_plain_chroot_root_gets_out(root, escape):
    program = f"""
import sys; sys.path[:] = {sys.path!r}
import attacks, os
host = os.open("/", os.O_PATH)
os.chroot({str(root)!r})
os.chdir("/")
{dedented(ESCAPES[escape])}{dedented(LOOK)}"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("True\n")


HANDLE = """
import attacks, ctypes, os
opened = attacks.call("open_by_handle_at", os.open(where, os.O_PATH | os.O_DIRECTORY), handle, 0)
print(opened)
"""


def test_a_file_handle_does_not_lead_out(preloaded, root):
    """To a file of the same filesystem beside the root. Handles can be guessed; open_by_handle_at(2)."""
    handle = ctypes.create_string_buffer((120).to_bytes(4, "little"), 128)
    secret = str(root.parent / "secret").encode()
    assert (
        attacks.call("name_to_handle_at", attacks.AT_FDCWD, secret, handle, ctypes.create_string_buffer(8), 0)
        == 0
    )
    directory = os.open(root, os.O_RDONLY)
    outside = attacks.call("open_by_handle_at", directory, handle, 0)
    os.close(directory)
    assert outside >= 0, "the control"
    os.close(outside)
    opened = run_in(preloaded, root, HANDLE, layers=ALONE, handle=handle.raw, where="/inner").text
    assert int(opened) in (-errno.EPERM, -errno.ESTALE, -errno.EBADF, -errno.EACCES)


REMOUNT = """
import attacks, os
MS_REMOUNT, MS_BIND = 0x20, 0x1000
print(attacks.call("mount", 0, where.encode(), 0, MS_REMOUNT | MS_BIND, 0), os.statvfs(where).f_flag)
"""


def test_the_root_cannot_be_remounted_writable(preloaded, root):
    """Not even by a child with every capability in its own namespaces: the lock is the caller's."""
    answer, flags = map(int, run_in(preloaded, root, REMOUNT, layers=ALONE, where="/").text.split())
    assert (answer, flags & LOCKED) == (-errno.EPERM, LOCKED)


# A chroot_dir that is none. -------------------------------------------------------------------------------


def missing(directory):
    return directory / "missing"


def a_file(directory):
    (directory / "file").touch()
    return directory / "file"


def a_symbolic_link(directory):
    (directory / "link").symlink_to(directory)
    return directory / "link"


@pytest.mark.parametrize(
    ("make", "expected"), [(missing, errno.ENOENT), (a_file, errno.ENOTDIR), (a_symbolic_link, errno.ENOTDIR)]
)
def test_a_bad_chroot_dir_is_an_error_that_says_what_to_do(client, directory, make, expected):
    sandbox = pyspawner.SandboxConfig(chroot_dir=make(directory))
    with pytest.raises(pyspawner.SandboxError) as caught:
        client.spawn_child(["print('it ran')", {}], sandbox_config=sandbox)
    assert (caught.value.layer, caught.value.errno) == ("mounts", expected)
    assert "chroot_dir" in caught.value.hint
    assert support.run(client, "print('still works')").text == "still works\n"


# Without chroot_dir: what must be readable, and nothing beside it. ----------------------------------------


@pytest.fixture
def home(directory):
    """A home directory of mode 0700 with a secret in it."""
    home = directory / "home"
    home.mkdir(mode=0o700)
    (home / "secret").write_text("secret")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id").write_text("secret")
    return home


IMPORT = """
import os, some_module
print(some_module.value)
for path, _, files in os.walk(home):
    print(path.removeprefix(home), sorted(files))
print(os.path.exists(os.path.join(home, "secret")), os.access(home, os.W_OK), os.statvfs(home).f_flag)
"""


def test_modules_below_a_closed_home_are_importable_and_nothing_beside_them_is_visible(home, monkeypatch):
    modules = home / "project" / "modules"
    modules.mkdir(parents=True)
    (modules / "some_module.py").write_text("value = 42\n")
    (home / "project" / "notes").write_text("secret")
    monkeypatch.syspath_prepend(modules)
    with pyspawner.Client(child_main="support.run_source") as client:
        lines = support.run(client, IMPORT, home=str(home)).text.splitlines()
    assert lines[:-1] == ["42", " []", "/project []", "/project/modules ['some_module.py']"]
    exists, writable, flags = lines[-1].split()
    assert (exists, writable, int(flags) & LOCKED) == ("False", "False", LOCKED)


def test_of_a_closed_directory_on_the_path_only_modules_are_visible(home, monkeypatch):
    (home / "some_module.py").write_text("value = 42\n")
    (home / "some_package").mkdir()
    (home / "some_package" / "__init__.py").touch()
    (home / "some_package" / "data").touch()
    monkeypatch.syspath_prepend(home)
    with pyspawner.Client(child_main="support.run_source") as client:
        lines = support.run(client, IMPORT, home=str(home)).text.splitlines()
    assert lines[:-1] == ["42", " ['some_module.py']", "/some_package ['__init__.py', 'data']"]
    assert lines[-1].startswith("False")


def test_of_an_open_directory_below_a_closed_home_only_modules_are_visible_too(home, monkeypatch):
    """An application's own directory, with what lies there beside its code."""
    app = home / "app"
    for package in ("space/inner", ".git", "data"):
        (app / package).mkdir(parents=True)
    (app / "some_module.py").write_text("import space.inner.deep\nvalue = space.inner.deep.value\n")
    (app / "space" / "inner" / "deep.py").write_text("value = 42\n")
    for secret in (".env", "customers.csv", ".git/config", "data/rows"):
        (app / secret).write_text("secret")
    monkeypatch.syspath_prepend(app)
    with pyspawner.Client(child_main="support.run_source") as client:
        lines = support.run(client, IMPORT, home=str(home)).text.splitlines()
    expected = ["42", " []", "/app ['some_module.py']", "/app/space []", "/app/space/inner ['deep.py']"]
    assert [line for line in lines[:-1] if "__pycache__" not in line] == expected


def test_control_what_is_beside_modules_in_an_open_directory_is_visible(home, monkeypatch):
    home.chmod(0o755)
    (home / "some_module.py").write_text("value = 42\n")
    monkeypatch.syspath_prepend(home)
    with pyspawner.Client(child_main="support.run_source") as client:
        lines = support.run(client, IMPORT, home=str(home)).text.splitlines()
    assert lines[:-1] == ["42", " ['secret', 'some_module.py']", "/.ssh ['id']"]
    assert lines[-1].startswith("True")


LOCKED_VIEW = """
import attacks, os
print(os.statvfs(home).f_flag)
print(attacks.call("umount2", home.encode(), 2))
print(attacks.call("umount2", below.encode(), 2))
print(attacks.call("mount", 0, home.encode(), 0, 0x1020, 0))
print(sorted(os.listdir(home)))
"""


def test_a_child_with_all_its_own_capabilities_cannot_lift_the_cover(home, monkeypatch):
    package = home / "modules" / "some_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(home / "modules")
    source = f"home, below = {str(home)!r}, {str(package)!r}\n{LOCKED_VIEW}"
    with pyspawner.Client(child_main="support.run_source") as client:
        flags, cover, bind, remount, listing = support.run(client, source, sandbox=only()).text.splitlines()
    assert int(flags) & LOCKED == LOCKED
    assert (int(cover), int(bind), int(remount)) == (-errno.EINVAL, -errno.EINVAL, -errno.EPERM)
    assert listing == "['modules']"


RUN_INTERPRETER = """
import os, subprocess, sys
print(sys.executable)
program = "import json, sys; print(sys.prefix)"
print(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE).stdout)
print(sorted(os.listdir(home)))
"""


def test_a_virtual_environment_below_a_closed_home_works_in_a_child(home):
    environment = home / "project" / "venv"
    venv.create(environment, symlinks=True)
    package = Path(pyspawner.__file__).parent.parent
    site_packages = next(environment.glob("lib/python*/site-packages"))
    (site_packages / "tests.pth").write_text(f"{package}\n{Path(support.__file__).parent}\n")
    (home / "project" / ".env").write_text("secret")
    executable = environment / "bin" / "python"
    with pyspawner.Client(child_main="support.run_source", executable=str(executable)) as client:
        lines = support.run(client, RUN_INTERPRETER, home=str(home), sandbox=SANDBOX).text.splitlines()
        beside = support.run(
            client, "import os; print(os.listdir(project))", project=str(home / "project")
        ).text
    assert lines == [str(executable), repr(f"{environment}\n".encode()), "['project']"]
    assert beside == "['venv']\n"


def test_the_view_does_not_depend_on_the_callers_umask(home):
    (home / "modules").mkdir()
    (home / "modules" / "some_module.py").write_text("value = 42\n")
    (home / "modules").chmod(0o755)
    (home / "modules" / "some_module.py").chmod(0o644)
    source = f"""
    import os, sys
    os.umask(0o077)
    sys.path.append({str(home / "modules")!r})
    with pyspawner.Client(child_main="support.run_source") as client:
        print(run(client, "import some_module; print(some_module.value)").text)
    """
    assert run_caller(source).strip() == "42"
