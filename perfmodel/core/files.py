"""Read and write the project's files: one envelope, checked strictly.

Files are written whole or not at all.

JSON:   {"schema": "s2d/plan", "version": 1, "provenance": {…}, "body": {…}}, keys sorted, floats exact, newline at the end.
Arrays: a `.npz` archive. Its member `header.json` is that envelope, its other members are `NAME.npy`.
The identity of a file is the SHA-256 of its body (and arrays), so it does not depend on when or where the file was made.
Nothing is pickled. numpy and zipfile are imported only by the functions that need them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from perfmodel.core.codec import DecodeError, decode_record, encode_record, unique_keys
from perfmodel.core.disk import PathLike, read_bytes, write_atomically
from perfmodel.core.errors import BadFile, quoted
from perfmodel.core.provenance import Provenance

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

_HEADER_MEMBER = "header.json"
_ARRAY_SUFFIX = ".npy"
_ZIP_MAGIC = b"PK"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_ENVELOPE_KEYS = ("body", "provenance", "schema", "version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Generic[T]):
    """A record as read from its file, with the file's provenance and the hash of its content."""

    record: T
    provenance: Provenance
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat(Generic[T]):
    """The JSON file of one kind of record.

    ```python
    PLAN_FILE = FileFormat(record=Plan, schema="s2d/plan", made_with="s2d-plan -o FILE")
    PLAN_FILE.write("plan.json", plan, make_provenance())
    plan = PLAN_FILE.read("plan.json").record
    ```
    """

    record: type[T]
    """Class of the body."""
    schema: str
    """Name of the format, such as `s2d/plan`."""
    made_with: str
    """The command that writes such files. Messages about files that cannot be read name it."""
    version: int = 1
    """The only version that is read and written. Nothing has been released yet, so no older one exists."""

    def text(self, record: T, provenance: Provenance) -> str:
        """The file as text, as `write` writes it and `--json` prints it.

        Raises:
            ValueError: a field of the record has no JSON form, such as NaN.
        """
        envelope = {
            "schema": self.schema,
            "version": self.version,
            "provenance": encode_record(provenance),
            "body": encode_record(record),
        }
        return json.dumps(envelope, indent=1, sort_keys=True, allow_nan=False) + "\n"

    def write(self, path: PathLike, record: T, provenance: Provenance) -> None:
        """Write the record, whole or not at all.

        Raises:
            OutOfSpace: the disk is full.
            BadFile: the folder does not exist, or the path cannot be written.
            ValueError: a field of the record has no JSON form, such as NaN.
        """
        write_atomically(path, self.text(record, provenance).encode())

    def read(self, path: PathLike) -> Stored[T]:
        """Read a record back.

        Raises:
            BadFile: the path does not hold a complete file of this schema and version.
        """
        contents = _read_contents(path, self)
        sha256 = hashlib.sha256(_canonical(contents.body)).hexdigest()
        return Stored(record=contents.record, provenance=contents.provenance, sha256=sha256)

    def unreadable(self, path: PathLike, problem: str) -> BadFile:
        """The error for a file with this problem."""
        return BadFile(path, problem, f"Make it again with {self.made_with}")

    def other(self, path: PathLike, problem: str) -> BadFile:
        """The error for a file of another kind."""
        return BadFile(path, problem, f"Give an {self.schema} file, written by {self.made_with}")


class RecordWithArrays(Protocol):
    """A record that consists of a header and named arrays."""

    @property
    def header(self) -> Any:
        """The part that is stored as JSON."""

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """The arrays by name."""

    @classmethod
    def from_columns(cls, header: Any, columns: Mapping[str, np.ndarray]) -> Self:
        """The record with this header and these arrays.

        Raises:
            ValueError: they do not fit together.
        """


A = TypeVar("A", bound=RecordWithArrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraysFormat(Generic[A]):
    """The `.npz` file of one kind of record with arrays."""

    record: type[A]
    header: FileFormat[Any]
    """Format of the member `header.json`; its schema, version and command are those of the whole file."""
    dtypes: Mapping[str, str]
    """numpy dtype of every array, by name. A file holds exactly these arrays."""

    def write(self, path: PathLike, record: A, provenance: Provenance) -> None:
        """Write header and arrays, whole or not at all; the same content gives the same bytes.

        Raises:
            OutOfSpace: the disk is full.
            BadFile: the folder does not exist, or the path cannot be written.
            ValueError: an array of objects, or NaN or infinity among floats.
        """
        import zipfile

        members = {_HEADER_MEMBER: self.header.text(record.header, provenance).encode()}
        for name, array in sorted(record.columns.items()):
            members[name + _ARRAY_SUFFIX] = _array_bytes(name, array.astype(self.dtypes[name]))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members.items():
                info = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, data)
        write_atomically(path, buffer.getvalue())

    def read(self, path: PathLike) -> Stored[A]:
        """Read header and arrays back.

        Raises:
            BadFile: the path does not hold a complete file of this schema and version, or its arrays do not fit its header.
        """
        contents = _read_contents(path, self.header)
        members = {name.removesuffix(_ARRAY_SUFFIX): data for name, data in contents.members.items()}
        if set(members) != set(self.dtypes):
            expected, actual = (", ".join(sorted(names)) or "none" for names in (self.dtypes, members))
            raise self.header.unreadable(path, f"it holds the arrays {actual}: expected {expected}")
        try:
            columns = {name: _array_from_bytes(name, members[name], self.dtypes[name]) for name in sorted(members)}
            record = self.record.from_columns(contents.record, columns)
        except ValueError as err:
            raise self.header.unreadable(path, str(err)) from err
        return Stored(record=record, provenance=contents.provenance, sha256=_arrays_sha256(contents.body, members))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """A file taken apart: the decoded envelope, the body before decoding, and the other members of an archive."""

    record: Any
    provenance: Provenance
    body: Any
    members: dict[str, bytes]


