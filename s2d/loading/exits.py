"""Find the exits of a draft: from a flag or a plan, else its sidecar, else its full depth."""

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from perfmodel.core.disk import PathLike
from perfmodel.core.errors import BadFile, BadPolicy, UserInputError
from perfmodel.models.config_file import SIDECAR_NAME
from perfmodel.models.geometry import check_exit_layers
from perfmodel.policies.policy import CalibrationCurve
from perfmodel.results.plan import Plan
from s2d.loading.model_folder import find_model
from s2d.loading.read_config import read_geometry
from s2d.loading.sidecar import Calibration, Sidecar, read_sidecar, write_sidecar

_LOG = logging.getLogger(__name__)

ExitSource = Literal["--exits", "the plan", "s2d.json", "full depth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedExits:
    """Exits that a flag or a plan requests. They override those of the draft's folder."""

    layers: tuple[int, ...]
    source: Literal["--exits", "the plan"]

    def __post_init__(self) -> None:
        check_exit_layers(self.layers)


def requested_exits(layers: tuple[int, ...] | None) -> RequestedExits | None:
    """The exits of the flag --exits; None without the flag."""
    return RequestedExits(layers=layers, source="--exits") if layers is not None else None


def exits_from_plan(plan: Plan) -> RequestedExits:
    """The exits of a plan's draft."""
    return RequestedExits(layers=plan.draft.exit_layers, source="the plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftExits:
    """The exits of a draft, and their source."""

    layers: tuple[int, ...]
    source: ExitSource
    calibration: Calibration | None
    """The sidecar's calibration of these exits; None if it has no curve for any of them."""
    dropped_curves: tuple[int, ...] = ()
    """Exits of the sidecar that have confidence curves and are not among the layers."""

    @property
    def label(self) -> str:
        """`exits 6/9/12 (s2d.json)`, `exits 9 (full depth: no s2d.json)`."""
        reason = f"full depth: no {SIDECAR_NAME}" if self.source == "full depth" else self.source
        return f"exits {format_exits(self.layers)} ({reason})"

    @property
    def note(self) -> str | None:
        """One line about unused curves; None if there are none."""
        if not self.dropped_curves:
            return None
        return (
            f"{self.source} {format_exits(self.layers)}: the curves of {SIDECAR_NAME} for exits "
            f"{format_exits(self.dropped_curves)} are dropped"
        )


def find_exits(folder: Path, num_layers: int, requested: RequestedExits | None, *, is_self: bool) -> DraftExits:
    """The exits of the draft in a folder. Every loader of a draft calls this function.

    Args:
        folder: folder of the draft; that of the target for a self-draft.
        num_layers: depth of the model in the folder.
        requested: exits that override the sidecar.
        is_self: whether the draft is the target's own first layers. The full depth is then not an exit.

    Raises:
        BadPolicy: the model does not have an exit.
        UserInputError: a self-draft without any exits.
        BadFile: the sidecar cannot be read.
    """
    exits = _unchecked_exits(read_sidecar(folder), num_layers, requested)
    if is_self and exits.source == "full depth":
        raise UserInputError(
            f"draft 'self': {str(folder)!r} has no {SIDECAR_NAME} with exits, expected layers of the target below its "
            f"{num_layers} to draft with. Give them with --exits, or write them to the folder: "
            f"s2d-train exits --draft {shlex.quote(str(folder))} --exits LAYERS"
        )
    check_exit_depth(exits.layers, num_layers, exits.source, "self-draft" if is_self else "draft")
    return exits


def check_exit_depth(
    exit_layers: tuple[int, ...],
    num_layers: int,
    source: ExitSource = "s2d.json",
    kind: Literal["model", "draft", "self-draft"] = "model",
) -> None:
    """Refuse exits deeper than the model. A self-draft cannot exit at the model's last layer either.

    Raises:
        BadPolicy: with the deepest exit and its source.
    """
    limit = num_layers - (kind == "self-draft")
    if exit_layers and exit_layers[-1] > limit:
        raise BadPolicy(f"exit {exit_layers[-1]} ({source}) of a {kind} of {num_layers} layers", f"exits from 1 to {limit}")


def with_exits(sidecar: Sidecar | None, exits: DraftExits) -> Sidecar:
    """A sidecar with these exits and the reduced head of an existing one."""
    head_tokens = sidecar.head_token_ids if sidecar else None
    return Sidecar(
        exit_layers=exits.layers, norm="shared-final-norm", calibration=exits.calibration, head_token_ids=head_tokens
    )


def write_exits(draft: PathLike, exits: Sequence[int], *, overwrite: bool = False) -> DraftExits:
    """Write the exits of a draft into its sidecar `s2d.json`, and make the sidecar if there is none.

    Confidence curves of exits that stay are kept. A log message names the curves that are dropped.

    Args:
        draft: a model folder, `org/name` on the Hugging Face hub, or a name of the reference family.
        exits: rising layer counts after which the draft may predict a token; at most its depth.
        overwrite: replace an unreadable sidecar, and drop the curves of other exits.

    Raises:
        BadPolicy: the model does not have these exits.
        BadFile: the sidecar cannot be read or written.
        UserInputError: curves of other exits would be lost.

    Example:
        >>> s2d.write_exits("my-draft", (6, 9, 12)).layers  # doctest: +SKIP
        (6, 9, 12)
    """
    folder = find_model(os.fspath(draft))
    num_layers = read_geometry(folder).num_layers
    try:
        sidecar = read_sidecar(folder)
    except BadFile:
        if not overwrite:
            raise
        sidecar = None
    written = _unchecked_exits(sidecar, num_layers, RequestedExits(layers=tuple(exits), source="--exits"))
    check_exit_depth(written.layers, num_layers, written.source, "draft")
    if written.dropped_curves and not overwrite:
        assert sidecar is not None
        raise UserInputError(
            f"{str(folder / SIDECAR_NAME)!r} holds confidence curves of exits {format_exits(sidecar.exit_layers)}, and --exits "
            f"{format_exits(written.layers)} would drop some of them: expected the same exits. Give --overwrite to drop them, "
            "then fit new ones with s2d-train calibrate."
        )
    write_sidecar(folder, with_exits(sidecar, written))
    if written.note is not None:
        _LOG.info(written.note)
    return written


def _unchecked_exits(sidecar: Sidecar | None, num_layers: int, requested: RequestedExits | None) -> DraftExits:
    """The exits by precedence. Does not check that the model has them."""
    if requested is None and sidecar is None:
        return DraftExits(layers=(num_layers,), source="full depth", calibration=None)
    if requested is None:
        assert sidecar is not None
        return DraftExits(layers=sidecar.exit_layers, source=SIDECAR_NAME, calibration=sidecar.calibration)
    curves = curves_by_exit(sidecar) if sidecar else {}
    dropped = tuple(layer for layer in curves if layer not in requested.layers)
    kept = sidecar.calibration if sidecar and len(dropped) < len(curves) else None
    return DraftExits(
        layers=requested.layers,
        source=requested.source,
        calibration=replace(kept, curves=tuple(map(curves.get, requested.layers))) if kept else None,
        dropped_curves=dropped,
    )


def curves_by_exit(sidecar: Sidecar) -> dict[int, CalibrationCurve]:
    """The confidence curves of a sidecar, by exit layer."""
    if sidecar.calibration is None:
        return {}
    pairs = zip(sidecar.exit_layers, sidecar.calibration.curves, strict=True)
    return {layer: curve for layer, curve in pairs if curve is not None}


def format_exits(layers: tuple[int, ...]) -> str:
    """`6/9/12`."""
    return "/".join(map(str, layers))
