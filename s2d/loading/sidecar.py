"""`s2d.json` beside a model's config.json: which layers it may answer after, and how far its confidence can be trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perfmodel.core.errors import BadPolicy
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import Provenance, make_provenance
from perfmodel.models.config_file import SIDECAR_NAME
from perfmodel.models.geometry import check_exit_layers
from perfmodel.policies.policy import CalibrationCurve, Confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What each exit's confidence is worth, as fitted on greedy text of these targets that the draft was not trained on."""

    confidence: Confidence
    """The kind of confidence that the curves start from."""
    curves: tuple[CalibrationCurve | None, ...]
    """One per exit, in order: from confidence to the probability that the target agrees. None for an exit without one."""
    targets: tuple[str, ...]
    num_positions: int | None
    """Positions that every curve was fitted to; None where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What a nested checkpoint needs besides a Hugging Face config."""

    exit_layers: tuple[int, ...]
    """Rising layer counts; a draft's last is its depth."""
    norm: Literal["shared-final-norm"]
    """Every exit goes through the model's final norm and head."""
    calibration: Calibration | None
    """None when none was fitted."""
    num_head_tokens: tuple[int, ...] | None = None
    """Rising ids of the tokens that its LM head is to say; None for all."""

    def __post_init__(self) -> None:
        layers = self.exit_layers
        check_exit_layers(layers)
        if self.calibration is not None and len(self.calibration.curves) != len(layers):
            raise BadPolicy(f"{len(self.calibration.curves)} calibration curves for {len(layers)} exits", "one for every exit")
        said = self.num_head_tokens
        if said is not None and (not said or said[0] < 0 or list(said) != sorted(set(said))):
            raise BadPolicy(f"{len(said)} tokens for a reduced head", "rising token ids, at least one")


SIDECAR_FILE = FileFormat(
    record=Sidecar,
    schema="s2d/sidecar",
    made_with="s2d-train exits --draft FOLDER --exits LAYERS --overwrite",
)


def read_sidecar(folder: Path) -> Sidecar | None:
    """The sidecar of a model folder; None where there is none.

    Raises:
        BadFile: the file is there and not readable.
    """
    path = folder / SIDECAR_NAME
    return SIDECAR_FILE.read(path).record if path.is_file() else None


def write_sidecar(folder: Path, sidecar: Sidecar, provenance: Provenance | None = None) -> None:
    """Write the sidecar of a model folder, whole or not at all; without a provenance, with that of this process."""
    SIDECAR_FILE.write(folder / SIDECAR_NAME, sidecar, provenance or make_provenance())
