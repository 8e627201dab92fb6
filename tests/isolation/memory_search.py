"""Search of a process's whole memory. Children run it on themselves, the tests on other processes."""

from __future__ import annotations

import re
from io import FileIO
from pathlib import Path

# The kernel's own pages; nobody's data is there, and mem(5) does not read them.
KERNEL_MAPPINGS = {"[vvar]", "[vvar_vclock]", "[vsyscall]"}


def read(memory: FileIO, start: int, length: int) -> bytes:
    try:
        memory.seek(start)
        return memory.read(length)
    except OSError:
        return b""


def search(pattern: bytes, process: str = "self") -> set[bytes]:
    """Everything that matches ``pattern`` in any mapping.

    One that is not readable is tried too: mem(5) may show it all the same. A readable one that cannot be
    read to its end is an error.
    """
    regex, found = re.compile(pattern), set[bytes]()
    mappings = Path(f"/proc/{process}/maps").read_text().splitlines()
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for mapping in mappings:
            addresses, permissions, _, _, _, *name = mapping.split(maxsplit=5)
            if KERNEL_MAPPINGS.intersection(name):
                continue
            start, end = (int(address, 16) for address in addresses.split("-"))
            content = read(memory, start, end - start)
            if permissions.startswith("r") and len(content) != end - start:
                raise EOFError(f"read {len(content)} bytes of {mapping}")
            found.update(regex.findall(content))
    return found
