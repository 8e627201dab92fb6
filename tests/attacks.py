"""Attacks, as children make them: raw system calls, by number, so that no library softens an answer.

Who imports this: children in every sandbox, programs that children execute, and controls without a sandbox.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

# No module that is slow to import: every program that attacks after exec pays for it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MACHINE = os.uname().machine
_X86 = MACHINE == "x86_64"

# fmt: off
# On x86_64 and on aarch64; None where there is no such call.
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "capset": (126, 91),
    "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112), "clone": (56, 220),
    "clone3": (435, 435), "connect": (42, 203), "delete_module": (176, 106), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "file_setattr": (469, 469), "finit_module": (313, 273),
    "fsconfig": (431, 431), "fsmount": (432, 432),
    "fsopen": (430, 430), "fspick": (433, 433), "get_mempolicy": (239, 236), "init_module": (175, 105),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425),
    "ioctl": (16, 29), "ioperm": (173, None), "iopl": (172, None), "ioprio_set": (251, 30),
    "kcmp": (312, 272), "kexec_load": (246, 104), "keyctl": (250, 219), "kill": (62, 129),
    "listmount": (458, 458), "mbind": (237, 235), "migrate_pages": (256, 238), "mknodat": (259, 33),
    "modify_ldt": (154, None), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "move_pages": (279, 239), "mq_open": (240, 180), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "open_tree_attr": (467, 467), "perf_event_open": (298, 241),
    "personality": (135, 92), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pivot_root": (155, 41), "prctl": (157, 167), "prlimit64": (302, 261),
    "process_madvise": (440, 440), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "quotactl": (179, 60), "quotactl_fd": (443, 443), "reboot": (169, 142),
    "request_key": (249, 218), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "sched_setscheduler": (144, 119), "seccomp": (317, 277),
    "set_mempolicy": (238, 237), "setdomainname": (171, 162), "setfsgid": (123, 152), "setfsuid": (122, 151),
    "setgid": (106, 144), "setgroups": (116, 159), "sethostname": (170, 161), "setns": (308, 268),
    "setpriority": (141, 140), "setregid": (114, 143), "setresgid": (119, 149), "setresuid": (117, 147),
    "setreuid": (113, 145), "settimeofday": (164, 170), "setuid": (105, 146), "shmget": (29, 194),
    "socket": (41, 198), "socketpair": (53, 199), "swapoff": (168, 225), "swapon": (167, 224),
    "syslog": (103, 116), "timerfd_create": (283, 85), "umount2": (166, 39), "unshare": (272, 97),
    "userfaultfd": (323, 282), "vhangup": (153, 58), "vmsplice": (278, 75),
}
# fmt: on
NUMBERS = {name: number for name, pair in _NUMBERS.items() if (number := pair[0 if _X86 else 1]) is not None}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

SIGKILL, SIGCHLD, SIGWINCH = 9, 17, 28
# socket(2)
AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK = 2, 10, 16, 17, 38, 40
SOCK_STREAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_PACKET, NO_SUCH_TYPE = 1, 3, 5, 10, 15
ICMP, ICMPV6, MPTCP = 1, 58, 262
# linux/sched.h
NEWNS, NEWUSER, NEWNET = 0x2_0000, 0x1000_0000, 0x4000_0000
AT_FDCWD = -100
# A high half that no kernel may read where it wants an int, and no filter may be misled by.
HIGH = 1 << 32


def call(name: str | int, *arguments: object) -> int:
    """Make a system call. The result, or the errno as a negative number."""
    number = NUMBERS[name] if isinstance(name, str) else name
    # Without an explicit width ctypes would cut an int to 32 bits.
    wide = [ctypes.c_ulong(a & 2**64 - 1) if isinstance(a, int) else a for a in arguments]
    result = _libc.syscall(ctypes.c_ulong(number & 2**64 - 1), *wide)
    return -ctypes.get_errno() if result == -1 else result


def _zeros(size: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(size)


def _words(*values: int) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * len(values))(*values)


def _clone(flags: int) -> int:
    pid = call("clone", flags | SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
    return pid


def _clone3(flags: int) -> int:
    pid = call("clone3", _words(flags, 0, 0, 0, SIGCHLD, 0, 0, 0), 64)
    if pid == 0:
        os._exit(0)
    if pid > 0:
        os.waitpid(pid, 0)
    return pid


def _setns(pid: int | str, namespace: str) -> int:
    descriptor = os.open(f"/proc/{pid}/ns/{namespace}", os.O_RDONLY)
    try:
        return call("setns", descriptor, 0)
    finally:
        os.close(descriptor)


def _ptrace_own_child() -> int:
    pid = os.fork()
    if pid == 0:
        os.read(os.pipe()[0], 1)
    answer = call("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE
    os.kill(pid, SIGKILL)
    os.waitpid(pid, 0)
    return answer


def read_memory(pid: int, address: int, size: int) -> bytes | int:
    """The memory of another process, or the errno as a negative number."""
    buffer = _zeros(size)
    ours, theirs = _words(ctypes.addressof(buffer), size), _words(address, size)
    length = call("process_vm_readv", pid, ours, 1, theirs, 1, 0)
    return length if length < 0 else buffer.raw[:length]


def _read_own_memory() -> int:
    read = read_memory(os.getpid(), ctypes.addressof(secret := _zeros(8)), len(secret))
    return read if isinstance(read, int) else len(read)


def _perf_event_open() -> int:
    attributes = _zeros(112)
    # PERF_TYPE_SOFTWARE, of that size, and exclude_kernel and exclude_hv: what anybody may count.
    attributes[0:8] = b"\x01\0\0\0\x70\0\0\0"
    attributes[40:41] = b"\x60"
    return call("perf_event_open", attributes, 0, -1, -1, 0)


def _device_node(mode: int) -> int:
    """Make the device 0:0, the whiteout: the only one that needs no capability of the host's."""
    path = f"/tmp/pyspawner-node-{os.getpid()}-{os.urandom(8).hex()}"
    answer = call("mknodat", AT_FDCWD, path.encode(), mode, 0)
    if answer == 0:
        os.unlink(path)
    return answer


