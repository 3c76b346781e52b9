"""Reads and writes files, whole or not at all; every error names a fix."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from perfmodel.core.errors import BadFile, OutOfSpace, S2DError
from perfmodel.core.units import Bytes, format_bytes

PathLike: TypeAlias = str | os.PathLike[str]

EVIDENCE_FOLDER = Path(__file__).parents[1] / "evidence"
"""The shipped traces, fits and tables of published speeds."""

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_QUOTED_ERRNO = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""An error of the operating system as quoted by Rust libraries (safetensors, tokenizers) and by `shutil`."""

_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""numpy's whole report of a full disk."""


def as_paths(paths: PathLike | Sequence[PathLike]) -> tuple[Path, ...]:
    """One path or several as a tuple."""
    return (Path(paths),) if isinstance(paths, str | os.PathLike) else tuple(map(Path, paths))


def write_atomically(path: PathLike, data: bytes) -> None:
    """Write the bytes to the path, or leave the path unchanged: write a temporary file beside it, sync, rename.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the folder does not exist, or the path cannot be written.
    """
    with _written_beside(path, data) as (partial, final):
        partial.replace(final)


@contextlib.contextmanager
def atomic_file(path: PathLike) -> Iterator[Path]:
    """Yield the path of a temporary file to fill. It is renamed to the path at the end, or removed after an error.

    This is for content too large for `write_atomically`.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the folder does not exist, or the path cannot be written.
    """
    with _written_beside(path, b"") as (partial, final):
        yield partial
        sync_to_disk(partial)
        partial.replace(final)


def check_writable(path: PathLike) -> None:
    """Refuse a file that cannot be written, before the work that makes its content. The check leaves no file behind.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: it is a folder or a device, its folder does not exist, or its folder is not writable.
    """
    with _written_beside(path, b"\n"):
        pass


@contextlib.contextmanager
def writable_folder(path: PathLike) -> Iterator[None]:
    """Make a folder if it does not exist, and check that files can be written in it. New folders that stay empty are removed.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: it is a file, or cannot be made.
    """
    folder = Path(path)
    new_folders = [candidate for candidate in (folder, *folder.parents) if not candidate.exists()]
    try:
        with translate_write_errors(path):
            if folder.exists() and not folder.is_dir():
                raise BadFile(path, "this is a file, expected a folder", "Give the name of a folder")
            folder.mkdir(parents=True, exist_ok=True)
            _check_writable_folder(folder, path)
        yield
    finally:
        for new_folder in new_folders:
            with contextlib.suppress(OSError):
                new_folder.rmdir()


def _check_writable_folder(folder: Path, path: PathLike) -> None:
    """Refuse a folder in which no file can be written. The message names the path as the user wrote it."""
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
    """Yield a synced temporary file with the bytes, and the final path with links followed. Remove the temporary file."""
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
            with contextlib.suppress(OSError):  # the path itself is invalid
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Yield an empty folder to fill. It is renamed to the path at the end, or removed after an error.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the path exists, its parent folder does not exist, or it cannot be written.
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
    """Refuse a path for a new folder that exists, or whose parent folder does not exist.

    Raises:
        BadFile: one of these.
    """
    final = Path(path).absolute()
    if final.exists() or final.is_symlink():
        raise BadFile(path, "this exists already, expected a new name", "Give another name, or move it away")
    if not final.parent.is_dir():
        raise _write_error(path, FileNotFoundError())


@contextlib.contextmanager
def translate_write_errors(path: PathLike) -> Iterator[None]:
    """Turn errors of the operating system about this path inside the block into our own. Those about other files pass.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the path, a folder above it or a file inside it cannot be written.
    """
    try:
        yield
    except OutOfSpace as err:
        raise OutOfSpace(path) from err
    except Exception as err:
        os_error = find_os_error(err)
        if os_error is None or not _is_about(path, os_error):
            raise
        raise _write_error(path, os_error) from err


