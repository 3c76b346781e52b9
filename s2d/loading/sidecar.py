"""`s2d.json` beside a model's config.json: which layers it may answer after, and how far its confidence can be trusted."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perfmodel.core.errors import BadFile, BadPolicy
from perfmodel.core.files import Body, read_record, write_record
from perfmodel.core.provenance import Provenance, make_provenance
from perfmodel.models.config_file import SIDECAR_NAME
from perfmodel.models.geometry import check_exit_layers
from perfmodel.policies.policy import CalibrationCurve, Confidence

SIDECAR_SCHEMA = "s2d/sidecar"
SIDECAR_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What each exit's confidence is worth, as fitted on greedy text of these targets that the draft was not trained on."""

    confidence: Confidence
    """The kind of confidence that the curves start from."""
    curves: tuple[CalibrationCurve | None, ...]
    """One per exit, in order: from confidence to the probability that the target agrees. None for an exit without one."""
    targets: tuple[str, ...]
    num_positions: int | None
    """Positions that every curve was fitted to; None in files that did not say."""


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


def _with_whole_calibration(body: Body) -> Body:
    """Version 1 had bare curves, of the largest probability."""
    curves = body.get("calibration")
    if curves is None:
        return body
    return body | {"calibration": {"confidence": "max-prob", "curves": curves, "targets": [], "num_positions": None}}


def _with_whole_head(body: Body) -> Body:
    """Version 2 knew of no reduced heads."""
    return body | {"num_head_tokens": None}


_UPGRADES = {1: _with_whole_calibration, 2: _with_whole_head}


def read_sidecar(folder: Path) -> Sidecar | None:
    """The sidecar of a model folder; None where there is none.

    Raises:
        BadFile: there is one that cannot be understood.
    """
    path = folder / SIDECAR_NAME
    if not path.is_file():
        return None
    try:
        return read_record(path, Sidecar, schema=SIDECAR_SCHEMA, version=SIDECAR_VERSION, upgrades=_UPGRADES).record
    except BadFile as err:
        err.add_note(f"This writes a right one: s2d-train exits --draft {shlex.quote(str(folder))} --exits LAYERS --overwrite")
        raise


def write_sidecar(folder: Path, sidecar: Sidecar, provenance: Provenance | None = None) -> None:
    """Write the sidecar of a model folder, whole or not at all; without a provenance, with that of this process."""
    provenance = provenance or make_provenance()
    write_record(folder / SIDECAR_NAME, sidecar, schema=SIDECAR_SCHEMA, version=SIDECAR_VERSION, provenance=provenance)
