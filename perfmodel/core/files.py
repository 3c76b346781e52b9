"""Read and write every file we make: one envelope, strict, whole or not at all.

JSON:  {"schema": "s2d/plan", "version": 1, "provenance": {…}, "body": {…}}, keys sorted, floats exact, newline at the end.
Arrays: a `.npz` whose member `header.json` is that envelope and whose other members are `NAME.npy`.
The identity of a file is the SHA-256 of its body (and arrays), so it does not change with when or where it was made.
Never pickle. numpy and zipfile are imported only by the functions that need them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from perfmodel.core.codec import DecodeError, decode_record, encode_record, unique_keys
from perfmodel.core.disk import PathLike, read_whole, write_atomically
from perfmodel.core.errors import BadFile
from perfmodel.core.provenance import Provenance

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
Body: TypeAlias = dict[str, Any]
Upgrades: TypeAlias = Mapping[int, Callable[[Body], Body]]
"""By version, the function that turns its body into the next version's."""

_HEADER_MEMBER = "header.json"
_ARRAY_SUFFIX = ".npy"
_ZIP_MAGIC = b"PK"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_ENVELOPE_KEYS = ("body", "provenance", "schema", "version")
_REMAKE = "Make it again with the command that wrote it, or fetch it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Generic[T]):
    """A record as read from its file, with where it came from and the hash that names it."""

    record: T
    provenance: Provenance
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArrays(Generic[T]):
    """A header record and its arrays as read from their file."""

    record: T
    arrays: dict[str, np.ndarray]
    provenance: Provenance
    sha256: str


