"""An import that leaves memory of every kind behind, and knows what is in it."""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import mmap
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
# Linux's numbers; the module mmap does not have them all.
MADV_DONTFORK, MADV_WIPEONFORK = 10, 18

# Small objects, which the interpreter keeps in arenas; and chunks of the C library's heap.
objects = [{"number": number, "text": f"text {number}", "float": number / 7} for number in range(60_000)]
chunks = [bytes([number % 251]) * 3000 for number in range(2_000)]
growing = list(range(300_000))
secret = b"of the zygote:" + b"z" * 40

local = threading.local()
local.value = "of the main thread"
faulthandler.enable()


def anonymous(pages: int = 1) -> mmap.mmap:
    """Memory of a library that maps for itself, filled."""
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"m" * len(memory)
    return memory


def address(memory: mmap.mmap) -> int:
    """Where it is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


mapped, locked, wiped, left_out = (anonymous(8) for _ in range(4))
LIBC.mlock(ctypes.c_void_p(address(locked)), len(locked))
LIBC.madvise(ctypes.c_void_p(address(wiped)), len(wiped), MADV_WIPEONFORK)
LIBC.madvise(ctypes.c_void_p(address(left_out)), len(left_out), MADV_DONTFORK)
LEFT_OUT = address(left_out)


def digest() -> str:
    """Of all that has not changed."""
    state = hashlib.sha256(repr((objects, growing)).encode())
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


BEFORE = digest()
