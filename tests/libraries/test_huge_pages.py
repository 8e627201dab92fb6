"""What imports leave in memory is gathered into huge pages, so that a clone copies few entries."""

from __future__ import annotations

import ctypes
import mmap

import pyspawner
from support import run

MADV_COLLAPSE = 25
HUGE_KIB = 2048
TABLE = "print(*(line.split()[1] for line in open('/proc/self/smaps') if line.startswith('AnonHugePages:')))"


def kernel_gathers() -> bool:
    """Linux has done so since 6.1, where memory in one piece is left."""
    memory = mmap.mmap(-1, 4 * HUGE_KIB * 1024, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    aligned = -(-start // (HUGE_KIB * 1024)) * HUGE_KIB * 1024
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(aligned), HUGE_KIB * 1024, MADV_COLLAPSE) == 0


def test_children_share_huge_pages_with_the_zygote() -> None:
    with pyspawner.Client(
        child_main="support.run_source", preload_imports=["pandas"], memory_image=False
    ) as client:
        huge = sum(map(int, run(client, TABLE).text.split()))
    # Pandas and Python leave some 50 MB.
    assert (huge >= 4 * HUGE_KIB) == kernel_gathers()
