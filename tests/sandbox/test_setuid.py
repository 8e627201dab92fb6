"""The layer ``setuid``: uid and gid 1000, and no way back to an id that has rights."""

from __future__ import annotations

import errno

import pytest

import attacks
import support
from support import SANDBOX, attack, only

ALONE = only("setuid")

IDS = "import os; print(*os.getresuid(), *os.getresgid(), os.getgroups())"


@pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])
def test_every_uid_and_gid_is_1000_and_there_are_no_groups(client, sandbox):
    assert support.run(client, IDS, sandbox=sandbox).text == "1000 1000 1000 1000 1000 1000 []\n"


def test_control_without_the_layer_a_child_is_root_in_its_own_namespace(client):
    assert support.run(client, IDS, sandbox=only()).text == "0 0 0 0 0 0 []\n"


# A change of uid from 0 takes the capabilities along, so this layer alone stops what they allow.
REFUSED = [
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setuid to another"),
    *("setgid to another", "chroot", "mount", "unshare NEWNS", "sethostname", "socket AF_INET raw", "capset"),
]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_this_layer_alone(client, name):
    for place in attacks.PLACES:
        assert int(attack(client, name, sandbox=ALONE, place=place).text) == -errno.EPERM, place


@pytest.mark.parametrize("name", REFUSED)
def test_control_without_the_layer_it_succeeds(client, name):
    assert int(attack(client, name, sandbox=only()).text) >= 0


CREATE = """
import os
print(os.stat(directory).st_uid, end=" ")
descriptor = os.open("/tmp", os.O_TMPFILE | os.O_WRONLY)
print(os.fstat(descriptor).st_uid)
"""


def test_files_of_the_host_belong_to_nobody_and_own_files_to_1000(client):
    with support.visible_directory() as directory:
        assert support.run(client, CREATE, directory=str(directory)).text == "65534 1000\n"


@pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])
def test_a_child_can_read_its_own_proc_directory(client, sandbox):
    """A change of uid would give it to root, and honest programs read it."""
    assert int(attack(client, "open", "/proc/self/environ", sandbox=sandbox).text) >= 0
