"""The layer ``seccomp``: an allow-list of system calls. Attacks meet it alone, all layers, and no filter."""

from __future__ import annotations

import errno
import os
import signal

import pytest

import attacks
import support
from support import SANDBOX, attack, only

# The process ends, and its standard error names the call.
KILLED = "killed, with last words"
# The process ends at once: by the wrong door nothing is said.
KILLED_SILENTLY = "killed"

NOT_PERMITTED = -errno.EPERM
UNKNOWN = -errno.ENOSYS
NO_FAMILY = -errno.EAFNOSUPPORT

REFUSALS: dict[str, str | int] = {
    # Identity.
    "setuid": KILLED,
    "setgid": KILLED,
    "setreuid": KILLED,
    "setregid": KILLED,
    "setresuid": KILLED,
    "setresgid": KILLED,
    "setfsuid": KILLED,
    "setfsgid": KILLED,
    "setgroups": KILLED,
    "prctl PR_SET_KEEPCAPS": NOT_PERMITTED,
    "prctl PR_SET_SECUREBITS": NOT_PERMITTED,
    "prctl PR_CAP_AMBIENT": NOT_PERMITTED,
    # Mounts and filesystems.
    "mount": KILLED,
    "umount2": KILLED,
    "chroot": KILLED,
    "pivot_root": KILLED,
    "open_tree": KILLED,
    "move_mount": KILLED,
    "fsopen": KILLED,
    "fsconfig": KILLED,
    "fsmount": KILLED,
    "fspick": KILLED,
    "mount_setattr": KILLED,
    "open_by_handle_at": KILLED,
    "quotactl": KILLED,
    "quotactl_fd": KILLED,
    "swapon": KILLED,
    "swapoff": KILLED,
    "acct": KILLED,
    "name_to_handle_at": NOT_PERMITTED,
    "fanotify_init": NOT_PERMITTED,
    "fanotify_mark": NOT_PERMITTED,
    "mknodat character device": NOT_PERMITTED,
    "mknodat block device": NOT_PERMITTED,
    "listmount": UNKNOWN,
    # Namespaces.
    "setns": KILLED,
    "unshare NEWUSER": KILLED,
    "unshare NEWNS": KILLED,
    "unshare NEWNET": KILLED,
    "unshare nothing": KILLED,
    "sethostname": KILLED,
    "setdomainname": KILLED,
    "clone NEWUSER": NOT_PERMITTED,
    "clone NEWNS": NOT_PERMITTED,
    "clone NEWUSER in high company": NOT_PERMITTED,
    "clone3": UNKNOWN,
    "clone3 NEWUSER": UNKNOWN,
    # Other processes.
    "ptrace": KILLED,
    "process_vm_readv": NOT_PERMITTED,
    "process_vm_writev": NOT_PERMITTED,
    "kcmp": NOT_PERMITTED,
    "pidfd_getfd": NOT_PERMITTED,
    "process_madvise": UNKNOWN,
    "prctl PR_SET_PTRACER": NOT_PERMITTED,
    # Large parts of the kernel that honest programs can do without.
    "bpf": KILLED,
    "keyctl": KILLED,
    "add_key": KILLED,
    "request_key": KILLED,
    "io_uring_setup": NOT_PERMITTED,
    "io_uring_enter": NOT_PERMITTED,
    "io_uring_register": NOT_PERMITTED,
    "perf_event_open": NOT_PERMITTED,
    "userfaultfd": NOT_PERMITTED,
    "mq_open": UNKNOWN,
    "vmsplice": UNKNOWN,
    # The machine.
    "kexec_load": KILLED,
    "init_module": KILLED,
    "finit_module": KILLED,
    "delete_module": KILLED,
    "reboot": KILLED,
    "settimeofday": KILLED,
    "clock_settime": KILLED,
    "syslog": KILLED,
    "vhangup": KILLED,
    "adjtimex": NOT_PERMITTED,
    "clock_adjtime": NOT_PERMITTED,
    "mbind": NOT_PERMITTED,
    "set_mempolicy": NOT_PERMITTED,
    "get_mempolicy": NOT_PERMITTED,
    "migrate_pages": NOT_PERMITTED,
    "move_pages": NOT_PERMITTED,
    # The own process, made easier to attack.
    "prctl PR_SET_TSC": NOT_PERMITTED,
    "prctl PR_SET_MM": NOT_PERMITTED,
    "prctl PR_SET_SYSCALL_USER_DISPATCH": NOT_PERMITTED,
    "personality ADDR_NO_RANDOMIZE": NOT_PERMITTED,
    "personality READ_IMPLIES_EXEC": NOT_PERMITTED,
    # A filter of the child's own, to allow what this one does not.
    "seccomp second filter": NOT_PERMITTED,
    "prctl second filter": NOT_PERMITTED,
    "prctl second filter, in high company": NOT_PERMITTED,
    # Terminals.
    "ioctl TIOCSTI": NOT_PERMITTED,
    "ioctl TIOCSTI in high company": NOT_PERMITTED,
    "ioctl TIOCSTI on a negated number": NOT_PERMITTED,
    "ioctl TIOCLINUX": NOT_PERMITTED,
    "ioctl TIOCSETD": NOT_PERMITTED,
    # Sockets.
    "socket AF_PACKET": NO_FAMILY,
    "socket AF_PACKET in high company": NO_FAMILY,
    "socket AF_UNIX only in its high half": NO_FAMILY,
    "socket AF_VSOCK": NO_FAMILY,
    "socket AF_NETLINK": NO_FAMILY,
    "socket AF_ALG": NO_FAMILY,
    "socket AF_INET raw": NOT_PERMITTED,
    "socket AF_INET raw in high company": NOT_PERMITTED,
    "socket AF_INET6 raw": NOT_PERMITTED,
    "socket AF_INET packet": NOT_PERMITTED,
    "socket AF_INET sequenced packets": NOT_PERMITTED,
    "socket AF_INET protocol": NOT_PERMITTED,
    "socketpair AF_INET": NO_FAMILY,
    # The number itself.
    "unshare by a number with a high half": KILLED,
}
if attacks.MACHINE == "x86_64":
    REFUSALS |= {
        "iopl": KILLED,
        "ioperm": KILLED,
        "modify_ldt": NOT_PERMITTED,
        "int 0x80 getpid": KILLED_SILENTLY,
        "int 0x80 setuid": KILLED_SILENTLY,
        "int 0x80 unshare": KILLED_SILENTLY,
        "x32 getpid": KILLED_SILENTLY,
        "x32 setuid": KILLED_SILENTLY,
        "x32 ptrace": KILLED_SILENTLY,
    }
