"""Which exits a draft has, and who named them: a flag or a plan, else its sidecar, else its full depth is its only exit."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from perfmodel.core.errors import BadFile, BadPolicy, UserInputError
from perfmodel.models.config_file import SIDECAR_NAME
from perfmodel.models.geometry import check_exit_layers
from perfmodel.policies.policy import CalibrationCurve
from perfmodel.results.plan import Plan
from s2d.loading.sidecar import Calibration, Sidecar, read_sidecar, write_sidecar

ExitSource = Literal["--exits", "the plan", "s2d.json", "full depth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedExits:
    """Exits that a flag or a plan asks for, whatever the draft's folder names."""

    layers: tuple[int, ...]
    source: Literal["--exits", "the plan"]

    def __post_init__(self) -> None:
        check_exit_layers(self.layers)


def requested_exits(layers: tuple[int, ...] | None) -> RequestedExits | None:
    """What the flag --exits asks for; None where it was not given."""
    return RequestedExits(layers=layers, source="--exits") if layers is not None else None


def exits_from_plan(plan: Plan) -> RequestedExits:
    """The exits that a plan was made for."""
    return RequestedExits(layers=plan.draft.exit_layers, source="the plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftExits:
    """The exits of a draft, and why it has these."""

    layers: tuple[int, ...]
    source: ExitSource
    calibration: Calibration | None
    """The sidecar's, for these exits; None where it has no curve of any of them."""
    dropped_curves: tuple[int, ...] = ()
    """Exits of the sidecar whose confidence curves are not used, as they are not among the layers."""

    @property
    def label(self) -> str:
        """`exits 6/9/12 (s2d.json)`, `exits 9 (full depth: the folder names none)`."""
        reason = "full depth: the folder names none" if self.source == "full depth" else self.source
        return f"exits {format_exits(self.layers)} ({reason})"

    @property
    def note(self) -> str | None:
        """One line about curves that are not used; None where all are."""
        if not self.dropped_curves:
            return None
        return (
            f"{self.source} {format_exits(self.layers)}: the curves of {SIDECAR_NAME} for exits "
            f"{format_exits(self.dropped_curves)} are dropped"
        )


def find_exits(folder: Path, num_layers: int, named: RequestedExits | None, *, is_self: bool) -> DraftExits:
    """The exits of the draft in a folder. Every loader of a draft asks here.

    Args:
        folder: of the draft; of the target where its own layers draft.
        num_layers: of the model in it.
        named: overrides the sidecar.
        is_self: whether the target's own layers draft, of which full depth is no exit.

    Raises:
        BadPolicy: an exit that the model does not have.
        UserInputError: a self-draft of which nobody names exits.
        BadFile: a sidecar that cannot be read.
    """
    exits = _unchecked_exits(read_sidecar(folder), num_layers, named)
    if is_self and exits.source == "full depth":
        raise UserInputError(
            f"draft 'self': {str(folder)!r} has no {SIDECAR_NAME} that names exits, expected layers of the target to draft "
            f"with, below its {num_layers}. Give them with --exits, or write them down: "
            f"s2d-train exits --draft {shlex.quote(str(folder))} --exits LAYERS"
        )
    return _checked(exits, num_layers, is_self=is_self)


def _checked(exits: DraftExits, num_layers: int, *, is_self: bool) -> DraftExits:
    """The same exits, if the model has them all."""
    deepest, limit = exits.layers[-1], num_layers - is_self
    if deepest > limit:
        model = f"a self-draft of {num_layers} layers" if is_self else f"a draft of {num_layers} layers"
        raise BadPolicy(f"exit {deepest} ({exits.source}) of {model}", f"exits from 1 to {limit}")
    return exits


def with_exits(sidecar: Sidecar | None, exits: DraftExits) -> Sidecar:
    """A draft's sidecar with these exits, its reduced head kept."""
    said = sidecar.num_head_tokens if sidecar else None
    return Sidecar(exit_layers=exits.layers, norm="shared-final-norm", calibration=exits.calibration, num_head_tokens=said)


def write_exits(folder: Path, num_layers: int, named: RequestedExits, *, overwrite: bool) -> DraftExits:
    """Write the exits of a draft into its sidecar, and make one where there is none. Curves of exits that remain are kept.

    Args:
        folder: of the draft.
        num_layers: of the model in it.
        named: the exits.
        overwrite: a sidecar that cannot be read, and curves of other exits.

    Raises:
        BadPolicy: exits that the model does not have.
        BadFile: there is a sidecar that cannot be read, or it cannot be written.
        UserInputError: curves of other exits would be lost.
    """
    try:
        sidecar = read_sidecar(folder)
    except BadFile:
        if not overwrite:
            raise
        sidecar = None
    exits = _checked(_unchecked_exits(sidecar, num_layers, named), num_layers, is_self=False)
    if exits.dropped_curves and not overwrite:
        assert sidecar is not None
        raise UserInputError(
            f"{str(folder / SIDECAR_NAME)!r} holds confidence curves of exits {format_exits(sidecar.exit_layers)}, which --exits "
            f"{format_exits(exits.layers)} would drop in part: expected the same exits. Give --overwrite to drop them, then fit "
            "new ones with s2d-train calibrate."
        )
    write_sidecar(folder, with_exits(sidecar, exits))
    return exits


def _unchecked_exits(sidecar: Sidecar | None, num_layers: int, named: RequestedExits | None) -> DraftExits:
    if named is None and sidecar is None:
        return DraftExits(layers=(num_layers,), source="full depth", calibration=None)
    if named is None:
        assert sidecar is not None
        return DraftExits(layers=sidecar.exit_layers, source=SIDECAR_NAME, calibration=sidecar.calibration)
    curves = curves_by_exit(sidecar) if sidecar else {}
    dropped = tuple(layer for layer in curves if layer not in named.layers)
    kept = sidecar.calibration if sidecar and len(dropped) < len(curves) else None
    return DraftExits(
        layers=named.layers,
        source=named.source,
        calibration=replace(kept, curves=tuple(map(curves.get, named.layers))) if kept else None,
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
