"""Bytes to and from the disk: whole or not at all, every failure a message that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TypeAlias

from perfmodel.errors import BadFile, OutOfSpace

PathLike: TypeAlias = str | os.PathLike[str]

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: PathLike, data: bytes) -> None:
    """Put the bytes at the path, or leave the path as it was: a temporary file beside it, synced, then renamed.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the folder does not exist, or the path cannot be written.
    """
    final = Path(path).resolve()
    if final.exists() and not final.is_file():
        raise BadFile(path, "this is a folder or a device, expected a file", "Give the name of a file")
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(final)
    except OSError as err:
        raise _write_error(path, err) from err
    finally:
        partial.unlink(missing_ok=True)


def read_whole(path: PathLike) -> bytes:
    """The bytes of a file.

    Raises:
        BadFile: there is no such file, it is a folder, or it may not be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as err:
        raise BadFile(path, "no such file", "Check the name") from err
    except IsADirectoryError as err:
        raise BadFile(path, "this is a folder, expected a file", "Give a file inside it") from err
    except OSError as err:
        raise BadFile(path, f"cannot be read: {err.strerror}", "Check that it is a file you may read") from err


def _write_error(path: PathLike, err: OSError) -> BadFile | OutOfSpace:
    if err.errno in NO_SPACE_ERRNOS:
        return OutOfSpace(path)
    if isinstance(err, FileNotFoundError):
        return BadFile(path, "its folder does not exist", "Make the folder first, or give another place")
    return BadFile(path, f"cannot be written: {err.strerror}", "Give another place")
