"""Be the first process in the machine's own tree: run a command, and end the machine with its exit code.

Who runs this: ``init.sh``, as ``guest.py DIRECTORY NAME=VALUE... -- COMMAND...``. It imports no module that is slow to import.
"""

from __future__ import annotations

import os
import resource
import sys
import termios
import tty

_OUTPUT = "/dev/ttyS1"

EXIT_PORT = 0xF4
"""A byte that is written to this I/O port ends the machine: qemu's ``isa-debug-exit``."""

ENDED = 0x40
"""What is added to the exit code, so that no other end of the machine looks like one."""

LAST_CODE = 0x3F
"""Stands for every exit code from here on, and for a signal."""


def main() -> None:
    end = sys.argv.index("--")
    directory, *variables = sys.argv[1:end]
    command = sys.argv[end + 1 :]
    os.chdir(directory)
    for target, name in (("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")):
        os.symlink(target, f"/dev/{name}")
    # The kernel's own hard limit is lower than what machines have.
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 524_288))
    output = os.open(_OUTPUT, os.O_WRONLY | os.O_NOCTTY)
    # Lines end as they are written.
    tty.setraw(output)

    pid = os.fork()
    if pid == 0:
        _execute(command, dict(variable.split("=", 1) for variable in variables), output)
    ended, status = os.wait()
    while ended != pid:
        # Orphans are the first process's to reap.
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        os.write(output, f"signal {-code} has ended {command[0]}\n".encode())
    termios.tcdrain(output)
    _end_machine(LAST_CODE if code < 0 else min(code, LAST_CODE))


def _execute(command: list[str], environment: dict[str, str], output: int) -> None:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvpe(command[0], command, environment)
    except OSError as error:
        os.write(output, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _end_machine(code: int) -> None:
    ports = os.open("/dev/port", os.O_WRONLY)
    os.pwrite(ports, bytes([ENDED + code]), EXIT_PORT)


if __name__ == "__main__":
    main()
