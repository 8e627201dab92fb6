"""What imports have left in memory is kept in an image from which children take it: no child changes it, and nobody notices."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

import pyspawner
from support import communicate, only, open_descriptors, run, spawn

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "/memfd:pyspawner-image (deleted)"
TABLE = "print(open('/proc/self/maps').read())"
IMPORTS = ["memory_of_the_zygote", "numpy", "memory_search"]
# More than the first few clones, after which the zygote looks at what it has written itself.
MANY = 20


@pytest.fixture(scope="module", params=[True, False], ids=["with an image", "without"])
def client(request: pytest.FixtureRequest) -> Iterator[pyspawner.Client]:
    """Both must behave alike."""
    with pyspawner.Client(
        child_main="support.run_source", preload_imports=IMPORTS, memory_image=request.param
    ) as client:
        yield client


@pytest.fixture(scope="module")
def with_image() -> Iterator[pyspawner.Client]:
    with pyspawner.Client(child_main="support.run_source", preload_imports=IMPORTS) as client:
        yield client


def test_most_of_the_imports_memory_is_in_the_image(with_image: pyspawner.Client) -> None:
    source = """
    import memory_of_the_zygote as zygote
    ranges = [line.split()[0].split("-") for line in open("/proc/self/maps") if "pyspawner-image" in line]
    ranges = [(int(start, 16), int(end, 16)) for start, end in ranges]
    found = [any(start <= id(one) < end for start, end in ranges) for one in zygote.objects + zygote.chunks]
    print(sum(found) / len(found) > 0.8)
    """
    for _ in range(MANY):
        assert run(with_image, source).text == "True\n"


def test_without_the_switch_there_is_none() -> None:
    with pyspawner.Client(
        child_main="support.run_source", preload_imports=IMPORTS, memory_image=False
    ) as client:
        assert IMAGE not in run(client, TABLE).text


def test_every_child_finds_what_the_imports_have_made(client: pyspawner.Client) -> None:
    source = "import memory_of_the_zygote as zygote; print(zygote.digest() == zygote.BEFORE)"
    assert [run(client, source).text for _ in range(MANY)] == ["True\n"] * MANY


# Python's own way, past Python, and so that every page is copied.
WRITES = {
    "to an object": "zygote.objects[0]['text'] = 'of a child'; zygote.objects.clear()",
    "to its memory": "ctypes.memset(place, ord('c'), 20)",
    "everywhere": """
for line in open('/proc/self/maps').readlines():
    if 'pyspawner-image' in line and line.split()[1].startswith('rw'):
        start, end = (int(address, 16) for address in line.split()[0].split('-'))
        for page in range(start, end, 4096):
            memory = (ctypes.c_char * 1).from_address(page)
            memory[0] = memory[0]
ctypes.memset(place, ord('c'), 20)
""",
}
READ = """
import ctypes, memory_of_the_zygote as zygote
place = id(zygote.secret) + bytes.__basicsize__ - 1
"""


CHECK = (
    READ
    + "print(zygote.secret == b'of the zygote:' + b'z' * 40, len(zygote.objects), zygote.objects[0]['text'])"
)


@pytest.mark.filterwarnings("ignore::pyspawner.InsecureSandboxWarning")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("sandbox", [pyspawner.SandboxConfig(), only()], ids=["sandboxed", "no layers"])
def test_what_a_child_writes_no_other_child_finds(
    client: pyspawner.Client, write: str, sandbox: pyspawner.SandboxConfig
) -> None:
    writer = spawn(client, READ + write + "\nprint('written', flush=True); input()", sandbox=sandbox)
    assert writer.stdout.readline() == b"written\n"
    # While the first lives, and after its end.
    assert run(client, CHECK).text == "True 60000 text 0\n"
    assert communicate(writer, b"\n").exitcode == 0
    assert run(client, CHECK).text == "True 60000 text 0\n"


def test_not_even_what_is_written_past_its_page_tables(client: pyspawner.Client) -> None:
    """The sandbox refuses a child to open its own memory as a file. Root outside may."""
    victim = spawn(client, READ + "print(place, flush=True); input(); print(zygote.secret[:4])")
    place = int(victim.stdout.readline())
    with open(f"/proc/{victim.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(place)
        memory.write(b"c" * 20)
    assert run(client, CHECK).text == "True 60000 text 0\n"
    assert communicate(victim, b"\n").stdout == b"b'cccc'\n"


OPEN_THE_FILE = """
import os
for line in open("/proc/self/maps").readlines():
    if "pyspawner-image" in line:
        addresses = line.split()[0].split("-")
        name = "-".join(address.lstrip("0") for address in addresses)
        try:
            os.open(f"/proc/self/map_files/{name}", os.O_RDWR)
        except OSError as error:
            print(type(error).__name__)
        else:
            print("opened")
        break
