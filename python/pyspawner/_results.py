"""Reading what a child wrote."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from pyspawner import _native

if TYPE_CHECKING:
    from os import PathLike


def open_beneath(directory: str | PathLike[str] | int, relative_path: str | PathLike[str]) -> BinaryIO:
    """Open a file that a child has written, for reading, and only a file.

    A hostile child may leave a symbolic link to your secrets where you expect a result, or a pipe that nobody ever writes to. This opens a
    regular file below ``directory`` or nothing: no symbolic link is followed on the way, ``..`` does not lead out. See openat2(2).

    :param directory: the directory that the child had, or a descriptor of it. It is yours: links in this path are followed.
    :param relative_path: the file's path in it.
    :return: an unbuffered reader, as ``open(path, "rb", buffering=0)`` gives.
    :raises FileNotFoundError: there is no such file.
    :raises IsADirectoryError: it is a directory.
    :raises OSError: with ``errno`` ``ELOOP``, a symbolic link is on the way; ``EXDEV``, the path is absolute, leads out of the directory or
        to another filesystem; ``EMLINK``, the file has a second name (a hard link), so it may be another file of yours; ``EINVAL``, it is
        a pipe, a socket or a device.
    """
    if isinstance(directory, int):
        directory = f"/proc/self/fd/{directory}"
    return os.fdopen(_native.open_beneath(directory, relative_path), "rb", buffering=0)
