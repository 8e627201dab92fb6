"""The layer ``drop_capabilities``: all five sets empty, and no way to fill one again."""

from __future__ import annotations

import errno

import from_outside
import pytest

import attacks
import support
from support import SANDBOX, attack, attack_outside, only

ALONE = only("drop_capabilities")

# What a user without capabilities may not do; without the layer a child may, within its own namespaces.
REFUSALS = {
    "mount": errno.EPERM,
    "chroot": errno.EPERM,
    "pivot_root": errno.EPERM,
    "umount2": errno.EPERM,
    "move_mount": errno.EPERM,
    "fsopen": errno.EPERM,
    "fspick": errno.EPERM,
    "mount_setattr": errno.EPERM,
    "setns": errno.EPERM,
    "unshare NEWNS": errno.EPERM,
    "unshare NEWNET": errno.EPERM,
    "clone NEWNS": errno.EPERM,
    "sethostname": errno.EPERM,
    "setdomainname": errno.EPERM,
    "reboot": errno.EPERM,
    "seccomp second filter": errno.EACCES,
    "socket AF_PACKET": errno.EPERM,
    "socket AF_INET raw": errno.EPERM,
    "socket AF_INET6 raw": errno.EPERM,
    "prctl PR_SET_KEEPCAPS": errno.EPERM,
    "prctl PR_SET_SECUREBITS": errno.EPERM,
    "setuid to another": errno.EPERM,
    "setgid to another": errno.EPERM,
    "capset": errno.EPERM,
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_by_this_layer_alone(client, name):
    for place in attacks.PLACES:
        assert int(attack(client, name, sandbox=ALONE, place=place).text) == -REFUSALS[name], place


@pytest.mark.parametrize("name", REFUSALS)
def test_control_without_the_layer_the_kernel_answers_otherwise(client, name):
    assert int(attack(client, name, sandbox=only()).text) != -REFUSALS[name]


SETS = """
import subprocess, threading
def show(who):
    with open(f"/proc/{who}/status") as status:
        print(*[line for line in status if line.startswith("Cap")], sep="", end="", flush=True)
thread = threading.Thread(target=show, args=["thread-self"])
thread.start()
thread.join()
subprocess.run(["grep", "^Cap", "/proc/self/status"])
"""


def capability_sets(outcome: support.Outcome) -> set[str]:
    """The different values of all sets, of a thread and of a new program."""
    lines = outcome.text.splitlines()
    assert len(lines) == 10, lines
    return {line.split()[1] for line in lines}


@pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])
def test_all_five_sets_are_empty_in_threads_and_programs_too(client, sandbox):
    assert capability_sets(support.run(client, SETS, sandbox=sandbox)) == {"0" * 16}


def test_control_without_the_layer_there_are_capabilities(client):
    assert len(capability_sets(support.run(client, SETS, sandbox=only()))) > 1


SECUREBITS = "import attacks; print(attacks.call('prctl', 27, 0, 0, 0, 0))"
# Root is nobody special, a change of uid brings nothing, KEEP_CAPS is off, nothing is ambient: all locked.
LOCKED = 0b11_10_11_11


@pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])
def test_the_securebits_are_locked(client, sandbox):
    assert support.run(client, SECUREBITS, sandbox=sandbox).text == f"{LOCKED}\n"


def test_control_without_the_layer_no_securebit_is_set(client):
    assert support.run(client, SECUREBITS, sandbox=only()).text == "0\n"


# Forged for another user than the sender, on a socket of the sender's own.
FORGE = """
import errno, os, socket, struct
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
credentials = struct.pack("iII", os.getpid(), 4242, os.getgid())
try:
    print(ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("sandbox", [ALONE, SANDBOX], ids=["alone", "all layers"])
def test_credentials_on_a_socket_cannot_be_forged(client, sandbox):
    assert support.run(client, FORGE, sandbox=sandbox).text == "EPERM\n"


def test_control_without_the_layer_credentials_can_be_forged(client):
    assert support.run(client, FORGE, sandbox=only()).text == "1\n"


@pytest.mark.parametrize("sandbox", [only(), SANDBOX], ids=["with all its own capabilities", "all layers"])
@pytest.mark.parametrize("name", attacks.GREED)
def test_a_child_cannot_take_more_than_its_share(client, name, sandbox):
    answer = int(attack(client, name, sandbox=sandbox).text)
    if name == "a core dump" and sandbox is SANDBOX:
        assert answer == 0, "the filter pretends; that the limit stays is shown with the layer session"
    else:
        assert answer in (-errno.EPERM, -errno.EACCES)


@pytest.mark.parametrize("name", attacks.GREED)
def test_control_root_outside_can(name):
    assert attack_outside(name) >= 0


# Landlock would forbid any writing to /proc.
ALL_BUT_LANDLOCK = only("drop_capabilities", "setuid", "no_new_privs", "seccomp")


@pytest.mark.parametrize(
    "sandbox",
    [only(), ALL_BUT_LANDLOCK],
    ids=["with all its own capabilities", "all layers but landlock"],
)
@pytest.mark.parametrize(
    ("name", "settings", "refusal"),
    [
        ("limit open files", ([128], [256]), errno.EPERM),
        ("write", (["/mnt/self/oom_score_adj", "500"], ["/mnt/self/oom_score_adj", "-1"]), errno.EACCES),
    ],
    ids=["limits", "oom_score_adj"],
)
def test_a_child_can_limit_itself_and_not_take_it_back(client, name, settings, refusal, sandbox):
    """In a ``/proc`` that can be written to, as a child's own cannot."""
    source = (
        "import attacks, sys; sys.stdin.read(); [attacks.attempt(name, *setting) for setting in settings]"
    )
    child = support.spawn(client, source, sandbox=sandbox, name=name, settings=settings)
    from_outside.show_proc(child, "/mnt")
    down, up = support.communicate(child).text.split()
    assert int(down) >= 0
    assert int(up) == -refusal
