"""The virtual machine: no test in there can fail unseen, and none can harm the host."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import guest
import kernel
import machine
import pytest


@pytest.fixture
def output():
    return io.BytesIO()


@pytest.fixture
def run(output):
    """Run a shell's script in a machine. Its exit code."""

    def run(script: str, *, deadline: float = 300) -> int:
        return machine.run(
            kernel.get(),
            ["sh", "-ec", script],
            directory=Path(__file__).parent,
            environment={"PATH": "/usr/bin:/bin"},
            output=output,
            deadline=deadline,
        )

    return run


def test_all_output_and_the_exit_code_arrive_and_nothing_else(run, output):
    kernel.get()
    with tempfile.TemporaryDirectory(dir=kernel.CACHE) as name:
        file = Path(name, "file")
        file.write_text("of the host\n")
        assert run(f"cat {file}; echo changed > {file}; cat {file}; rm -r {name}; seq 20000; exit 7") == 7
        assert file.read_text() == "of the host\n"
    numbers = b"".join(b"%d\n" % number for number in range(1, 20_001))
    assert output.getvalue() == b"of the host\nchanged\n" + numbers


def test_a_signal_is_no_success(run, output):
    assert run("kill -KILL $$") == guest.LAST_CODE
    assert output.getvalue() == b"signal 9 has ended sh\n"


def test_a_crash_of_the_kernel_is_no_success(run):
    with pytest.raises(machine.MachineError, match=r"ended without a result(.*\n)+.*sysrq triggered crash"):
        run("echo c > /proc/sysrq-trigger; sleep infinity")


def test_a_machine_that_hangs_is_ended(run):
    with pytest.raises(machine.MachineError, match="was ended after 1 seconds"):
        run("sleep infinity", deadline=1)
