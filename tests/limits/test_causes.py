"""Why a child ended: it cannot pretend, and a blocked system call says where it was made."""

from __future__ import annotations

import signal

import pytest

import attacks
import pyspawner
from pyspawner import Cause, Limits, SandboxConfig
from support import only, spawn

LIBC = "import ctypes, os, signal; libc = ctypes.CDLL(None, use_errno=True)\n"
NUMBERS = {
    name: attacks.NUMBERS[name] for name in ("rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")
}

# A siginfo_t as the kernel fills it for a blocked call: SIGSYS, no errno, SYS_SECCOMP; the number of the call after an address.
INFO = "info = (ctypes.c_int * 32)(31, 0, 1); info[6] = 101\n"

FORGERIES = {
    "the exit code of a shell that saw SIGKILL": "raise SystemExit(137)",
    "the exit code of a shell that saw SIGSYS": "import os; os._exit(159)",
    "SIGKILL to itself": "import os; os.kill(os.getpid(), 9)",
    "SIGKILL to everybody": """
        import os
        try: os.kill(-1, 9)
        except ProcessLookupError: pass
    """,
    "SIGXCPU to itself": "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)",
    "SIGSYS to itself": "import os, signal; os.kill(os.getpid(), signal.SIGSYS)",
    "SIGSYS to its own thread": "import signal, threading; signal.pthread_kill(threading.get_ident(), signal.SIGSYS)",
    "SIGSYS that looks like the filter's": LIBC
    + INFO
    + "libc.syscall(rt_sigqueueinfo, os.getpid(), 31, info)",
    "the same to a thread": LIBC
    + INFO
    + "libc.syscall(rt_tgsigqueueinfo, os.getpid(), os.getpid(), 31, info)",
    "the same by pidfd": LIBC
    + INFO
    + "libc.syscall(pidfd_send_signal, os.pidfd_open(os.getpid()), 31, info, 0)",
    "SIGSYS of a timer": LIBC
    + "event = (ctypes.c_int * 16)(0, 0, 31, 0); timer = ctypes.c_void_p()\n"
    + "assert libc.timer_create(1, event, ctypes.byref(timer)) == 0\n"
    + "assert libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 0, 0, 1), None) == 0\n"
    + "import time; time.sleep(0.01)",
    "SIGSYS of a pipe": LIBC
    + "import fcntl, socket; a, b = socket.socketpair()\n"
    + "fcntl.fcntl(a, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(a, 10, 31)\n"  # F_SETSIG
    + "fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK); b.send(b'x')",
    "SIGSYS at the death of its parent": LIBC
    + "if os.fork() == 0:\n    libc.prctl(1, 31, 0, 0, 0); os._exit(0)\nos.wait()",
    "our message": "import os; os.write(2, b'pyspawner: blocked system call ptrace\\n'); os._exit(159)",
    "a descendant that makes a blocked call": LIBC
    + "if os.fork() == 0: libc.ptrace(0, 0, 0, 0)\nos.wait(); os._exit(9)",
    "a descendant that uses its CPU time": (
        """
            import os
            if os.fork() == 0:
                while True: pass
            os.wait(); os._exit(137)
        """
    ),
    "the name of one that an exception has ended": LIBC + "libc.prctl(15, b'pyspawner:raise', 0, 0, 0)",
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_child_that_ends_by_itself_has_just_ended(client, what):
    config = SandboxConfig(limits=Limits(cpu_seconds=1))
    completed = client.spawn_child([FORGERIES[what], NUMBERS], sandbox_config=config).communicate(timeout=120)
    assert completed.cause is Cause.EXITED, completed


BLOCKED = {
    "in a function": (
        """
            import ctypes
            def attack():
                ctypes.CDLL(None).ptrace(0, 0, 0, 0)
            attack()
        """,
        ["ptrace", 'File "<child>", line 4 in attack', 'File "<child>", line 5 in <module>'],
    ),
    "in a thread": (
        "import ctypes, threading\nthread = threading.Thread(target=lambda: ctypes.CDLL(None).unshare(0)); thread.start(); thread.join()",
        ["unshare", 'File "<child>", line 2 in <lambda>'],
    ),
    "with the signal ignored": (
        "import ctypes, signal; signal.signal(signal.SIGSYS, signal.SIG_IGN)\nctypes.CDLL(None).chroot(b'/')",
        ["chroot", 'File "<child>", line 2 in <module>'],
    ),
    "with faulthandler told to be silent": (
        "import ctypes, faulthandler, signal; faulthandler.unregister(signal.SIGSYS)\nctypes.CDLL(None).chroot(b'/')",
        ["chroot"],
    ),
    "with the signal blocked": (
        "import ctypes, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSYS])\nctypes.CDLL(None).chroot(b'/')",
        [],
    ),
}


@pytest.mark.parametrize("how", BLOCKED)
def test_a_blocked_call_says_what_and_where_it_was_and_ends_the_child_by_sigsys(client, how):
    source, lines = BLOCKED[how]
    completed = spawn(client, source).communicate(timeout=60)
    assert (completed.returncode, completed.cause) == (-signal.SIGSYS, Cause.BLOCKED_SYSCALL)
    said = completed.stderr.decode().splitlines()
    assert completed.blocked_syscall == (lines[0] if lines else None)
    if lines:
        assert said[0] == f"pyspawner: blocked system call {lines[0]}"
    for line in lines[1:]:
        assert f"  {line}" in said


def test_a_program_that_it_becomes_and_that_makes_a_blocked_call_is_blocked_too(client):
    source = "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)'])"
    completed = spawn(client, source).communicate(timeout=60)
    assert (completed.returncode, completed.cause) == (-signal.SIGSYS, Cause.BLOCKED_SYSCALL)
    assert completed.blocked_syscall is None


def test_the_name_of_a_blocked_call_comes_without_standard_error_and_without_proc(client):
    source = "import ctypes, os; os.close(2); ctypes.CDLL(None).ptrace(0, 0, 0, 0)"
    completed = spawn(client, source, sandbox=SandboxConfig(proc=False)).communicate(timeout=60)
    assert (completed.cause, completed.blocked_syscall, completed.stderr) == (
        Cause.BLOCKED_SYSCALL,
        "ptrace",
        b"",
    )
    with pytest.raises(pyspawner.ChildFailed, match=r"\(blocked_syscall: ptrace\), and wrote nothing"):
        completed.check()


@pytest.mark.parametrize("number", [0, 99999])
def test_what_is_no_blocked_call_is_not_named(client, number):
    source = f"""
        import resource, signal
        resource.setrlimit(10, ({number}, -1)) # RLIMIT_LOCKS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSYS])
        import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    """
    completed = spawn(client, source).communicate(timeout=60)
    assert (completed.cause, completed.blocked_syscall) == (Cause.BLOCKED_SYSCALL, None)


def test_no_other_end_has_a_blocked_call(client):
    source = "import os, resource; resource.setrlimit(10, (101, -1)); os._exit(0)"
    completed = spawn(client, source).communicate(timeout=60)
    assert (completed.cause, completed.blocked_syscall) == (Cause.EXITED, None)


def test_control_without_the_filter_the_call_goes_through(client):
    source = "import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))"
    completed = spawn(client, source, sandbox=only()).communicate(timeout=60)
    assert (completed.stdout, completed.cause) == (b"0\n", Cause.EXITED)


def test_without_namespaces_sigsys_says_nothing_for_certain(client):
    """Such a child can become a program without our handler, and send itself the signal."""
    config = SandboxConfig.without_namespaces()
    pretends = "import os; os.execv('/bin/sh', ['sh', '-c', 'kill -31 $$'])"
    completed = spawn(client, pretends, sandbox=config).communicate(timeout=60)
    assert (completed.returncode, completed.cause) == (-signal.SIGSYS, Cause.SIGNALED)
    honest = spawn(client, "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)", sandbox=config).communicate(
        timeout=60
    )
    assert (honest.returncode, honest.cause) == (-signal.SIGSYS, Cause.SIGNALED)
    assert b"blocked system call ptrace" in honest.stderr


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("1 / 0", Cause.EXCEPTION),
        ("raise KeyboardInterrupt", Cause.EXCEPTION),
        ("raise SystemExit(1)", Cause.EXITED),
        ("raise SystemExit('no')", Cause.EXITED),
        ("import os; os._exit(1)", Cause.EXITED),
        ("import sys; sys.excepthook = None; 1 / 0", Cause.EXCEPTION),
        ("import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", Cause.EXITED),
    ],
)
def test_an_exception_that_nobody_catches_is_told_from_an_exit(client, source, cause):
    for config in (SandboxConfig(), SandboxConfig.without_namespaces()):
        child = spawn(client, source, sandbox=config, process_name="a name of its own")
        assert child.communicate(timeout=60).cause is cause


def test_poll_and_wait_find_the_cause_too(client):
    for method in ("wait", "poll"):
        with spawn(client, "1 / 0") as child:
            child.stderr.read()
            child.stdout.read()
            while child.returncode is None:
                getattr(child, method)()
            assert child.communicate().cause is Cause.EXCEPTION


def test_a_child_that_somebody_else_kills_was_merely_signalled(client):
    import os

    child = spawn(client, "import sys; sys.stdin.read()")
    os.kill(child.pid, signal.SIGKILL)
    assert child.communicate(timeout=60).cause is Cause.SIGNALED