def record_text(record: object, *, schema: str, version: int, provenance: Provenance) -> str:
    """The file of a record as text: what `--json` prints and `write_record` writes."""
    envelope = {
        "schema": schema,
        "version": version,
        "provenance": encode_record(provenance),
        "body": encode_record(record),
    }
    return json.dumps(envelope, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_record(path: PathLike, record: object, *, schema: str, version: int, provenance: Provenance) -> None:
    """Write a record as JSON, whole or not at all.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the folder does not exist, or the path cannot be written.
        ValueError: the record holds something that no file of ours may hold.
    """
    text = record_text(record, schema=schema, version=version, provenance=provenance)
    write_atomically(path, text.encode())


def read_record(path: PathLike, cls: type[T], *, schema: str, version: int, upgrades: Upgrades | None = None) -> Stored[T]:
    """Read a record back.

    Args:
        path: a file that `write_record` wrote.
        cls: the record expected in the body.
        schema: the schema expected.
        version: the version this code writes; older files are upgraded step by step.
        upgrades: see `Upgrades`.

    Raises:
        BadFile: anything but a whole file of this schema; says what it is and what to do.
    """
    envelope, _ = _read_envelope(path, schema=schema, version=version)
    record, provenance = _decode_envelope(path, envelope, cls, version=version, upgrades=upgrades or {})
    return Stored(record=record, provenance=provenance, sha256=_body_sha256(envelope["body"]))


def write_arrays(
    path: PathLike,
    record: object,
    arrays: Mapping[str, np.ndarray],
    *,
    schema: str,
    version: int,
    provenance: Provenance,
) -> None:
    """Write a header record and arrays as `.npz`, whole or not at all; the same content gives the same bytes.

    Raises:
        OutOfSpace: the disk is full.
        BadFile: the folder does not exist, or the path cannot be written.
        ValueError: an array of objects, or NaN or infinity among floats.
    """
    import zipfile

    members = {_HEADER_MEMBER: record_text(record, schema=schema, version=version, provenance=provenance).encode()}
    for name, array in sorted(arrays.items()):
        members[name + _ARRAY_SUFFIX] = _array_bytes(name, array)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=_ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    write_atomically(path, buffer.getvalue())


def read_arrays(
    path: PathLike, cls: type[T], *, schema: str, version: int, since: Mapping[str, int], upgrades: Upgrades | None = None
) -> StoredArrays[T]:
    """Read a header record and its arrays back.

    Args:
        path: a file that `write_arrays` wrote.
        cls: the record expected in the header.
        schema: the schema expected.
        version: the version this code writes; older headers are upgraded step by step.
        since: the arrays expected, no more and no fewer, each with the first version that has it. Shapes and types are for
            the caller to check.
        upgrades: see `Upgrades`.

    Raises:
        BadFile: anything but a whole file of this schema; says what it is and what to do.
    """
    envelope, members = _read_envelope(path, schema=schema, version=version)
    record, provenance = _decode_envelope(path, envelope, cls, version=version, upgrades=upgrades or {})
    found = {name.removesuffix(_ARRAY_SUFFIX): data for name, data in members.items()}
    expected = {name for name, first in since.items() if first <= envelope["version"]}
    if set(found) != expected:
        problem = f"expected the arrays {', '.join(sorted(expected))}, found {', '.join(sorted(found)) or 'none'}"
        raise BadFile(path, problem, _REMAKE)
    arrays = {name: _array_from_bytes(path, name, found[name]) for name in sorted(found)}
    digest = _arrays_sha256(envelope["body"], found)
    return StoredArrays(record=record, arrays=arrays, provenance=provenance, sha256=digest)


def with_keys(told: Mapping[str, object], body: Body, *, beside: str) -> Body:
    """An older file's body with some keys for every record in it that lacks them.

    Args:
        told: the keys, and what was understood where they were not told.
        body: of the file.
        beside: a key by which such records are known.
    """

    def with_told(value: Any) -> Any:
        if isinstance(value, list):
            return [with_told(one) for one in value]
        return with_keys(told, value, beside=beside) if isinstance(value, dict) else value

    upgraded = {key: with_told(value) for key, value in body.items()}
    return {**told, **upgraded} if beside in body else upgraded


def _read_envelope(path: PathLike, *, schema: str, version: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The envelope of a file of either form, with the other members when it is an archive."""
    data = read_whole(path)
    members = _archive_members(path, data) if data.startswith(_ZIP_MAGIC) else {_HEADER_MEMBER: data}
    if _HEADER_MEMBER not in members:
        raise BadFile(path, f"this archive has no {_HEADER_MEMBER}, expected an {schema}", "Give a file that s2d wrote")
    envelope = _parse_json(path, members.pop(_HEADER_MEMBER))
    _check_envelope(path, envelope, schema=schema, version=version)
    return envelope, members


def _archive_members(path: PathLike, data: bytes) -> dict[str, bytes]:
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as err:
        raise BadFile(path, f"the archive is truncated or damaged ({err})", _REMAKE) from err


def _parse_json(path: PathLike, data: bytes) -> Any:
    if not data.strip():
        raise BadFile(path, "the file is empty", _REMAKE)
    try:
        return json.loads(data.decode(), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as err:
        raise BadFile(path, "this is not a text file, expected JSON", "Give a file that s2d wrote") from err
    except (ValueError, RecursionError) as err:
        raise BadFile(path, f"the file is truncated or is not JSON ({err})", _REMAKE) from err


def _check_envelope(path: PathLike, envelope: Any, *, schema: str, version: int) -> None:
    """Refuse what is not ours, of another schema, or newer than this code."""
    if not isinstance(envelope, dict) or tuple(sorted(envelope)) != _ENVELOPE_KEYS:
        problem = f"this is no file of s2d, expected an object with the keys {', '.join(_ENVELOPE_KEYS)}"
        raise BadFile(path, problem, f"Give an {schema} file")
    if envelope["schema"] != schema:
        raise BadFile(path, f"this is an {envelope['schema']}, expected {schema}", f"Give an {schema} file")
    found = envelope["version"]
    if type(found) is not int or found < 1:
        raise BadFile(path, f"version {found!r} is no version, expected a whole number from 1 to {version}", _REMAKE)
    if found > version:
        problem = f"{schema} version {found} was written by a newer s2d, this one reads up to version {version}"
        raise BadFile(path, problem, "Upgrade with pip install -U s2d")


def _decode_envelope(
    path: PathLike, envelope: dict[str, Any], cls: type[T], *, version: int, upgrades: Upgrades
) -> tuple[T, Provenance]:
    body = envelope["body"]
    for step in range(envelope["version"], version):
        if step not in upgrades:
            raise BadFile(path, f"{envelope['schema']} version {step} is too old to be read", _REMAKE)
        try:
            body = upgrades[step](body)
        except (KeyError, TypeError) as err:
            raise BadFile(path, f"no whole {envelope['schema']} of version {step} ({err!r})", _REMAKE) from err
    try:
        return decode_record(body, cls), decode_record(envelope["provenance"], Provenance, "provenance")
    except DecodeError as err:
        raise BadFile(path, str(err), _REMAKE) from err


def record_sha256(record: object) -> str:
    """The hash that names a record, whether or not it was written to a file."""
    return _body_sha256(encode_record(record))


def _body_sha256(body: Any) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def _arrays_sha256(body: Any, members: Mapping[str, bytes]) -> str:
    """Hash of the header body and, in the order of their names, of each array with its name, type and shape."""
    digest = hashlib.sha256(_canonical(body))
    for name, data in sorted(members.items()):
        digest.update(f"\n{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _array_bytes(name: str, array: np.ndarray) -> bytes:
    """The `.npy` form, little-endian and in C order whatever the array's own layout."""
    import numpy as np

    _check_finite(name, array)
    canonical = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, canonical, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _array_from_bytes(path: PathLike, name: str, data: bytes) -> np.ndarray:
    import numpy as np

    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        _check_finite(name, array)
    except (ValueError, EOFError) as err:
        raise BadFile(path, f"arrays[{name!r}]: {err}", _REMAKE) from err
    return array


def _check_finite(name: str, array: np.ndarray) -> None:
    import numpy as np

    if array.dtype.kind not in "biufSU":
        raise ValueError(f"array {name!r} is of {array.dtype}, expected numbers or text")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"array {name!r} holds {array[place]} at {place}, expected finite numbers")
