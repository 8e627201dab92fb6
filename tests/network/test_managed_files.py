"""What a child with a managed network finds in ``/etc``: its resolvers, and the names that are pinned."""

from __future__ import annotations

import pytest
from managed_support import caller_of, children, documented, managed

import pyspawner
import support
from internet import PUBLIC

LOCALHOST = "127.0.0.1 localhost\n::1 localhost\n"
WEB4, WEB6 = PUBLIC[0], PUBLIC[3]

READ = """
from pathlib import Path
answer = [Path("/etc", name).read_text() for name in ("resolv.conf", "hosts")]
"""

LOOK = """
import os, stat
look = os.stat("/etc/" + name)
answer = [stat.S_IFMT(look.st_mode) == stat.S_IFREG, stat.S_IMODE(look.st_mode), look.st_uid, look.st_gid]
"""

ATTACKS = {
    "write": "open(path, 'w')",
    "append": "open(path, 'a')",
    "truncate": "os.truncate(path, 0)",
    "remove": "os.unlink(path)",
    "rename": "os.rename(path, path + '.old')",
    "replace": "os.rename('/tmp/own', path)",
    "chmod": "os.chmod(path, 0o666)",
    "touch": "os.utime(path)",
    "by descriptor": "open('/proc/self/fd/%d' % os.open(path, os.O_RDONLY), 'w')",
}

ATTACK = """
import os
open("/tmp/own", "w").close()
path = "/etc/" + name
try:
    exec(attack)
except OSError as error:
    answer = type(error).__name__
else:
    answer = "done"
"""


@pytest.mark.parametrize(
    ("options", "resolv_conf", "hosts"),
    [
        ({}, "nameserver 1.1.1.1\n", LOCALHOST),
        ({"ipv6": False}, "nameserver 1.1.1.1\n", LOCALHOST),
        ({"dns": ("8.8.8.8", "2606:4700:4700::1111")}, "nameserver 8.8.8.8\nnameserver 2606:4700:4700::1111\n", LOCALHOST),
        ({"dns": ("2606:4700:4700:0::1111",)}, "nameserver 2606:4700:4700::1111\n", LOCALHOST),
        ({"dns": ()}, "", LOCALHOST),
        ({"allow": (WEB4,)}, "", LOCALHOST),
        ({"allow": ("example.org:80",)}, "", f"{LOCALHOST}{WEB4} example.org\n{WEB6} example.org\n"),
        ({"allow": ("EXAMPLE.org.",), "ipv6": False}, "", f"{LOCALHOST}{WEB4} example.org\n"),
        ({"allow": ("example.org",), "dns": ("8.8.8.8",)}, "nameserver 8.8.8.8\n", f"{LOCALHOST}{WEB4} example.org\n{WEB6} example.org\n"),
        ({"deny": ("example.org",)}, "nameserver 1.1.1.1\n", LOCALHOST),
    ],
)  # fmt: skip
def test_the_files_say_what_was_configured(caller, options, resolv_conf, hosts):
    sandbox = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig.managed(**options))
    with children(caller, sandbox) as [child]:
        assert child.run(READ) == [resolv_conf, hosts]


def test_of_the_hosts_resolvers_those_are_told_that_a_child_reaches(world, tmp_path):
    resolvers = [
        "127.0.0.53",
        "::1",
        "10.0.0.5",
        "fe80::1%eth0",
        "2606:4700:4700::1111",
        "169.254.1.1",
        "fd00:5::5",
    ]
    with (
        caller_of(world.host.namespace, tmp_path, resolvers=resolvers) as caller,
        children(caller, managed(), managed(ipv6=False)) as (both, only_v4),
    ):
        told = ["10.0.0.5", "2606:4700:4700::1111", "fd00:5::5"]
        assert both.run(READ)[0] == "".join(f"nameserver {address}\n" for address in told)
        assert only_v4.run(READ)[0] == "nameserver 10.0.0.5\n"


def test_of_the_hosts_resolv_conf_only_resolvers_are_taken(world, tmp_path):
    text = "# nameserver 8.8.8.8\n;nameserver 8.8.4.4\nsearch example\nnameserver\t1.1.1.1  # one\noptions rotate\n"
    with caller_of(world.host.namespace, tmp_path) as caller:
        # In place: it is mounted.
        (tmp_path / "resolv.conf").write_text(text)
        with children(caller, managed()) as [child]:
            assert child.run(READ)[0] == "nameserver 1.1.1.1\n"