# Here the kernel itself answers as the filter does, so that there is nothing to tell them apart.
WITHOUT_CONTROL = {"unknown system call": UNKNOWN, "unknown system call, the highest": UNKNOWN}

SANDBOXES = {"alone": only("seccomp"), "all layers": SANDBOX}


def last_words(name: str) -> bytes:
    return f"pyspawner: blocked system call {name.split(maxsplit=1)[0]}".encode()


def test_every_attack_on_the_table_is_made():
    assert attacks.SYSTEM_CALLS.keys() == REFUSALS.keys() | WITHOUT_CONTROL.keys()


@pytest.mark.parametrize("sandbox", SANDBOXES.values(), ids=SANDBOXES)
@pytest.mark.parametrize("name", REFUSALS | WITHOUT_CONTROL)
def test_refused(client, name, sandbox):
    refusal = (REFUSALS | WITHOUT_CONTROL)[name]
    for place in attacks.PLACES:
        outcome = attack(client, name, sandbox=sandbox, place=place)
        if isinstance(refusal, int):
            assert int(outcome.text) == refusal, place
            continue
        # A new program has lost the handler that speaks, and not the filter that kills.
        spoken = refusal == KILLED and place != "after exec"
        said, _, where = outcome.stderr.partition(b"\n")
        assert (outcome.stdout, said, outcome.status) == (
            b"",
            last_words(name) if spoken else b"",
            signal.SIGSYS,
        ), place
        assert where.startswith(b"Stack (most recent call first):\n  File ") == spoken, (place, where)


@pytest.mark.parametrize("name", REFUSALS)
def test_control_without_the_filter_the_kernel_answers_otherwise(client, name):
    answer = int(attack(client, name, sandbox=only()).text)
    assert answer != REFUSALS[name]


# What must simply work in a child with all capabilities and no filter: the attacks are well made.
WORKS = [
    *("setuid", "setgid", "setresuid", "setresgid", "sethostname", "ptrace", "kcmp", "process_vm_readv"),
    *("mount", "chroot", "open_tree", "fsopen", "fspick", "setns", "fanotify_init", "name_to_handle_at"),
    *("unshare NEWUSER", "unshare NEWNS", "clone NEWUSER", "clone NEWNS", "clone3", "clone3 NEWUSER"),
    *("keyctl", "add_key", "io_uring_setup", "personality ADDR_NO_RANDOMIZE"),
    *("seccomp second filter", "prctl second filter"),
    *("socket AF_PACKET", "socket AF_PACKET in high company", "socket AF_NETLINK"),
    *("socket AF_INET raw", "socket AF_INET6 raw"),
]


@pytest.mark.parametrize("name", WORKS)
def test_control_without_the_filter_the_attack_succeeds(client, name):
    answer = int(attack(client, name, sandbox=only()).text)
    assert answer >= 0, os.strerror(-answer)


