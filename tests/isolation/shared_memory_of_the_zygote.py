"""Has mapped memory in each way that fork shares."""

import mmap
import multiprocessing
import multiprocessing.sharedctypes
import tempfile

anonymous = mmap.mmap(-1, 4096)
array = memoryview(multiprocessing.sharedctypes.RawArray("B", 4096)).cast("B")
lock = multiprocessing.get_context("fork").Lock()
_file = tempfile.NamedTemporaryFile()  # noqa: SIM115 (as long as the zygote)
_file.truncate(4096)
path = _file.name
mapped = mmap.mmap(_file.fileno(), 4096)

for memory in (anonymous, array, mapped):
    memory[:8] = b"by-zygot"
