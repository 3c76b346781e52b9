"""A metrics file as text taken apart: JSON objects, or Prometheus samples."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.engine_metrics.fields import FIX, Fields
from calibrate.engine_metrics.prometheus import Snapshot, parse_snapshot
from perfmodel.core.codec import unique_keys
from perfmodel.core.disk import PathLike, read_bytes
from perfmodel.core.errors import BadFile, one_line

MAX_BYTES = 512 * 2**20
"""A benchmark of ten thousand requests with every latency between tokens takes some hundred megabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsFile:
    """One file, in one of two forms."""

    path: Path
    sha256: str
    objects: tuple[Fields, ...] = ()
    """The JSON object, or the objects of a list or of the lines; empty for Prometheus text."""
    snapshot: Snapshot | None = None
    """The samples of Prometheus text; None for JSON."""

    @property
    def first(self) -> Fields:
        """The first object; an empty one for Prometheus text."""
        return self.objects[0] if self.objects else Fields(path=self.path, where="", values={})

    @property
    def keys(self) -> list[str]:
        """The first keys of the first object, or the first names of samples, for messages."""
        names = list(self.first.values) if self.snapshot is None else [sample.name for sample in self.snapshot.samples]
        return list(dict.fromkeys(names))


def read_metrics_file(path: PathLike) -> MetricsFile:
    """Read a file of JSON, JSON lines or Prometheus text.

    Raises:
        BadFile: the file is missing, empty, too large, truncated, or none of the three.
    """
    data = read_bytes(path, max_bytes=MAX_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise BadFile(path, "this is not a text file, expected JSON or Prometheus text", FIX) from err
    if not text.strip():
        raise BadFile(path, "the file is empty, expected JSON or Prometheus text", FIX)
    if text.lstrip()[0] in "{[":
        return MetricsFile(path=Path(path), sha256=sha256, objects=_objects(Path(path), text))
    return MetricsFile(path=Path(path), sha256=sha256, snapshot=parse_snapshot(Path(path), text))


def _objects(path: Path, text: str) -> tuple[Fields, ...]:
    """The objects of one JSON value, or of one value a line."""
    # Not splitlines: texts in answers hold other line separators, which JSON leaves unescaped.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and _is_json(lines[0][1]):
        return tuple(_object(path, f"line {number}", _parse(path, f"line {number}", line)) for number, line in lines)
    value = _parse(path, "", text)
    if isinstance(value, list):
        return tuple(_object(path, f"item {number}", item) for number, item in enumerate(value, 1))
    return (_object(path, "", value),)


def _is_json(line: str) -> bool:
    """Whether a line is complete JSON, as the first line of JSON lines is."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as err:
        place = f"{where} is" if where else "the file is"
        raise BadFile(path, f"{place} truncated or not JSON ({one_line(err)})", FIX) from err


def _object(path: Path, where: str, value: Any) -> Fields:
    if not isinstance(value, dict):
        place = f"{where} is" if where else "the file is"
        raise BadFile(path, f"{place} {type(value).__name__}, expected a JSON object", FIX)
    return Fields(path=path, where=where, values=value)
