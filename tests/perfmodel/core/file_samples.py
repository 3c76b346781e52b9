"""A small record, a record with arrays, and their file formats, for tests of the file layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from perfmodel.core.files import ArraysFormat, FileFormat
from perfmodel.core.provenance import Provenance

REMAKE = "Make it again with s2d-test -o FILE."
PROVENANCE = Provenance(
    utc_time="2026-01-31T12:00:00Z",
    tool_version="0.1.0",
    git_commit=None,
    command="s2d-plan --target tiny",
    host="x86_64, 2 cores, Linux",
    device=None,
    driver=None,
    libraries={"python": "3.11.7"},
    seed=None,
    inputs={},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    name: str
    passes: tuple[Pass, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoteWithArrays:
    header: Note
    columns: Mapping[str, np.ndarray]

    @classmethod
    def from_columns(cls, header: Note, columns: Mapping[str, np.ndarray]) -> Self:
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError("columns of different lengths")
        return cls(header=header, columns=columns)


NOTE = Note(name="é\n", passes=(Pass(cost_s=0.1), Pass(cost_s=1e-300)))
ARRAYS = {"confidence": np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2), "token": np.arange(3, dtype=np.int32)}
NOTE_FILE = FileFormat(record=Note, schema="s2d/test", made_with="s2d-test -o FILE")
ARRAYS_FILE = ArraysFormat(record=NoteWithArrays, header=NOTE_FILE, dtypes={"confidence": "float32", "token": "int32"})


def write(path: Path, note: Note = NOTE) -> Path:
    NOTE_FILE.write(path, note, PROVENANCE)
    return path