class _FilterProgram(ctypes.Structure):
    """One instruction of classic BPF: allow."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    def __init__(self) -> None:
        self.code = ctypes.create_string_buffer(b"\x06\0\0\0\0\0\xff\x7f", 8)
        super().__init__(1, ctypes.addressof(self.code))


def _machine_code(code: bytes) -> int:
    """Call ``code`` as a C function without arguments."""
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(code)
        start = ctypes.c_char.from_buffer(page)
        answer = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(start))()
        del start
    return answer


def _int80(number: int, first: int = 0) -> int:
    """A call by the 32-bit door: push rbx; mov eax, number; mov ebx, first; int 0x80; pop rbx; ret."""
    return _machine_code(
        b"\x53\xb8"
        + number.to_bytes(4, "little")
        + b"\xbb"
        + first.to_bytes(4, "little")
        + b"\xcd\x80\x5b\xc3"
    )


def _abstract_socket(name: str) -> int:
    """Connect to an abstract unix socket."""
    descriptor = call("socket", 1, SOCK_STREAM, 0)
    address = b"\x01\0\0" + name.encode()
    return call("connect", descriptor, address, len(address))


def _write(path: str, text: str) -> int:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        return os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


# What the kernel's administration is asked for. The first word names the system call.
SYSTEM_CALLS: dict[str, Callable[[], int]] = {
    "setuid": lambda: call("setuid", 0),
    "setgid": lambda: call("setgid", 0),
    "setreuid": lambda: call("setreuid", 0, 0),
    "setregid": lambda: call("setregid", 0, 0),
    "setresuid": lambda: call("setresuid", 0, 0, 0),
    "setresgid": lambda: call("setresgid", 0, 0, 0),
    "setfsuid": lambda: call("setfsuid", 0),
    "setfsgid": lambda: call("setfsgid", 0),
    "setgroups": lambda: call("setgroups", 0, 0),
    "mount": lambda: call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, 0),
    "umount2": lambda: call("umount2", b"/", 2),
    "chroot": lambda: call("chroot", b"/"),
    "pivot_root": lambda: call("pivot_root", b"/", b"/"),
    "open_tree": lambda: call("open_tree", AT_FDCWD, b"/", 0),
    "move_mount": lambda: call("move_mount", AT_FDCWD, b"/tmp", AT_FDCWD, b"/tmp", 0),
    "fsopen": lambda: call("fsopen", b"tmpfs", 0),
    "fsconfig": lambda: call("fsconfig", -1, 6, 0, 0, 0),
    "fsmount": lambda: call("fsmount", -1, 0, 0),
    "fspick": lambda: call("fspick", AT_FDCWD, b"/", 0),
    "mount_setattr": lambda: call("mount_setattr", AT_FDCWD, b"/", 0, _zeros(32), 32),
    "open_by_handle_at": lambda: call("open_by_handle_at", -1, _zeros(128), 0),
    "quotactl": lambda: call("quotactl", 0x80000100, 0, 0, 0),
    "quotactl_fd": lambda: call("quotactl_fd", -1, 0x80000100, 0, 0),
    "swapon": lambda: call("swapon", b"/nonexistent", 0),
    "swapoff": lambda: call("swapoff", b"/nonexistent"),
    "acct": lambda: call("acct", b"/nonexistent"),
    "setns": lambda: _setns("self", "uts"),
    "unshare NEWUSER": lambda: call("unshare", NEWUSER),
    "unshare NEWNS": lambda: call("unshare", NEWNS),
    "unshare NEWNET": lambda: call("unshare", NEWNET),
    "unshare nothing": lambda: call("unshare", 0),
    "sethostname": lambda: call("sethostname", b"taken", 5),
    "setdomainname": lambda: call("setdomainname", b"taken", 5),
    "ptrace": _ptrace_own_child,
    "bpf": lambda: call("bpf", 0, _zeros(128), 128),
    "keyctl": lambda: call("keyctl", 0, -3, 0, 0, 0),
    "add_key": lambda: call("add_key", b"user", b"name", b"value", 5, -3),
    "request_key": lambda: call("request_key", b"user", b"nonexistent", 0, 0),
    "kexec_load": lambda: call("kexec_load", 0, 0, 0, 0),
    "init_module": lambda: call("init_module", _zeros(8), 8, b""),
    "finit_module": lambda: call("finit_module", -1, b"", 0),
    "delete_module": lambda: call("delete_module", b"nonexistent", 0),
    # Not the magic numbers: it can only fail.
    "reboot": lambda: call("reboot", 1, 2, 3, 0),
    "settimeofday": lambda: call("settimeofday", 0, 0),
    "clock_settime": lambda: call("clock_settime", 99, _zeros(16)),
    "syslog": lambda: call("syslog", 10, 0, 0),
    "vhangup": lambda: call("vhangup"),
    "clone NEWUSER": lambda: _clone(NEWUSER),
    "clone NEWNS": lambda: _clone(NEWNS),
    "clone NEWUSER in high company": lambda: _clone(NEWUSER | HIGH),
    "clone3": lambda: _clone3(0),
    "clone3 NEWUSER": lambda: _clone3(NEWUSER),
    "io_uring_setup": lambda: call("io_uring_setup", 1, _zeros(120)),
    "io_uring_enter": lambda: call("io_uring_enter", -1, 0, 0, 0, 0, 0),
    "io_uring_register": lambda: call("io_uring_register", -1, 0, 0, 0),
    "perf_event_open": _perf_event_open,
    "userfaultfd": lambda: call("userfaultfd", 1),
    "process_vm_readv": _read_own_memory,
    "process_vm_writev": lambda: call("process_vm_writev", os.getpid(), 0, 0, 0, 0, 0),
    "kcmp": lambda: call("kcmp", os.getpid(), os.getpid(), 0, 0, 0),
    "pidfd_getfd": lambda: call("pidfd_getfd", -1, 0, 0),
    "fanotify_init": lambda: call("fanotify_init", 0x200, 0),
    "fanotify_mark": lambda: call("fanotify_mark", -1, 0, 0, 0, 0),
    "name_to_handle_at": lambda: call(
        "name_to_handle_at", AT_FDCWD, b"/", _words(120, *range(15)), _zeros(8), 0
    ),
    "seccomp second filter": lambda: call("seccomp", 1, 0, ctypes.byref(_FilterProgram())),
    "prctl second filter": lambda: call("prctl", 22, 2, ctypes.byref(_FilterProgram()), 0, 0),
    "prctl second filter, in high company": lambda: call(
        "prctl", 22 | HIGH, 2, ctypes.byref(_FilterProgram()), 0, 0
    ),
    "mbind": lambda: call("mbind", 0, 0, 0, 0, 0, 0),
    "set_mempolicy": lambda: call("set_mempolicy", 0, 0, 0),
    "get_mempolicy": lambda: call("get_mempolicy", 0, 0, 0, 0, 0),
    "migrate_pages": lambda: call("migrate_pages", 0, 0, 0, 0),
    "move_pages": lambda: call("move_pages", 0, 0, 0, 0, 0, 0),
    "adjtimex": lambda: call("adjtimex", _zeros(256)),
    "clock_adjtime": lambda: call("clock_adjtime", 0, _zeros(256)),
    "prctl PR_SET_KEEPCAPS": lambda: call("prctl", 8, 0, 0, 0, 0),
    "prctl PR_SET_TSC": lambda: call("prctl", 26, 1, 0, 0, 0),
    "prctl PR_SET_SECUREBITS": lambda: call("prctl", 28, 0, 0, 0, 0),
    # A fifth argument that it does not take: checked before any right is.
    "prctl PR_SET_MM": lambda: call("prctl", 35, 15, 0, 0, 1),
    "prctl PR_CAP_AMBIENT": lambda: call("prctl", 47, 4, 0, 0, 0),
    "prctl PR_SET_SYSCALL_USER_DISPATCH": lambda: call("prctl", 59, 0, 0, 0, 0),
    "prctl PR_SET_PTRACER": lambda: call("prctl", 0x59616D61, 0, 0, 0, 0),
    "personality ADDR_NO_RANDOMIZE": lambda: call("personality", 0x0040000),
    "personality READ_IMPLIES_EXEC": lambda: call("personality", 0x0400000 | HIGH),
    "mknodat character device": lambda: _device_node(0o20600),
    # Nowhere: whether the filter or the capabilities refuse shows in the answer.
    "mknodat block device": lambda: call("mknodat", AT_FDCWD, b"/nonexistent/node", 0o60600, 0x100),
    "ioctl TIOCSTI": lambda: call("ioctl", 0, 0x5412, b"x"),
    "ioctl TIOCSTI in high company": lambda: call("ioctl", 0, 0x5412 | HIGH, b"x"),
    "ioctl TIOCSTI on a negated number": lambda: call("ioctl", 0, 0x5412 | 0xFFFF_FFFF << 32, b"x"),
    "ioctl TIOCLINUX": lambda: call("ioctl", 0, 0x541C, b"x"),
    "ioctl TIOCSETD": lambda: call("ioctl", 0, 0x5423, b"x"),
    "socket AF_PACKET": lambda: call("socket", AF_PACKET, SOCK_RAW, 0),
    "socket AF_PACKET in high company": lambda: call("socket", AF_PACKET | HIGH, SOCK_RAW, 0),
    "socket AF_UNIX only in its high half": lambda: call("socket", HIGH, NO_SUCH_TYPE, 0),
    "socket AF_VSOCK": lambda: call("socket", AF_VSOCK, SOCK_STREAM, 0),
    "socket AF_NETLINK": lambda: call("socket", AF_NETLINK, SOCK_RAW, 0),
    # The kernel looks at the type before the family: its answer does not depend on what it was built with.
    "socket AF_ALG": lambda: call("socket", AF_ALG, NO_SUCH_TYPE, 0),
    "socket AF_INET raw": lambda: call("socket", AF_INET, SOCK_RAW, ICMP),
    "socket AF_INET raw in high company": lambda: call("socket", AF_INET, SOCK_RAW | HIGH, ICMP),
    "socket AF_INET6 raw": lambda: call("socket", AF_INET6, SOCK_RAW, ICMPV6),
    "socket AF_INET packet": lambda: call("socket", AF_INET, SOCK_PACKET, 0),
    "socket AF_INET sequenced packets": lambda: call("socket", AF_INET, SOCK_SEQPACKET, 0),
    "socket AF_INET protocol": lambda: call("socket", AF_INET, SOCK_STREAM, MPTCP),
    "socketpair AF_INET": lambda: call("socketpair", AF_INET, SOCK_STREAM, 0, _zeros(8)),
    "mq_open": lambda: call("mq_open", b"nonexistent", 0, 0, 0),
    "vmsplice": lambda: call("vmsplice", -1, 0, 0, 0),
    "process_madvise": lambda: call("process_madvise", -1, 0, 0, 0, 0),
    "listmount": lambda: call("listmount", 0, 0, 0, 0),
    "unshare by a number with a high half": lambda: call(NUMBERS["unshare"] | HIGH, 0),
    "unknown system call": lambda: call(999),
    "unknown system call, the highest": lambda: call(0x3FFF_FFFF),
}
if _X86:
    SYSTEM_CALLS |= {
        "iopl": lambda: call("iopl", 0),
        "ioperm": lambda: call("ioperm", 0, 1, 0),
        "modify_ldt": lambda: call("modify_ldt", 0, _zeros(16), 16),
        "int 0x80 getpid": lambda: _int80(20),
        "int 0x80 setuid": lambda: _int80(213),
        "int 0x80 unshare": lambda: _int80(310),
        "x32 getpid": lambda: call(0x4000_0000 | 39),
        "x32 setuid": lambda: call(0x4000_0000 | 105),
        "x32 ptrace": lambda: call(0x4000_0000 | 521, 0, 0, 0, 0),
    }

# What is asked of one process, by its pid. None of it harms a process that lets it happen.
ON_A_PROCESS: dict[str, Callable[..., int]] = {
    "kill": lambda pid: call("kill", pid, 0),
    "rt_sigqueueinfo": lambda pid: call("rt_sigqueueinfo", pid, SIGWINCH, _words(28, 0xFFFFFFFF, *[0] * 14)),
    "pidfd_open": lambda pid: call("pidfd_open", pid, 0),
    "prlimit64": lambda pid: call("prlimit64", pid, 7, 0, _zeros(16)),
    "setpriority": lambda pid: call("setpriority", 0, pid, os.getpriority(os.PRIO_PROCESS, 0)),
    "sched_setaffinity": lambda pid: call("sched_setaffinity", pid, 8, _words(2**64 - 1)),
    "sched_setscheduler": lambda pid: call("sched_setscheduler", pid, 0, _zeros(4)),
    "ioprio_set": lambda pid: call("ioprio_set", 1, pid, 2 << 13 | 4),
    "kcmp": lambda pid: call("kcmp", pid, pid, 0, 0, 0),
    "ptrace": lambda pid: call("ptrace", 0x4206, pid, 0, 0),
    "/proc/PID as a pidfd": lambda pid: call(
        "pidfd_send_signal", os.open(f"/proc/{pid}", os.O_DIRECTORY), 0, 0, 0
    ),
    "/proc/PID/mem": lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDONLY),
    "/proc/PID/environ": lambda pid: os.open(f"/proc/{pid}/environ", os.O_RDONLY),
    "/proc/PID/fd": lambda pid: len(os.listdir(f"/proc/{pid}/fd")),
    "/proc/PID/root": lambda pid: os.open(f"/proc/{pid}/root", os.O_PATH),
    "setns user": lambda pid: _setns(pid, "user"),
    "setns mnt": lambda pid: _setns(pid, "mnt"),
    "setns net": lambda pid: _setns(pid, "net"),
}

# What would slow the host down, or get ahead of its other users.
GREED: dict[str, Callable[[], int]] = {
    "real-time scheduling": lambda: call("sched_setscheduler", 0, 1, (ctypes.c_int * 1)(1)),
    "deadline scheduling": lambda: call(
        "sched_setattr", 0, _words(48 | 6 << 32, 0, 0, 10**6, 10**9, 10**9), 0
    ),
    "a better nice value": lambda: call("setpriority", 0, 0, -5),
    "a core dump": lambda: call("prlimit64", 0, 4, _words(2**30, 2**30), 0),
    "real-time input and output": lambda: call("ioprio_set", 1, 0, 1 << 13),
    "an alarm that wakes the machine": lambda: call("timerfd_create", 9, 0),
}


def _map_shared(path: str) -> int:
    """Map a file so that what is written to the memory is written to it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        # Perhaps the mapping is looked at less closely than the opening.
        descriptor = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(descriptor, 1, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory:
            memory[0:1] = b"x"
    finally:
        os.close(descriptor)
    return 0


def _set_flags(path: str) -> int:
    """FS_IOC_SETFLAGS of ioctl_iflags(2): no dumps of this file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return call("ioctl", descriptor, 0x4008_6602, _words(0x40))
    finally:
        os.close(descriptor)


def _make_socket(path: str) -> int:
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    return 0


# What changes a directory, or the file of mode 0666 in it; there are also "other", a file, and "inner", an empty directory.
ON_FILES: dict[str, Callable[[str], int | None]] = {
    "write to a file": lambda at: _write(f"{at}/file", "x"),
    "append to a file": lambda at: os.open(f"{at}/file", os.O_WRONLY | os.O_APPEND),
    "truncate a file": lambda at: os.truncate(f"{at}/file", 0),
    "truncate a file that is opened for reading": lambda at: os.open(f"{at}/file", os.O_RDONLY | os.O_TRUNC),
    "map a file for writing": lambda at: _map_shared(f"{at}/file"),
    "change a mode": lambda at: os.chmod(f"{at}/file", 0o600),
    "change an owner": lambda at: os.chown(f"{at}/file", os.getuid(), os.getgid()),
    "change the times": lambda at: os.utime(f"{at}/file"),
    "set an extended attribute": lambda at: os.setxattr(f"{at}/file", "user.new", b"x"),
    "set a flag": lambda at: _set_flags(f"{at}/file"),
    # No dumps of this file, as above.
    "set a flag by path": lambda at: call(
        "file_setattr", AT_FDCWD, f"{at}/file".encode(), _words(0x80, 0, 0), 24, 0
    ),
    "create a file": lambda at: os.open(f"{at}/new", os.O_CREAT | os.O_WRONLY),
    "create a file without a name": lambda at: os.open(at, os.O_TMPFILE | os.O_WRONLY),
    "make a directory": lambda at: os.mkdir(f"{at}/new"),
    "make a symbolic link": lambda at: os.symlink("file", f"{at}/new"),
    "make a hard link": lambda at: os.link(f"{at}/file", f"{at}/new"),
    "make a pipe": lambda at: os.mkfifo(f"{at}/new"),
    "make a socket": lambda at: _make_socket(f"{at}/new"),
    "make a whiteout": lambda at: call("mknodat", AT_FDCWD, f"{at}/new".encode(), 0o20666, 0),
    "rename": lambda at: os.rename(f"{at}/file", f"{at}/new"),
    "rename over another": lambda at: os.rename(f"{at}/file", f"{at}/other"),
    "remove a file": lambda at: os.unlink(f"{at}/file"),
    "remove a directory": lambda at: os.rmdir(f"{at}/inner"),
}


def _path_socket(path: str) -> int:
    """Connect to a unix socket that has a path."""
    descriptor = call("socket", 1, SOCK_STREAM, 0)
    address = b"\x01\0" + path.encode()
    return call("connect", descriptor, address + b"\0", len(address) + 1)


def _lease(path: str) -> int:
    """Hold up everybody who opens the file for writing; F_SETLEASE of fcntl(2)."""
    import fcntl

    return fcntl.fcntl(os.open(path, os.O_RDONLY), 1024, fcntl.F_RDLCK)


def _credit_entropy(path: str) -> int:
    """RNDADDTOENTCNT of random(4), by no bits."""
    return call("ioctl", os.open(path, os.O_RDONLY), 0x4004_5201, (ctypes.c_int * 1)(0))


def _mounts_of(namespace: int) -> int:
    """How many mounts there are in the mount namespace of this number; listmount(2)."""
    request = _words(32, 2**64 - 1, 0, namespace)
    return call("listmount", request, _words(*[0] * 64), 64, 0)


def _watch_filesystem(path: str) -> int:
    """FAN_REPORT_FID and FAN_MARK_ADD | FAN_MARK_FILESYSTEM of fanotify_mark(2), for FAN_OPEN."""
    group = call("fanotify_init", 0x200, 0)
    return group if group < 0 else call("fanotify_mark", group, 0x101, 0x20, AT_FDCWD, path.encode())


OTHERS: dict[str, Callable[..., int]] = {
    "open": lambda path: os.open(path, os.O_RDONLY),
    "open for writing": lambda path: os.open(path, os.O_WRONLY),
    "write": _write,
    "connect to an abstract socket": _abstract_socket,
    "connect to a socket by path": _path_socket,
    "take a lease": _lease,
    "credit entropy": _credit_entropy,
    "list the mounts of a namespace": _mounts_of,
    "watch a filesystem": _watch_filesystem,
    # FAN_CLASS_CONTENT: to be asked for permission to open.
    "decide on openings": lambda: call("fanotify_init", 4, 0),
    "make a device node": lambda path, mode, device: call("mknodat", AT_FDCWD, path.encode(), mode, device),
    "open a file handle": lambda where, handle: call("open_by_handle_at", where, handle, 0),
    "mount a filesystem": lambda kind, target: call("mount", b"none", target.encode(), kind.encode(), 0, 0),
    "attach to shared memory": lambda key: call("shmget", key, 0, 0),
    # NS_GET_PARENT of ioctl_nsfs(2).
    "open the namespace above": lambda path: call("ioctl", os.open(path, os.O_RDONLY), 0xB702, 0),
    "open a message queue": lambda name: call("mq_open", name.encode(), 0, 0, 0),
    "limit open files": lambda hard: call("prlimit64", 0, 7, _words(64, hard), 0),
    "setuid to another": lambda: call("setuid", 4242),
    "setgid to another": lambda: call("setgid", 4242),
    "setgroups to some": lambda group: call("setgroups", 1, (ctypes.c_uint * 1)(group)),
    # CAP_SYS_ADMIN, effective and permitted.
    "capset": lambda: call("capset", _words(0x2008_0522), (ctypes.c_uint * 6)(1 << 21, 1 << 21)),
    "new user namespace, then write": lambda *pairs: (
        call("unshare", NEWUSER) or [_write(*p) for p in pairs][-1]
    ),
}

ATTACKS: dict[str, Callable[..., int | None]] = {
    **SYSTEM_CALLS,
    **{f"{name} of a process": attack for name, attack in ON_A_PROCESS.items()},
    **ON_FILES,
    **GREED,
    **OTHERS,
}

PLACES = ("first thread", "second thread", "after exec")


def answer(attack: str, *arguments: object) -> int:
    """Attack. The result, or the errno as a negative number."""
    try:
        return ATTACKS[attack](*arguments) or 0
    except OSError as error:
        return -(error.errno or 0)


def attempt(attack: str, *arguments: object, place: str = PLACES[0]) -> None:
    """Attack from ``place``, and print the result, or the errno as a negative number."""
    if place == "second thread":
        import threading

        thread = threading.Thread(target=attempt, args=(attack, *arguments))
        thread.start()
        thread.join()
    elif place == "after exec":
        os.execv(sys.executable, command(attack, *arguments))
    else:
        print(answer(attack, *arguments), flush=True)


def command(attack: str, *arguments: object) -> list[str]:
    """A program that attacks."""
    here = os.path.dirname(__file__)
    find_this = f"import sys; sys.path.insert(0, {here!r})"
    attempt_it = f"import attacks; attacks.attempt(*{(attack, *arguments)!r})"
    return [sys.executable, "-S", "-c", f"{find_this}; {attempt_it}"]