FAMILIES = """
import attacks
print([family for family in range(64) if attacks.call("socket", family, 15, 0) != -97])
"""


def test_of_all_socket_families_only_unix_and_internet_are_left(client):
    assert support.run(client, FAMILIES, sandbox=only("seccomp")).text == "[1, 2, 10]\n"


def test_control_without_the_filter_the_kernel_has_more_socket_families(client):
    found = support.run(client, FAMILIES, sandbox=only()).text
    assert {1, 2, 10, 16, 17} < set(map(int, found.strip("[]\n").split(","))), found


def test_what_is_allowed_is_allowed_in_high_company(client):
    source = """
    from attacks import *
    print(call("socket", AF_INET | HIGH, SOCK_STREAM | HIGH, HIGH) >= 0)
    """
    assert support.run(client, source).text == "True\n"


def test_the_filter_is_in_every_thread_and_every_process(client):
    source = """
    import subprocess, threading
    def show(who):
        with open(f"/proc/{who}/status") as status:
            print(*[line for line in status if line.startswith("Seccomp:")], end="", flush=True)
    thread = threading.Thread(target=show, args=["thread-self"])
    thread.start()
    thread.join()
    subprocess.run(["grep", "^Seccomp:", "/proc/self/status"])
    """
    assert support.run(client, source).text == "Seccomp:\t2\n" * 2
    assert support.run(client, source, sandbox=only("setuid")).text == "Seccomp:\t0\n" * 2


def test_a_program_that_is_no_file_has_the_filter_too(client):
    source = """
    import os
    program = os.memfd_create("program")
    with open("/usr/bin/grep", "rb") as original:
        os.sendfile(program, original.fileno(), 0, 2**30)
    os.execve(program, ["grep", "-E", "^(Seccomp|NoNewPrivs):", "/proc/self/status"], {})
    """
    assert support.run(client, source).text == "NoNewPrivs:\t1\nSeccomp:\t2\n"


def test_a_blocked_call_ends_only_the_process_that_made_it(client):
    source = """
    import os, attacks
    pid = os.fork()
    if pid == 0:
        attacks.attempt("mount")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    outcome = support.run(client, source)
    assert (outcome.exitcode, outcome.stdout) == (0, f"{-signal.SIGSYS}\n".encode())
    assert outcome.stderr.startswith(last_words("mount") + b"\n")


SURVIVE = {
    "by ignoring SIGSYS": "signal.signal(signal.SIGSYS, signal.SIG_IGN)",
    "by a handler of SIGSYS": "signal.signal(signal.SIGSYS, lambda *_: None)",
    "by blocking SIGSYS": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSYS])",
    "by closing the place for last words": "os.close(2)",
}


@pytest.mark.parametrize("preparation", SURVIVE.values(), ids=SURVIVE)
def test_a_blocked_call_is_not_survived(client, preparation):
    outcome = support.run(client, f"import os, signal, attacks; {preparation}; attacks.attempt('mount')")
    assert (outcome.exitcode, outcome.stdout) == (-signal.SIGSYS, b"")


def test_a_program_cannot_inherit_sigsys_ignored(client):
    """Ignored signals stay ignored after exec; this one cannot be ignored."""
    source = """
    import signal, attacks
    signal.signal(signal.SIGSYS, signal.SIG_IGN)
    attacks.attempt("mount", place="after exec")
    """
    outcome = support.run(client, source)
    assert (outcome.exitcode, outcome.stdout) == (-signal.SIGSYS, b"")


def test_a_handler_of_sigsys_that_is_overwritten_makes_no_call(client):
    """It is code in the child's own memory. Without it the call is still not made: the process goes wrong."""
    source = """
    import ctypes, os, attacks
    from pathlib import Path
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "_native" in line and " r-xp " in line:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            ctypes.CDLL(None).munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start))
    attacks.attempt("mount")
    """
    outcome = support.run(client, source)
    assert outcome.exitcode < 0
    assert outcome.stdout == b""


MINCORE = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
reserved = libc.mmap(0, 2**33, 0, 0x4022, -1, 0)  # PROT_NONE, private, anonymous, not reserved
for length in (4096, 2**32):
    print(libc.mincore(reserved, length, 0), errno.errorcode[ctypes.get_errno()])
"""


def test_mincore_of_more_than_four_gigabytes_is_not_made(client):
    """It walks terabytes without looking at signals, SIGKILL included. Both lengths fail, each for its own reason."""
    assert support.run(client, MINCORE, sandbox=only("seccomp")).text == "-1 EFAULT\n-1 ENOMEM\n"


def test_control_without_the_filter_it_is_made(client):
    assert support.run(client, MINCORE, sandbox=only()).text == "-1 EFAULT\n-1 EFAULT\n"
