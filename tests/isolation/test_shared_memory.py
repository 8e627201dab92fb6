"""Memory that an import has mapped shared is a private copy in each child: none is a way from one to another, or to the zygote."""

from __future__ import annotations

import pytest

import pyspawner
from support import communicate, run, spawn


@pytest.fixture(scope="module")
def client_that_shared():
    imports = ["shared_memory_of_the_zygote"]
    with pyspawner.Client(child_main="support.run_source", preload_imports=imports) as client:
        yield client


WRITE = """
import shared_memory_of_the_zygote as shared
for memory in (shared.anonymous, shared.array, shared.mapped):
    print(bytes(memory[:8]), end=" ")
    memory[:8] = b"by-child"
print(bytes(shared.anonymous[:8]), bytes(shared.array[:8]), bytes(shared.mapped[:8]))
"""


def test_a_child_finds_what_the_zygote_wrote_and_no_other_child_what_it_writes(client_that_shared):
    before, after = repr(b"by-zygot"), repr(b"by-child")
    expected = " ".join([before] * 3 + [after] * 3) + "\n"
    assert [run(client_that_shared, WRITE).text for _ in range(3)] == [expected] * 3


def test_a_lock_that_a_child_takes_is_free_for_the_next(client_that_shared):
    """Even if the first is killed with it."""
    source = "import shared_memory_of_the_zygote as shared; print(shared.lock.acquire(False), flush=True)"
    first = spawn(client_that_shared, source + "; import threading; threading.Event().wait()")
    assert first.stdout.readline() == b"True\n"
    assert run(client_that_shared, source).text == "True\n"
    first.kill()
    communicate(first)
    assert run(client_that_shared, source).text == "True\n"


def test_a_file_that_the_zygote_has_mapped_is_not_written(client_that_shared):
    run(client_that_shared, WRITE)
    path = run(client_that_shared, "import shared_memory_of_the_zygote as shared; print(shared.path)").text
    with open(path.strip(), "rb") as file:
        assert file.read(8) == b"by-zygot"


def test_control_forks_of_one_process_share_it(client_that_shared):
    source = """
        import mmap, os
        memory = mmap.mmap(-1, 4096)
        if os.fork() == 0:
            memory[:8] = b"by-child"
            os._exit(0)
        os.wait()
        print(memory[:8])
        """
    assert run(client_that_shared, source).text == "b'by-child'\n"
