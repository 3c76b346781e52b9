"""Bytes to and from the disk: whole or not at all, every failure a message that says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from perfmodel.core.errors import BadFile, OutOfSpace, S2DError
from perfmodel.core.units import Bytes, format_bytes

PathLike: TypeAlias = str | os.PathLike[str]

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_QUOTED_ERRNO = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""How libraries written in Rust (safetensors, tokenizers), and `shutil`, quote an error of the operating system's."""


def write_atomically(path: PathLike, data: bytes) -> None:
    """Put the bytes at the path, or leave the path as it was: a temporary file beside it, synced, then renamed.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the folder does not exist, or the path cannot be written.
    """
    with _written_beside(path, data) as (partial, final):
        partial.replace(final)


def check_writable(path: PathLike) -> None:
    """Refuse, before the work that fills it, a file that could not be written after it; leaves nothing behind.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: it is a folder or a device, its folder does not exist, or nothing may be made in there.
    """
    with _written_beside(path, b"\n"):
        pass


@contextlib.contextmanager
def writable_folder(path: PathLike) -> Iterator[None]:
    """A folder that files can be written in, made where it is not there yet; what was made and stays empty goes again.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: it is a file, or cannot be made.
    """
    folder = Path(path)
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        with translate_write_errors(path):
            if folder.exists() and not folder.is_dir():
                raise BadFile(path, "this is a file, expected a folder", "Give the name of a folder")
            folder.mkdir(parents=True, exist_ok=True)
            _check_place(folder, path)
        yield
    finally:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()


def _check_place(folder: Path, path: PathLike) -> None:
    """Refuse a folder in which no file can be made; the message names the path as it was given."""
    file = folder / f".{os.getpid()}.partial"
    with translate_write_errors(path):
        try:
            with file.open("wb") as opened:
                opened.write(b"\n")
                opened.flush()
                os.fsync(opened.fileno())
        finally:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def _written_beside(path: PathLike, data: bytes) -> Iterator[tuple[Path, Path]]:
    """The bytes in a temporary file beside a file's path, synced, and that path, links followed; the temporary one goes."""
    with translate_write_errors(path):
        final = resolve_file(path)
        partial = _partial_name(final)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield partial, final
        finally:
            with contextlib.suppress(OSError):  # of a path that cannot even be looked up
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Hands out an empty folder to fill; when it is left without an error it becomes the path, else nothing is there.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: there is something at the path, its folder does not exist, or it cannot be written.
    """
    import shutil

    check_new_folder(path)
    final = Path(path).absolute()
    partial = _partial_name(final)
    try:
        with translate_write_errors(path):
            partial.mkdir()
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    sync_to_disk(file)
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(path: PathLike) -> None:
    """Refuse a place for a new folder where there is something already, or that is in no folder.

    Raises:
        BadFile: says which.
    """
    final = Path(path).absolute()
    if final.exists() or final.is_symlink():
        raise BadFile(path, "exists already, expected a new name", "Give another one, or move this away")
    if not final.parent.is_dir():
        raise _write_error(path, FileNotFoundError())


@contextlib.contextmanager
def translate_write_errors(path: PathLike) -> Iterator[None]:
    """Whatever is written inside is part of the path: where the operating system refuses, it says so of the path.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: anything else of the operating system's.
    """
    try:
        yield
    except OutOfSpace as err:
        raise OutOfSpace(path) from err
    except Exception as err:
        found = find_os_error(err)
        if found is None:
            raise
        raise _write_error(path, found) from err


def find_os_error(err: BaseException) -> OSError | None:
    """The operating system's error that this one is, or quotes; None for any other, and for those that are ours already.

    The one place that knows how other libraries tell of a full disk.
    """
    if isinstance(err, S2DError) or (isinstance(err, OSError) and err.errno is not None):
        return err if isinstance(err, OSError) else None
    quoted = _QUOTED_ERRNO.search(str(err))
    if quoted:
        number = int(quoted[1] or quoted[2])
        return OSError(number, os.strerror(number))
    return err if isinstance(err, OSError) else None


def sync_to_disk(path: Path) -> None:
    """Have the disk take a written file: only then is it known to have had room."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_bytes(path: PathLike, *, max_bytes: Bytes | None = None) -> bytes:
    """The bytes of a file.

    Args:
        path: of the file.
        max_bytes: refuse a larger one, unread beyond that; None for no limit.

    Raises:
        BadFile: there is no such file, it is a folder or a named pipe, too large, or it may not be read.
    """
    if _is_named_pipe(path):
        raise BadFile(path, "this is a named pipe, expected a file", "Write what comes out of it to a file, and give that")
    try:
        with Path(path).open("rb") as file:
            data = file.read() if max_bytes is None else file.read(max_bytes + 1)
    except FileNotFoundError as err:
        raise BadFile(path, "no such file", "Check the name") from err
    except IsADirectoryError as err:
        raise BadFile(path, "this is a folder, expected a file", "Give a file inside it") from err
    except ValueError as err:  # a NUL character in the path
        raise BadFile(path, f"no file can have this name ({err})", "Check the name") from err
    except OSError as err:
        raise BadFile(path, f"cannot be read: {err.strerror}", "Check that it is a file you may read") from err
    if max_bytes is not None and len(data) > max_bytes:
        problem = f"larger than {format_bytes(max_bytes)}, the most that is read"
        raise BadFile(path, problem, "Give the part of it that is needed")
    return data


def _is_named_pipe(path: PathLike) -> bool:
    """Whether opening a path would wait for another program; a shell's `<(command)`, which has no name, does not."""
    try:
        real = Path(path).resolve()
        return real.is_fifo() and Path("/dev") not in real.parents
    except (OSError, ValueError):  # no path; opening it says why
        return False


def resolve_file(path: PathLike) -> Path:
    """A file's path with links followed.

    Raises:
        BadFile: it is a folder or a device.
    """
    final = Path(path).resolve()
    if final.exists() and not final.is_file():
        raise BadFile(path, "this is a folder or a device, expected a file", "Give the name of a file")
    return final


def _partial_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.{os.getpid()}.partial")


def _write_error(path: PathLike, err: OSError) -> BadFile | OutOfSpace:
    if err.errno in NO_SPACE_ERRNOS:
        return OutOfSpace(path)
    if isinstance(err, FileNotFoundError):
        return BadFile(path, "its folder does not exist", "Make the folder first, or give another place")
    return BadFile(path, f"cannot be written: {err.strerror or err}", "Give another place")