"""


@pytest.mark.filterwarnings("ignore::pyspawner.InsecureSandboxWarning")
@pytest.mark.parametrize("sandbox", [pyspawner.SandboxConfig(), only()], ids=["sandboxed", "no layers"])
def test_a_child_cannot_open_the_images_file(
    with_image: pyspawner.Client, sandbox: pyspawner.SandboxConfig
) -> None:
    assert run(with_image, OPEN_THE_FILE, sandbox=sandbox).text in (
        "PermissionError\n",
        "FileNotFoundError\n",
    )


def test_a_child_has_no_descriptor_of_it(with_image: pyspawner.Client) -> None:
    child = spawn(with_image, "print('here', flush=True); input()")
    assert child.stdout.readline() == b"here\n"
    assert not any("image" in target for target in open_descriptors(child.pid).values())
    communicate(child, b"\n")


def test_the_image_is_sealed_and_the_zygote_itself_may_only_read_it(with_image: pyspawner.Client) -> None:
    numbers = [
        number for number, target in open_descriptors(with_image.zygote_pid).items() if target == IMAGE
    ]
    assert len(numbers) == 1
    path = f"/proc/{with_image.zygote_pid}/fd/{numbers[0]}"
    with open(path, "rb") as image:
        seals = fcntl.fcntl(image, fcntl.F_GET_SEALS)
    wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    assert seals & wanted == wanted
    # Root may open it once more to write, and still cannot.
    descriptor = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)


def test_memory_that_a_library_has_mapped_by_itself_stays_ordinary(client: pyspawner.Client) -> None:
    """Allocators count on zeroes after MADV_DONTNEED, and on room when they let a mapping grow."""
    source = """
    import memory_of_the_zygote as zygote, mmap
    memory = zygote.mapped
    first = bytes(memory[:1])
    memory.madvise(mmap.MADV_DONTNEED)
    print(first, bytes(memory) == bytes(len(memory)))
    memory = zygote.anonymous(4)
    memory.resize(64 * zygote.PAGE)
    print(bytes(memory[:1]), bytes(memory[5 * zygote.PAGE :]) == bytes(59 * zygote.PAGE))
    """
    assert run(client, source).text == "b'm' True\nb'm' True\n"


def test_what_a_library_has_asked_for_its_memory_holds(client: pyspawner.Client) -> None:
    source = """
    import memory_of_the_zygote as zygote
    maps = [line.split()[0].split("-") for line in open("/proc/self/maps")]
    there = any(int(start, 16) <= zygote.LEFT_OUT < int(end, 16) for start, end in maps)
    print(bytes(zygote.wiped) == bytes(len(zygote.wiped)), there, bytes(zygote.locked[:1]))
    """
    assert run(client, source).text == "True False b'm'\n"


def test_the_heap_of_a_child_grows_shrinks_and_is_zero_where_it_should_be(client: pyspawner.Client) -> None:
    source = """
    import ctypes, memory_of_the_zygote as zygote
    libc = zygote.LIBC
    for name in ("malloc", "calloc", "realloc", "sbrk"):
        getattr(libc, name).restype = ctypes.c_void_p
    break_ = libc.sbrk(0)
    for _ in range(3):
        # Below the size from which each has a mapping of its own.
        chunks = [libc.malloc(ctypes.c_size_t(100_000)) for _ in range(300)]
        for chunk in chunks:
            ctypes.memset(chunk, 0xAA, 100_000)
        grown = libc.sbrk(0) > break_
        zygote.chunks.clear()
        for chunk in chunks:
            libc.free(ctypes.c_void_p(chunk))
        libc.malloc_trim(0)
        for size in (48, 3_000, 100_000, 1_000_000):
            for _ in range(50):
                zeroes = libc.calloc(ctypes.c_size_t(1), ctypes.c_size_t(size))
                assert ctypes.string_at(zeroes, size) == bytes(size)
    print(grown)
    """
    assert run(client, source).text == "True\n"


def test_objects_of_the_zygote_grow_and_go(client: pyspawner.Client) -> None:
    source = """
    import gc, memory_of_the_zygote as zygote
    zygote.growing.extend(range(1_000_000))
    print(sum(zygote.growing))
    del zygote.objects[:], zygote.chunks[:], zygote.growing[:]
    gc.collect()
    again = [str(number) * 3 for number in range(200_000)]
    print(again[-1])
    """
    expected = f"{sum(range(300_000)) + sum(range(1_000_000))}\n{'199999' * 3}\n"
    assert [run(client, source).text for _ in range(3)] == [expected] * 3


def test_threads_signals_and_stacks_work(client: pyspawner.Client) -> None:
    source = """
    import ctypes, os, signal, sys, threading, memory_of_the_zygote as zygote
    caught = []
    signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
    os.kill(os.getpid(), signal.SIGUSR1)
    values = []
    def work(number):
        zygote.local.value = number
        ctypes.set_errno(number)
        values.append((zygote.local.value, ctypes.get_errno()))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    def deep(left): return 0 if not left else 1 + deep(left - 1)
    sys.setrecursionlimit(20_000)
    print(caught, sorted(values), zygote.local.value, deep(9_000))
    """
    values = [(number, number) for number in range(4)]
    assert run(client, source).text == f"[1] {values} of the main thread 9000\n"


def test_faulthandler_that_an_import_has_switched_on_speaks(client: pyspawner.Client) -> None:
    outcome = run(client, "import ctypes; ctypes.string_at(0)")
    assert b"Segmentation fault" in outcome.stderr
    assert b"string_at" in outcome.stderr
    assert outcome.exitcode == -signal.SIGSEGV


def test_a_library_can_be_loaded_used_and_mapped_anew(client: pyspawner.Client) -> None:
    source = """
    import ctypes, numpy, sqlite3, decimal, memory_search
    print(numpy.ones((300, 300)).dot(numpy.ones((300, 300))).sum(), sqlite3.connect(":memory:").execute("select 1").fetchone())
    print(len(memory_search.search(b"of the zygote:z+")) > 0)
    """
    assert run(client, source).text == "27000000.0 (1,)\nTrue\n"


def test_the_limit_of_memory_leaves_a_child_the_same(client: pyspawner.Client) -> None:
    limits = pyspawner.Limits(memory_bytes=64 << 20)
    sandbox = pyspawner.SandboxConfig(limits=limits)
    assert run(client, "print(len(bytearray(40 << 20)))", sandbox=sandbox).text == f"{40 << 20}\n"
    assert b"MemoryError" in run(client, "bytearray(80 << 20)", sandbox=sandbox).stderr


def test_a_zygote_that_may_not_have_one_says_so_and_serves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pyspawner")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file of memory is a file: none may have a single byte.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        client = pyspawner.Client(child_main="support.run_source", preload_imports=IMPORTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with client:
        (message,) = [text for text in caplog.messages if "memory image" in text]
        assert message == "the zygote has no memory image: File too large (os error 27)"
        assert IMAGE not in run(client, TABLE).text
