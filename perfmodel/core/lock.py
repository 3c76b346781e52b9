"""One process at a time writes to a file or in a folder that grows over minutes.

The lock belongs to the open file: the operating system drops it when the process ends, however it ends. No file is left behind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from perfmodel.core.disk import PathLike, resolve_file, translate_write_errors
from perfmodel.core.errors import UserInputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked_file(path: PathLike) -> Iterator[bool]:
    """A file that no other process of ours writes to meanwhile. It is made where it is not there; left empty, it goes again.

    Yields whether it is locked: some file systems and operating systems have no locks.

    Raises:
        UserInputError: another process has it.
        BadFile: it is a folder or a device, its folder does not exist, or it cannot be written.
        OutOfSpace: the disk is full.
    """
    with translate_write_errors(path):
        file = resolve_file(path)
        is_new = not file.exists()
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_locked = _lock(descriptor, path)
        try:
            yield is_locked
        finally:
            if is_new and not os.fstat(descriptor).st_size:
                file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_folder(path: PathLike) -> Iterator[bool]:
    """A folder that no other process of ours works in meanwhile; see `locked_file`.

    Raises:
        UserInputError: another process has it.
        BadFile: it is not there, or cannot be read.
    """
    if fcntl is None:  # and a folder cannot be opened
        yield False
        return
    with translate_write_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: PathLike) -> bool:
    """Lock an open file or folder; returns whether there are locks here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = os.path.samestat(os.fstat(descriptor), Path(path).stat())
    except (BlockingIOError, FileNotFoundError):
        is_there = False
    except OSError:  # a file system without locks
        return False
    if not is_there:  # or removed by a process that had it until now
        raise UserInputError(
            f"{os.fspath(path)!r} is in use: another process writes there, expected one at a time. Wait until it has ended, or "
            "give another place."
        )
    return True
