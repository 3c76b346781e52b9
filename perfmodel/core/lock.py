"""Locks for files and folders that one process at a time may write to.

The lock belongs to the open file: the operating system releases it when the process ends for any reason. No lock file remains.
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
    """Lock a file against our other processes. A missing file is made, and removed at the end if it is still empty.

    Yields whether the file is locked: some file systems and operating systems have no locks.

    Raises:
        UserInputError: another process holds the lock.
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
    """Lock a folder against our other processes; see `locked_file`.

    Raises:
        UserInputError: another process holds the lock.
        BadFile: the folder does not exist, or cannot be read.
    """
    if fcntl is None:  # such systems cannot open a folder either
        yield False
        return
    with translate_write_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: PathLike) -> bool:
    """Lock an open file or folder; returns whether the system has locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(descriptor), Path(path).stat())
    except (BlockingIOError, FileNotFoundError):
        is_ours = False
    except OSError:  # a file system without locks
        return False
    if not is_ours:  # locked, or just removed, by another process
        raise UserInputError(
            f"{os.fspath(path)!r} is in use by another process, expected one process at a time. Wait until it has ended, or "
            "give another path."
        )
    return True
