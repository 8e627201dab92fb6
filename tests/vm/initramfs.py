"""The first file system of the virtual machine: the way to the host's tree, and the command."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from kernel import Kernel

_INIT = Path(__file__).with_name("init.sh")
_APPLETS = ("chmod", "insmod", "ip", "mkdir", "mount", "sh", "switch_root")


def build(kernel: Kernel, command: Sequence[str], *, empty: Iterable[str]) -> bytes:
    """Return a cpio archive whose ``init`` ends in ``command``.

    :param command: executed as the first process, in the host's tree.
    :param empty: directories of the host's root, by name, that are empty in the machine.
    """
    archive = _Archive()
    for directory in ("bin", "dev", "disk", "host", "modules", "new"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    # The kernel opens it before it executes init.
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("bin/busybox", stat.S_IFREG | 0o755, kernel.busybox.read_bytes())
    for applet in _APPLETS:
        archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    for module in kernel.modules:
        archive.add(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
    archive.add("init", stat.S_IFREG | 0o755, _INIT.read_bytes())
    settings = f"empty='{' '.join(empty)}'\nset -- {shlex.join(command)}\n"
    archive.add("settings", stat.S_IFREG | 0o644, settings.encode())
    return archive.close()


class _Archive:
    """A cpio archive in the format that the kernel unpacks: Documentation/driver-api/early-userspace/buffer-format.rst."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._entries = 0

    def add(self, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        self._entries += 1
        path = name.encode() + b"\0"
        owner, links, modified, file_system, checksum = (0, 0), 1, 0, (0, 0), 0
        numbers = (
            self._entries, mode, *owner, links, modified, len(data), *file_system, *device, len(path), checksum,
        )  # fmt: skip
        self._append(b"070701" + b"".join(b"%08x" % number for number in numbers) + path)
        self._append(data)

    def close(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return bytes(self._content)

    def _append(self, data: bytes) -> None:
        self._content += data
        self._content += bytes(-len(self._content) % 4)
