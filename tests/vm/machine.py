"""A virtual machine that runs one command with the host's files."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import guest
import initramfs
from kernel import Kernel

_GUEST = Path(guest.__file__).resolve()

_KERNEL_OPTIONS = (
    "console=ttyS0 quiet",
    # The end of the first process is the end of the machine.
    "panic=-1",
    # An emulated processor needs none of these, and they take their time.
    "mitigations=off init_on_alloc=0 cryptomgr.notests no_timer_check tsc=reliable apparmor=0 rodata=off",
    # What qemu has translated it uses again where the addresses are the same.
    "norandmaps",
)

_SCRATCH = ("run", "srv", "tmp")
"""Empty in the machine, unless what it needs of the host is there."""

_DISK_SIZE = 4 * 1024**3


class MachineError(Exception):
    """The machine ended without a result, or was ended. The message has the end of its console."""


def run(
    kernel: Kernel,
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    output: BinaryIO,
    deadline: float,
) -> int:
    """Run a command as root in a new machine, and return its exit code. 63 stands for any from there on, and for a signal.

    The machine shows the files that this process can read; what is changed is forgotten. It has cgroup v2 at ``/sys/fs/cgroup``, where
    all processes are in the root, and no network but ``lo``.

    :param directory: the command's working directory.
    :param environment: all variables that the command has.
    :param output: for its standard output and error, as they come.
    :param deadline: in seconds from now. A machine that still runs then is ended.
    :raises MachineError: there is no exit code.
    """
    needed = (directory, _GUEST, Path(sys.prefix), Path(sys.base_prefix))
    empty = [name for name in _SCRATCH if not any(path.is_relative_to(f"/{name}") for path in needed)]
    variables = [f"{name}={value}" for name, value in environment.items()]
    # Without site-packages it starts faster.
    first = [sys.executable, "-I", "-S", str(_GUEST), str(directory), *variables, "--", *command]
    with tempfile.TemporaryDirectory() as name:
        files = ("initramfs", "disk", "console", "output")
        archive, disk, console, written = (Path(name) / file for file in files)
        archive.write_bytes(initramfs.build(kernel, first, empty=empty))
        _make_disk(disk)
        was_late, status = _boot(
            _qemu(kernel.image, archive, disk, console, written), written, output, deadline
        )
        code = _exit_code(status)
        if code is None:
            reason = f"was ended after {deadline:g} seconds" if was_late else "ended without a result"
            tail = console.read_text(errors="replace")[-4000:] if console.exists() else ""
            raise MachineError(f"the virtual machine {reason} (qemu: {status}). Its console:\n{tail}")
        return code


def _make_disk(path: Path) -> None:
    """Make a file system for all that is written in the machine. The file has holes: it is as large as that."""
    with path.open("wb") as file:
        file.truncate(_DISK_SIZE)
    # An ordinary user's PATH may not lead to it.
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", path], check=True)


def _boot(qemu: Sequence[str], written: Path, output: BinaryIO, deadline: float) -> tuple[bool, int]:
    """Whether the machine was ended, and the exit status of qemu.

    :param written: the file in which qemu writes what goes to ``output``: it never waits for a reader, or its device would drop something.
    """
    written.touch()
    end = time.monotonic() + deadline
    was_late = False
    with written.open("rb", 0) as file, subprocess.Popen(qemu, stdin=subprocess.DEVNULL) as process:
        try:
            while True:
                # Asked before the last read, so that this one sees all.
                has_ended = process.poll() is not None
                if chunk := file.read():
                    output.write(chunk)
                    output.flush()
                elif has_ended:
                    return was_late, process.returncode
                elif time.monotonic() > end:
                    was_late = True
                    process.kill()
                    process.wait()
                else:
                    time.sleep(0.05)
        finally:
            process.kill()


def _exit_code(status: int) -> int | None:
    """What the command's exit code was, if this exit status of qemu comes from ``guest.py``."""
    # isa-debug-exit makes it so.
    result, is_odd = divmod(status, 2)
    if not is_odd or not guest.ENDED <= result <= guest.ENDED + guest.LAST_CODE:
        return None
    return result - guest.ENDED


def _qemu(image: Path, archive: Path, disk: Path, console: Path, output: Path) -> list[str]:
    """A machine of emulated processors: hosts that are virtual themselves have no others."""
    return [
        # Whatever ends this process ends it too.
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536M"),
        *("-kernel", str(image), "-initrd", str(archive), "-append", " ".join(_KERNEL_OPTIONS)),
        # ttyS0 and ttyS1.
        *("-serial", f"file:{console}", "-serial", f"file:{output}"),
        *("-device", f"isa-debug-exit,iobase={guest.EXIT_PORT:#x},iosize=1"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
        # remap: two of the host's file systems may number their files alike.
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
    ]  # fmt: skip
