"""What a zygote and its clones share, and what they do not."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

import pytest

import pyspawner
from support import run

MIB = 1024 * 1024
MADV_COLLAPSE = 25


def kib(pid: int, kind: str) -> int:
    """A line of a process's ``smaps_rollup``."""
    found = re.search(rf"^{kind}: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def kernel_gathers() -> bool:
    """Linux has done so since 6.1, where memory in one piece is left."""
    memory = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    aligned = -(-start // (2 * MIB)) * 2 * MIB
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(aligned), 2 * MIB, MADV_COLLAPSE) == 0


@pytest.fixture
def parent(make_module):
    make_module("large_parent", "HELD = bytearray(b'x') * (64 << 20)")
    make_module("large_derived", "HELD = bytearray(b'y') * (32 << 20)")
    with pyspawner.Client(child_main="support.run_source", preload_imports=["large_parent"]) as parent:
        yield parent


def test_a_clone_shares_what_its_zygote_has_imported(parent):
    with parent.derive() as derived:
        assert kib(derived.zygote_pid, "Shared_Dirty") > 64 * 1024
        assert kib(derived.zygote_pid, "Private_Dirty") < 16 * 1024
        assert kib(parent.zygote_pid, "Private_Dirty") < 16 * 1024


def test_only_what_is_its_own_is_gathered_into_huge_pages(parent):
    with parent.derive(preload_imports=["large_derived"]) as derived:
        assert kib(derived.zygote_pid, "Shared_Dirty") > 64 * 1024
        assert kib(derived.zygote_pid, "Private_Dirty") > 32 * 1024
        huge = sum(
            int(line.split()[1])
            for line in Path(f"/proc/{derived.zygote_pid}/smaps").read_text().splitlines()
            if line.startswith("AnonHugePages:")
        )
        assert (huge >= 80 * 1024) == kernel_gathers()


def test_what_one_of_them_writes_the_other_does_not_see(parent):
    write = "import large_parent; large_parent.HELD[:] = b'z' * len(large_parent.HELD); print(large_parent.HELD[:1])"
    read = "import large_parent; print(set(large_parent.HELD))"
    with parent.derive(preload_imports=["writes_to_large_parent"]) as derived:
        assert run(derived, read).text == f"{ {ord('w')} }\n"
        assert run(parent, read).text == f"{ {ord('x')} }\n"
        assert run(derived, write).text == "bytearray(b'z')\n"
        assert run(derived, read).text == f"{ {ord('w')} }\n"
