"""The layer ``session``: no terminal, no keyring of the caller's, no core dump. Always on."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import support
from support import SANDBOX, only, run_caller

# Alone: no optional layer is on.
SANDBOXES = {"alone": only(), "all layers": SANDBOX}
each_sandbox = pytest.mark.parametrize("sandbox", SANDBOXES.values(), ids=SANDBOXES)


@each_sandbox
def test_a_child_leads_its_own_session_and_process_group(client, sandbox):
    source = "import os; print(os.getpid(), os.getsid(0), os.getpgid(0))"
    assert support.run(client, source, sandbox=sandbox).text == "1 1 1\n"


# Terminals. -----------------------------------------------------------------------------------------------

# What a login shell starts: a process whose controlling terminal is its standard input.
TAKE_TERMINAL = """
    import fcntl, termios
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
"""
OPEN_TERMINAL = "attack_outside('open', '/dev/tty')"
OPEN_TERMINAL_IN_CHILD = "attack(client, 'open', '/dev/tty', sandbox={sandbox}).text"
# Where a child has the host's devices, which it has not by itself.
OPEN_HOSTS_TERMINAL_IN_CHILD = """
import from_outside
source = "import attacks, sys; sys.stdin.read(); attacks.attempt('open', '/mnt/tty')"
child = spawn(client, source, sandbox={sandbox})
from_outside.show(child, "/dev", "/mnt")
print(communicate(child).text)
"""


def with_terminal(source: str) -> int:
    """Run ``source`` in a caller that has a controlling terminal."""
    ours, theirs = pty.openpty()
    try:
        return int(run_caller(f"import os\n{textwrap.dedent(TAKE_TERMINAL)}\n{source}", stdin=theirs))
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("sandbox", ["only()", "SANDBOX"])
def test_a_child_cannot_reach_the_callers_terminal(sandbox):
    there_is_none = with_terminal(f"print({OPEN_TERMINAL_IN_CHILD.format(sandbox=sandbox)})")
    it_is_not_its_own = with_terminal(OPEN_HOSTS_TERMINAL_IN_CHILD.format(sandbox=sandbox))
    assert (there_is_none, it_is_not_its_own) == (-errno.ENOENT, -errno.ENXIO)


def test_control_a_process_without_a_sandbox_reaches_it():
    assert with_terminal(f"print({OPEN_TERMINAL})") >= 0


# Keyrings. ------------------------------------------------------------------------------------------------

# In the caller's session keyring, before it starts its zygote.
SEARCH = "import attacks; print(attacks.call('keyctl', 10, -3, b'user', b'pyspawner-test', 0))"
KEYED_CALLER = f"""
import sys; sys.path[:] = {sys.path!r}
import attacks
attacks.call("keyctl", 1, 0, 0, 0, 0)
attacks.call("add_key", b"user", b"pyspawner-test", b"secret", 6, -3)
{SEARCH}
import warnings; warnings.simplefilter("ignore")
import pyspawner, support
with pyspawner.Client(child_main="support.run_source") as client:
    print(support.run(client, {SEARCH!r}, sandbox=support.only()).text)
"""


def test_a_child_does_not_find_a_key_of_the_caller():
    done = subprocess.run([sys.executable, "-c", KEYED_CALLER], check=True, capture_output=True)
    in_caller, in_child = map(int, done.stdout.split())
    assert in_caller > 0, "the control: the caller itself finds it"
    assert in_child == -errno.ENOKEY


def test_children_do_not_share_a_keyring(client):
    add = "import attacks, sys; key = attacks.call('add_key', b'user', b'pyspawner-test', b'x', 1, -3)"
    wait = "print(key > 0, flush=True); sys.stdin.read()"
    owner = support.spawn(client, f"{add}; {wait}; {SEARCH}", sandbox=only())
    assert owner.stdout.readline() == b"True\n"
    found = support.run(client, SEARCH, sandbox=only()).text
    assert int(support.communicate(owner).text) > 0
    assert int(found) == -errno.ENOKEY


# Core dumps. ----------------------------------------------------------------------------------------------

CRASH = "import ctypes; ctypes.string_at(0)"


TRY_TO_RAISE = """
import attacks, resource
print(attacks.GREED["a core dump"]() == 0, end=" ")
print(0 <= max(resource.getrlimit(resource.RLIMIT_CORE)) < resource.getpagesize())
"""


@each_sandbox
def test_the_limit_is_too_small_for_any_core_file_and_cannot_be_raised(client, sandbox):
    assert support.run(client, TRY_TO_RAISE, sandbox=sandbox).text.split()[1] == "True"


def test_control_outside_it_can_be_raised():
    program = f"import sys; sys.path[:] = {sys.path!r}\n{TRY_TO_RAISE}"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == b"True False\n"


@pytest.fixture
def crash_handler(tmp_path):
    """Be the host's core_pattern, as apport and systemd-coredump are, and tell whose core was handed over."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    handler, handled = tmp_path / "handler", tmp_path / "handled"
    handled.touch()
    handler.write_text(f"#!/bin/sh\necho $1 >> {handled}\n")
    handler.chmod(0o755)
    earlier = pattern.read_text()
    pattern.write_text(f"|{handler} %P\n")
    yield lambda: [int(pid) for pid in handled.read_text().split()]
    pattern.write_text(earlier)


PREPARATIONS = {
    "as it is": "",
    "with a limit of its own": "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
}


@pytest.mark.parametrize("preparation", PREPARATIONS.values(), ids=PREPARATIONS)
def test_a_crash_does_not_start_the_hosts_crash_handler(client, crash_handler, preparation):
    """It would run as root, on memory of the child's choice, and a limit of 0 does not stop it; core(5)."""
    source = (
        f"import contextlib\nwith contextlib.suppress(OSError, ValueError): {preparation or 'pass'}\n{CRASH}"
    )
    child = support.spawn(client, source)
    outcome = support.communicate(child)
    assert outcome.exitcode < 0
    assert not os.WCOREDUMP(outcome.status)
    assert child.pid not in crash_handler()


def test_control_outside_a_crash_starts_it(crash_handler):
    with subprocess.Popen([sys.executable, "-c", CRASH]) as process:
        process.wait()
    assert process.pid in crash_handler()


TAKE = """
import ctypes, errno, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
def take(what, most):
    for count in range(most):
        if what() < 0:
            return count, errno.errorcode[ctypes.get_errno()]
    return most, ""
timer = ctypes.c_void_p()
print(*take(lambda: libc.timer_create(1, 0, ctypes.byref(timer)), 1000))
print(*take(lambda: libc.inotify_init1(0), 1))
"""


def test_a_child_takes_few_of_what_is_charged_to_the_callers_user(client):
    """Queued signals, timers and inotify instances: an own range of uids does not help, for the namespace's owner pays."""
    assert support.run(client, TAKE).text == "256 EAGAIN\n0 EMFILE\n"


def test_control_without_the_sandbox_there_are_more():
    done = subprocess.run([sys.executable, "-c", TAKE], capture_output=True, check=True, text=True)
    assert done.stdout == "1000 \n1 \n"
