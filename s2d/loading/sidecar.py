"""The sidecar `s2d.json` of a model folder: exits and calibration of their confidence."""

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
    """Agreement with the target by confidence, for every exit: fitted on greedy text that the draft was not trained on."""

    confidence: Confidence
    """The kind of confidence that the curves map."""
    curves: tuple[CalibrationCurve | None, ...]
    """One curve per exit, in order, from confidence to the probability that the target agrees. None for an exit without one."""
    targets: tuple[str, ...]
    num_positions: int | None
    """Text positions in the fit of every curve; None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """Facts about a nested checkpoint that its Hugging Face config cannot hold."""

    exit_layers: tuple[int, ...]
    """Rising layer counts; the last one of a draft is its depth."""
    norm: Literal["shared-final-norm"]
    """Every exit uses the model's final norm and head."""
    calibration: Calibration | None
    """None if none was fitted."""
    head_token_ids: tuple[int, ...] | None = None
    """Ids of the tokens in its LM head, in ascending order; None for the whole vocabulary."""

    def __post_init__(self) -> None:
        layers = self.exit_layers
        check_exit_layers(layers)
        if self.calibration is not None and len(self.calibration.curves) != len(layers):
            raise BadPolicy(f"{len(self.calibration.curves)} calibration curves for {len(layers)} exits", "one for every exit")
        tokens = self.head_token_ids
        if tokens is not None and (not tokens or tokens[0] < 0 or list(tokens) != sorted(set(tokens))):
            raise BadPolicy(f"{len(tokens)} tokens for a reduced head", "rising token ids, at least one")


SIDECAR_FILE = FileFormat(
    record=Sidecar,
    schema="s2d/sidecar",
    made_with="s2d-train exits --draft FOLDER --exits LAYERS --overwrite",
)


def read_sidecar(folder: Path) -> Sidecar | None:
    """The sidecar of a model folder; None if it has none.

    Raises:
        BadFile: the sidecar cannot be read.
    """
    path = folder / SIDECAR_NAME
    return SIDECAR_FILE.read(path).record if path.is_file() else None


def write_sidecar(folder: Path, sidecar: Sidecar, provenance: Provenance | None = None) -> None:
    """Write the sidecar of a model folder, completely or not at all. The default provenance is that of this process."""
    SIDECAR_FILE.write(folder / SIDECAR_NAME, sidecar, provenance or make_provenance())