def _read_contents(path: PathLike, file_format: FileFormat[Any]) -> _Contents:
    """Read and check a file of either form. Both are parsed, because the message for the wrong form names its schema."""
    data = read_bytes(path)
    members = _archive_members(path, data, file_format) if data.startswith(_ZIP_MAGIC) else {_HEADER_MEMBER: data}
    if _HEADER_MEMBER not in members:
        raise file_format.other(path, f"s2d did not write this archive, expected a member {_HEADER_MEMBER}")
    envelope = _parse_json(path, members.pop(_HEADER_MEMBER), file_format)
    _check_envelope(path, envelope, file_format)
    try:
        record = decode_record(envelope["body"], file_format.record)
        provenance = decode_record(envelope["provenance"], Provenance, "provenance")
    except DecodeError as err:
        raise file_format.unreadable(path, str(err)) from err
    return _Contents(record=record, provenance=provenance, body=envelope["body"], members=members)


def file_schema(path: PathLike) -> str | None:
    """The schema that a JSON file states; None if it is no file of this project.

    Raises:
        BadFile: the path cannot be read.
    """
    try:
        envelope = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        return None
    schema = envelope.get("schema") if isinstance(envelope, dict) else None
    return schema if isinstance(schema, str) else None


def record_sha256(record: object) -> str:
    """The hash of a record's content, equal to the hash that `FileFormat.read` returns for its file."""
    return hashlib.sha256(_canonical(encode_record(record))).hexdigest()


def _archive_members(path: PathLike, data: bytes, file_format: FileFormat[Any]) -> dict[str, bytes]:
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as err:
        raise file_format.unreadable(path, f"the archive is truncated or damaged ({err})") from err


def _parse_json(path: PathLike, data: bytes, file_format: FileFormat[Any]) -> Any:
    if not data.strip():
        raise file_format.unreadable(path, "the file is empty")
    try:
        return json.loads(data.decode(), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as err:
        raise file_format.other(path, "this is not a text file, expected JSON") from err
    except (ValueError, RecursionError) as err:
        raise file_format.unreadable(path, f"the file is truncated or is not JSON ({err})") from err


def _check_envelope(path: PathLike, envelope: Any, file_format: FileFormat[Any]) -> None:
    """Refuse a file that s2d did not write, that has another schema, or that has another version."""
    schema, version = file_format.schema, file_format.version
    if not isinstance(envelope, dict) or tuple(sorted(envelope)) != _ENVELOPE_KEYS:
        keys = ", ".join(_ENVELOPE_KEYS)
        raise file_format.other(path, f"s2d did not write this file, expected an object with the keys {keys}")
    if envelope["schema"] != schema:
        raise file_format.other(path, f"this is a file of schema {quoted(envelope['schema'])}, expected {schema!r}")
    if type(envelope["version"]) is not int or envelope["version"] != version:
        raise file_format.unreadable(path, f"this {schema} file has version {quoted(envelope['version'])}, expected {version}")


def _arrays_sha256(body: Any, members: Mapping[str, bytes]) -> str:
    """Hash of the header's body and, in the order of their names, of each array with its name, dtype and shape."""
    digest = hashlib.sha256(_canonical(body))
    for name, data in sorted(members.items()):
        digest.update(f"\n{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _array_bytes(name: str, array: np.ndarray) -> bytes:
    """The `.npy` form, always little-endian and in C order."""
    import numpy as np

    _check_finite(name, array)
    canonical = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, canonical, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _array_from_bytes(name: str, data: bytes, dtype: str) -> np.ndarray:
    import numpy as np

    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as err:
        raise ValueError(f"array {name!r}: {err}") from err
    if array.dtype != dtype:
        raise ValueError(f"array {name!r} has dtype {array.dtype}, expected {dtype}")
    _check_finite(name, array)
    return array


def _check_finite(name: str, array: np.ndarray) -> None:
    import numpy as np

    if array.dtype.kind not in "biufSU":
        raise ValueError(f"array {name!r} has dtype {array.dtype}, expected numbers or text")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"array {name!r} holds {array[index]} at {index}, expected finite numbers")
