"""The layer ``no_new_privs``: no program gives a child more than it has.

The programs here are made for the root of the child's own user namespace, whom a child could really become.
One made for the host's root is a matter of ``id_map``. They lie on a mount that is not nosuid, as no mount
that a child sees by itself is: there ``mounts`` would stop them first.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
from pathlib import Path

import from_outside
import pytest

import support
from support import SANDBOX, attack, only

ALONE = only("setuid", "no_new_privs")
WITHOUT = only("setuid")

# By way of another program: the bit must outlive an execve. The program is made once the ids are known.
EXECUTE = "import os, sys; sys.stdin.read(); os.execv('/usr/bin/env', ['env', *argv])"

CAP_SYS_ADMIN = 1 << 21

# A directory that every child has.
PLACE = "/mnt"


def run_privileged(client, program, give_privilege, *arguments, sandbox):
    """Have a child execute a copy of ``program`` that ``give_privilege(path, first host id)`` has been at."""
    with support.visible_directory() as directory:
        copy = Path(shutil.copy(f"/usr/bin/{program}", directory))
        argv = [f"{PLACE}/{program}", *arguments]
        child = support.spawn(client, EXECUTE, sandbox=sandbox, argv=argv)
        first_id = int(re.findall(r"\d+", child.layers["id_map"])[-1])
        give_privilege(copy, first_id)
        from_outside.show(child, directory, PLACE)
        return support.communicate(child)


def give_setuid_bit(program: Path, first_id: int) -> None:
    os.chown(program, first_id, first_id)
    program.chmod(0o6755)


def give_capability(program: Path, first_id: int) -> None:
    """As capabilities(7) has it: version 3, effective, CAP_SYS_ADMIN, in the namespace with this root."""
    capability = struct.pack("<6I", 0x0300_0001, CAP_SYS_ADMIN, 0, 0, 0, first_id)
    os.setxattr(program, "security.capability", capability)


@pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])
def test_a_setuid_program_does_not_make_root(client, sandbox):
    assert run_privileged(client, "id", give_setuid_bit, "-u", sandbox=sandbox).text == "1000\n"


@pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])
def test_a_setgid_program_does_not_change_the_group(client, sandbox):
    assert run_privileged(client, "id", give_setuid_bit, "-g", sandbox=sandbox).text == "1000\n"


@pytest.mark.parametrize("option", ["-u", "-g"])
def test_control_without_the_layer_it_does(client, option):
    assert run_privileged(client, "id", give_setuid_bit, option, sandbox=WITHOUT).text == "0\n"


SHOW_CAPABILITIES = ["^CapEff:", "/proc/self/status"]


def test_file_capabilities_give_nothing(client):
    shown = run_privileged(client, "grep", give_capability, *SHOW_CAPABILITIES, sandbox=ALONE).text
    assert shown == f"CapEff:\t{0:016x}\n"


def test_file_capabilities_under_all_layers_make_a_program_unusable(client):
    """The bounding set is empty: execve(2) refuses what it cannot give."""
    outcome = run_privileged(client, "grep", give_capability, *SHOW_CAPABILITIES, sandbox=SANDBOX)
    assert (outcome.exitcode, outcome.stdout) == (126, b"")
    assert os.strerror(errno.EPERM).encode() in outcome.stderr


def test_control_without_the_layer_file_capabilities_count(client):
    shown = run_privileged(client, "grep", give_capability, *SHOW_CAPABILITIES, sandbox=WITHOUT).text
    assert shown == f"CapEff:\t{CAP_SYS_ADMIN:016x}\n"


@pytest.mark.parametrize(("sandbox", "bit"), [(ALONE, 1), (SANDBOX, 1), (WITHOUT, 0)])
def test_the_bit_is_set_and_stays(client, sandbox, bit):
    source = (
        "import attacks; attacks.call('prctl', 38, 0, 0, 0, 0); print(attacks.call('prctl', 39, 0, 0, 0, 0))"
    )
    assert support.run(client, source, sandbox=sandbox).text == f"{bit}\n"


def test_a_child_without_capabilities_needs_the_bit_for_a_filter_of_its_own(client):
    """The kernel's own rule, by which the bit can be seen to be what it is."""
    assert (
        int(attack(client, "seccomp second filter", sandbox=only("no_new_privs", "drop_capabilities")).text)
        == 0
    )
    assert (
        int(attack(client, "seccomp second filter", sandbox=only("drop_capabilities")).text) == -errno.EACCES
    )
