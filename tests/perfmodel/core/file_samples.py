"""A small record, its arrays and their files, for tests of what all our files share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfmodel.core.files import write_record
from perfmodel.core.provenance import Provenance

SCHEMA = "s2d/test"
REMAKE = "Make it again with the command that wrote it, or fetch it again."
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


NOTE = Note(name="é\n", passes=(Pass(cost_s=0.1), Pass(cost_s=1e-300)))
ARRAYS = {"confidence": np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2), "token": np.arange(3, dtype=np.int32)}


def write(path: Path, record: Any = NOTE, version: int = 1, schema: str = SCHEMA) -> Path:
    write_record(path, record, schema=schema, version=version, provenance=PROVENANCE)
    return path