def test_other_children_find_the_hosts_files(world, tmp_path):
    with caller_of(world.host.namespace, tmp_path, hosts="10.0.0.5 secret.example\n") as caller:
        with children(caller, documented(), managed()) as (unmanaged, child):
            assert unmanaged.run(READ) == [
                "nameserver 1.1.1.1\n",
                "127.0.0.1 localhost\n10.0.0.5 secret.example\n",
            ]
            assert child.run(READ) == ["nameserver 1.1.1.1\n", LOCALHOST]
        assert (tmp_path / "resolv.conf").read_text() == "nameserver 1.1.1.1\n"


@pytest.mark.parametrize("name", ["resolv.conf", "hosts"])
def test_the_files_are_roots_and_for_all_to_read(caller, name):
    with children(caller, managed()) as [child]:
        assert child.run(LOOK, name=name) == [True, 0o444, 0, 0]


@pytest.mark.parametrize("name", ["resolv.conf", "hosts"])
@pytest.mark.parametrize("layers", [(), ("no_new_privs",)], ids=["as it is", "root without the layers"])
def test_nobody_can_change_the_files(caller, name, layers):
    network = pyspawner.NetworkConfig.managed()
    sandbox = pyspawner.SandboxConfig(network=network, skip_sandbox_except=frozenset(layers))
    with children(caller, sandbox) as [child]:
        before = child.run(READ)
        answers = {each: child.run(ATTACK, attack=attack, name=name) for each, attack in ATTACKS.items()}
        assert "done" not in answers.values(), answers
        assert child.run(READ) == before


def test_the_attacks_work_on_a_file_of_the_childs_own(caller):
    own = 'open("/tmp/victim", "w").close(); path = "/tmp/victim"\n'
    with children(caller, managed()) as [child]:
        for attack in ATTACKS.values():
            assert child.run(ATTACK, attack=own + attack, name="") == "done", attack


# A root of its own.


@pytest.fixture
def root(directory):
    """A root with Python in it, and an ``/etc`` with files of its own."""
    etc = directory / "etc"
    etc.mkdir(mode=0o755)
    for name in ("resolv.conf", "hosts"):
        (etc / name).write_text("its own\n")
    return directory


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory):
    """A caller whose children have in memory what they need."""
    with caller_of(world.host.namespace, tmp_path_factory.mktemp("prepared")) as caller:
        yield caller


def run_in_root(client: pyspawner.Client, sandbox: pyspawner.SandboxConfig) -> str:
    source = "import os\nfor name in names: print(os.open(name, os.O_RDONLY) and open(name).read(), end='')"
    with pyspawner.Client(child_main="support.run_source", preload_imports=["os", "encodings.idna"]) as own:
        return support.run(own, source, sandbox=sandbox, names=["/etc/resolv.conf", "/etc/hosts"]).text


def test_in_a_root_of_its_own_the_files_cover_what_is_there(prepared, root):
    network = pyspawner.NetworkConfig.managed(dns=("8.8.8.8",))
    sandbox = pyspawner.SandboxConfig(network=network, chroot_dir=root)
    assert prepared(run_in_root, sandbox) == f"nameserver 8.8.8.8\n{LOCALHOST}"
    assert (root / "etc" / "hosts").read_text() == "its own\n"


@pytest.mark.parametrize("has", ["nothing", "an empty etc"])
def test_in_a_root_without_the_files_they_are_there_for_the_child(prepared, directory, has):
    if has != "nothing":
        (directory / "etc").mkdir(mode=0o755)
    network = pyspawner.NetworkConfig.managed(dns=("8.8.8.8",))
    sandbox = pyspawner.SandboxConfig(network=network, chroot_dir=directory)
    assert prepared(run_in_root, sandbox) == f"nameserver 8.8.8.8\n{LOCALHOST}"


def test_in_a_root_where_they_are_links_that_lead_nowhere_it_is_refused(prepared, directory):
    (directory / "etc").mkdir(mode=0o755)
    (directory / "etc" / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    sandbox = pyspawner.SandboxConfig(network=managed().network, chroot_dir=directory)
    with pytest.raises(pyspawner.SandboxError, match="symbolic link that leads nowhere"):
        prepared(run_in_root, sandbox)
    (directory / "etc" / "resolv.conf").unlink()
    assert prepared(run_in_root, sandbox) == f"nameserver 1.1.1.1\n{LOCALHOST}"
