"""The sidecar `s2d.json` of a model folder: its exits and the calibration of their confidence."""

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
    """None without a fit."""
    num_head_tokens: tuple[int, ...] | None = None
    """Rising ids of the tokens in its LM head; None for the whole vocabulary."""

    def __post_init__(self) -> None:
        layers = self.exit_layers
        check_exit_layers(layers)
        if self.calibration is not None and len(self.calibration.curves) != len(layers):
            raise BadPolicy(f"{len(self.calibration.curves)} calibration curves for {len(layers)} exits", "one for every exit")
        tokens = self.num_head_tokens
        if tokens is not None and (not tokens or tokens[0] < 0 or list(tokens) != sorted(set(tokens))):
            raise BadPolicy(f"{len(tokens)} tokens for a reduced head", "rising token ids, at least one")


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
    """The sidecar of a model folder; None if it has none.

    Raises:
        BadFile: the sidecar cannot be read.
    """
    path = folder / SIDECAR_NAME
    if not path.is_file():
        return None
    try:
        return read_record(path, Sidecar, schema=SIDECAR_SCHEMA, version=SIDECAR_VERSION, upgrades=_UPGRADES).record
    except BadFile as err:
        err.add_note(f"To write a valid one: s2d-train exits --draft {shlex.quote(str(folder))} --exits LAYERS --overwrite")
        raise


def write_sidecar(folder: Path, sidecar: Sidecar, provenance: Provenance | None = None) -> None:
    """Write the sidecar of a model folder, completely or not at all. The default provenance is that of this process."""
    provenance = provenance or make_provenance()
    write_record(folder / SIDECAR_NAME, sidecar, schema=SIDECAR_SCHEMA, version=SIDECAR_VERSION, provenance=provenance)
