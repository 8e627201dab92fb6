"""A Debian kernel for the virtual machine: downloaded once, unpacked, and never installed."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[2] / "target" / "vm"

DEFAULT = "linux-image-amd64"
"""Not the cloud kernel: it has no 9p, by which the machine sees the host's files."""

MODULES = (
    *("virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "bridge", "veth"),
    # ext4 asks for crc32c by another name.
    *("crc32c_generic", "ext4"),
)
"""What the machine and the tests need. Nothing is loaded later: the modules of the host's tree are another kernel's."""


class UnavailableError(Exception):
    """The packages cannot be had; the message says why."""


@dataclass(frozen=True)
class Kernel:
    """What the cache has."""

    directory: Path

    @property
    def image(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def busybox(self) -> Path:
        """A program without libraries, for what comes before the host's tree is there."""
        return self.directory / "busybox"

    @property
    def modules(self) -> list[Path]:
        """``MODULES`` and what they depend on, in the order in which they can be loaded."""
        return sorted((self.directory / "modules").iterdir())


def get(package: str = DEFAULT) -> Kernel:
    """Return a kernel of the cache; download it if need be. ``make clean`` empties the cache.

    :param package: a meta-package that stands for the newest kernel of its kind.
    :raises UnavailableError: it is not in the cache, and apt does not have it; or the host is no x86_64.
    """
    if platform.machine() != "x86_64":
        raise UnavailableError(f"the virtual machine is an x86_64, and its host {platform.machine()}")
    # What another version of this file has chosen is of no use.
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    directory = CACHE / f"{package}-{version}"
    if not directory.exists():
        print(f"downloading {package} for the virtual machine ...", flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            tree, chosen = Path(name) / "tree", Path(name) / "chosen"
            _download(package, into=tree)
            _choose(tree, into=chosen)
            # Another run may have been faster.
            with contextlib.suppress(OSError):
                chosen.rename(directory)
    return Kernel(directory)


def _download(package: str, into: Path) -> None:
    """Unpack the kernel and busybox as they would be installed."""
    archives = into.parent
    try:
        _apt_get_download(package, archives)
    except UnavailableError:
        # The lists are missing, or older than what the mirror has.
        if os.getuid() != 0:
            raise
        _run("apt-get", "update", "-qq")
        _apt_get_download(package, archives)
    for archive in archives.glob("*.deb"):
        _run("dpkg-deb", "--extract", archive, into)


def _apt_get_download(package: str, directory: Path) -> None:
    description = _run("apt-cache", "show", "--no-all-versions", package)
    kernel = re.search(
        r"^Depends:.*?\b(linux-image-[^ ,]+)(?: \(= (?P<version>[^)]+)\))?", description, re.MULTILINE
    )
    if kernel is None:
        raise UnavailableError(f"{package} stands for no kernel")
    name = f"{kernel[1]}={kernel['version']}" if kernel["version"] else kernel[1]
    # As root, apt would become a user who cannot write here.
    _run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name, "busybox-static", cwd=directory)


def _choose(tree: Path, into: Path) -> None:
    """Copy what the machine needs from an unpacked kernel, a tenth of it."""
    into.mkdir()
    (into / "vmlinux").write_bytes(_without_compression(_only(tree, "boot/vmlinuz-*").read_bytes()))
    shutil.copy(_only(tree, "**/bin/busybox"), into / "busybox")

    # File names have either mark, where the modules' own lists have this one.
    available = {
        path.name.partition(".")[0].replace("-", "_"): path for path in tree.glob("**/lib/modules/**/*.ko*")
    }
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in available:
            return
        path = available[name]
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        listed = re.search(rb"\0depends=([^\0]*)\0", content)
        for dependency in listed[1].decode().split(",") if listed else []:
            add(dependency.replace("-", "_"))
        ordered[name] = content

    for name in MODULES:
        # What is no file is built in.
        add(name)
    (into / "modules").mkdir()
    for number, (name, content) in enumerate(ordered.items()):
        (into / "modules" / f"{number:02}-{name}.ko").write_bytes(content)


def _only(tree: Path, pattern: str) -> Path:
    found = list(tree.glob(pattern))
    if len(found) != 1:
        raise UnavailableError(f"the packages have {len(found)} of {pattern}, and not one")
    return found[0]


def _without_compression(image: bytes) -> bytes:
    """Take the kernel out of an image that would unpack itself, which lasts seconds in an emulated processor.

    The offsets are those of the boot protocol. What is not compressed with xz stays as it is, and boots too.
    """
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    # The length of the result follows the stream.
    return lzma.LZMADecompressor().decompress(payload) if payload.startswith(b"\xfd7zXZ\0") else image


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnavailableError(f"{error}; the machine's kernel comes from Debian, by apt") from None
    if done.returncode != 0:
        hint = "" if os.getuid() == 0 else "\nperhaps apt's lists are old; as root: apt-get update"
        raise UnavailableError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-1000:]}{hint}")
    return done.stdout