def _is_about(path: PathLike, err: OSError) -> bool:
    """Whether an error is about the path, a folder above it, or what is written in or beside it. A full disk always is."""
    if err.errno in NO_SPACE_ERRNOS:
        return True
    finals = (Path(path).absolute(), Path(path).resolve())
    names = [name for name in (err.filename, err.filename2) if isinstance(name, str | bytes)]
    named = [Path(os.fsdecode(name)).absolute() for name in names]
    if isinstance(err, FileNotFoundError) and all(final.parent.is_dir() for final in finals):
        return any(final in named for final in finals)  # not of a file inside that we expected
    return not named or any(_is_related(candidate, final) for candidate in named for final in finals)


def _is_related(candidate: Path, final: Path) -> bool:
    """Whether a path lies at, above, below or beside the final one, or below its partial folder."""
    is_beside = candidate.parent == final.parent or candidate.is_relative_to(_partial_name(final))
    return is_beside or final.is_relative_to(candidate) or candidate.is_relative_to(final)


def find_os_error(err: BaseException) -> OSError | None:
    """The operating system's error that this error is or quotes; None for other errors, and for our own.

    This function alone knows how other libraries report a full disk.
    """
    if isinstance(err, S2DError) or (isinstance(err, OSError) and err.errno is not None):
        return err if isinstance(err, OSError) else None
    if isinstance(err, OSError) and _SHORT_WRITE.fullmatch(str(err)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    quoted = _QUOTED_ERRNO.search(str(err))
    if quoted:
        number = int(quoted[1] or quoted[2])
        return OSError(number, os.strerror(number))
    return err if isinstance(err, OSError) else None


def sync_to_disk(path: Path) -> None:
    """Write a file's content through to the disk. Only this shows that the disk had room for it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_bytes(path: PathLike, *, max_bytes: Bytes | None = None) -> bytes:
    """The bytes of a file.

    Args:
        path: the file.
        max_bytes: refuse a larger file, without reading the rest; None for no limit.

    Raises:
        BadFile: the file does not exist, is a folder or a named pipe, is too large, or may not be read.
    """
    if _is_named_pipe(path):
        raise BadFile(path, "this is a named pipe, expected a file", "Write its output to a file and give that")
    try:
        with Path(path).open("rb") as file:
            data = file.read() if max_bytes is None else file.read(max_bytes + 1)
    except FileNotFoundError as err:
        raise BadFile(path, "no such file", "Check the name") from err
    except IsADirectoryError as err:
        raise BadFile(path, "this is a folder, expected a file", "Give a file inside it") from err
    except ValueError as err:  # a NUL character in the path
        raise BadFile(path, f"this is not a valid file name ({err})", "Check the name") from err
    except OSError as err:
        raise BadFile(path, f"cannot be read: {err.strerror}", "Check that it is a file you may read") from err
    if max_bytes is not None and len(data) > max_bytes:
        raise BadFile(path, f"the file is too large, expected at most {format_bytes(max_bytes)}", "Give a part of it")
    return data


def _is_named_pipe(path: PathLike) -> bool:
    """Whether opening the path would wait for another program. A shell's `<(command)` has no name and does not wait."""
    try:
        real = Path(path).resolve()
        return real.is_fifo() and Path("/dev") not in real.parents
    except (OSError, ValueError):  # an invalid path: opening it raises the error
        return False


def resolve_file(path: PathLike) -> Path:
    """The path of a file with links followed.

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
    if isinstance(err, FileNotFoundError) and Path(path).absolute().parent.is_dir() and not Path(path).is_symlink():
        return BadFile(path, "it does not exist", "Make it first, or give another path")
    if isinstance(err, FileNotFoundError):
        return BadFile(path, "its folder does not exist", "Make the folder first, or give another path")
    return BadFile(path, f"cannot be written: {err.strerror or err}", "Give another path")
