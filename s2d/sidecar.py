"""`s2d.json` beside a model's config.json: which layers it may answer after, and how far its confidence can be trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perfmodel.artifact import read_record, write_record
from perfmodel.errors import BadPolicy
from perfmodel.policy import CalibrationCurve
from perfmodel.provenance import make_provenance

SIDECAR_NAME = "s2d.json"
SIDECAR_SCHEMA = "s2d/sidecar"
SIDECAR_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What a nested checkpoint needs besides a Hugging Face config."""

    exit_layers: tuple[int, ...]
    """Rising layer counts; a draft's last is its depth."""
    norm: Literal["shared-final-norm"]
    """Every exit goes through the model's final norm and head."""
    calibration: tuple[CalibrationCurve, ...] | None
    """One curve per exit, in order; None when none was fitted."""

    def __post_init__(self) -> None:
        layers = self.exit_layers
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
            raise BadPolicy(f"exit layers {layers!r}", "rising layer counts, the first at least 1")
        if self.calibration is not None and len(self.calibration) != len(layers):
            raise BadPolicy(f"{len(self.calibration)} calibration curves for {len(layers)} exits", "one for every exit")


def read_sidecar(folder: Path) -> Sidecar | None:
    """The sidecar of a model folder; None where there is none.

    Raises:
        BadFile: there is one that cannot be understood.
    """
    path = folder / SIDECAR_NAME
    if not path.is_file():
        return None
    return read_record(path, Sidecar, schema=SIDECAR_SCHEMA, version=SIDECAR_VERSION).record


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Write the sidecar of a model folder, whole or not at all."""
    provenance = make_provenance()
    write_record(folder / SIDECAR_NAME, sidecar, schema=SIDECAR_SCHEMA, version=SIDECAR_VERSION, provenance=provenance)
