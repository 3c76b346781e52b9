"""Seconds of a pair's passes in an engine, by a fit of the engine's profile, as latency models.

The replayed passes of a policy, shaped as the engine's (`with_round_shape`), are priced without any change of replay and
estimate: segments by their layers, exits by what a draft pass costs beyond its layers, the first segment pass of a round by its
cold weights, verifications by their rows, and a round by its overhead.
"""

import math
from typing import ClassVar

from perfmodel.core.errors import OutOfDomain
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.engines.engine_fit import EngineFit
from perfmodel.hardware.kernel_efficiency import WIDEST_ERROR_FRAC
from perfmodel.latency.latency_model import LatencyLevel
from perfmodel.passes.passes import Line, PassKind

TARGET_ERROR_SHARE = math.sqrt(0.5)
"""Share of a speedup's error that the target's latency states. `estimate` counts the target twice, in the round and in plain
decoding; with this share, the error of the speedup is the fit's."""


DISTANCE_ERROR_FRAC: Frac = 0.06
"""Further error of a speedup for every doubling between a configuration and those profiled. With it, 86 % of the 90 % intervals
of four measured engines hold at a length that was left out of the profile, without it 75 % (docs/log.md)."""


class _EngineLatency:
    """What both models of a pair share: the fit, the evidence level and the error."""

    __slots__ = ("fit", "is_beyond", "speedup_error_frac")
    _error_share: ClassVar[float] = 1.0
    """The model's part of a speedup's error."""

    def __init__(self, fit: EngineFit, *, doublings: float = 0.0, is_beyond: bool = False) -> None:
        self.fit, self.is_beyond = fit, is_beyond
        grown_frac = fit.error_frac + DISTANCE_ERROR_FRAC * doublings
        self.speedup_error_frac: Frac = max(fit.error_frac, min(grown_frac, WIDEST_ERROR_FRAC))
        """One standard deviation of the relative error of a speedup."""

    @property
    def level(self) -> LatencyLevel:
        """Measured in the engine, or beyond what was measured there."""
        return "extrapolated" if self.is_beyond else "measured"

    @property
    def error_frac(self) -> Frac:
        """One standard deviation of the model's part of a speedup's error."""
        return self._error_share * self.speedup_error_frac

    @property
    def host_error_frac(self) -> Frac:
        """Zero: the engine ran on its host."""
        return 0.0


class EngineDraftLatency(_EngineLatency):
    """Passes of the draft in an engine.

    Args:
        fit: of the engine's profile.
        doublings: how far the priced configuration is from those profiled.
        is_beyond: whether it lies outside the profile.
    """

    __slots__ = ()

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one pass, for any number of cached tokens.

        Raises:
            OutOfDomain: the exit or the rows were not profiled, or no engine runs such a pass.
        """
        layer = self.fit.exit_layers[stage]
        if kind == "segment":
            return Line(self._factor(rows) * self.fit.draft_layer_s * self._num_layers(stage), 0.0)
        if kind != "exit":
            raise OutOfDomain(f"rows of a {kind} pass", rows, low=0, high=0, fix="Engines run exits alone, without such passes")
        return Line(self._factor(rows) * (self.fit.draft_s(layer) - self.fit.draft_layer_s * layer), 0.0)

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Extra seconds of the first pass of a round through a segment."""
        return self.fit.cold_layer_s * self._num_layers(stage) if kind == "segment" and place == 1 else 0.0

    def _num_layers(self, stage: int) -> int:
        layers = (0, *self.fit.exit_layers)
        return layers[stage + 1] - layers[stage]

    def _factor(self, rows: int) -> float:
        """A wide pass over one of one row: as in the target if the draft reads a block, else 1, as fitted passes are mean."""
        shape = self.fit.round_shape
        return self.fit.verify_s(rows) / self.fit.plain_s if shape.rereads_block or shape.starts_with_block else 1.0


class EngineTargetLatency(_EngineLatency):
    """Passes of the target in an engine.

    Args:
        fit: of the engine's profile.
        doublings: how far the priced configuration is from those profiled.
        is_beyond: whether it lies outside the profile.
    """

    __slots__ = ()
    _error_share = TARGET_ERROR_SHARE

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one pass, for any number of cached tokens.

        Raises:
            OutOfDomain: so many rows were not profiled, or no profile holds such a pass.
        """
        if kind == "verify":
            return Line(self.fit.verify_s(rows), 0.0)
        if kind == "round":
            return Line(self.fit.overhead_s if rows else 0.0, 0.0)
        raise OutOfDomain(f"rows of a {kind} pass", rows, low=0, high=0, fix="Engine profiles hold no passes over the prompt")

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Zero: a verification's seconds are those of a mean round."""
        return 0.0


def engine_latencies(
    fit: EngineFit, exit_layer: int | None, draft_tokens: Tokens, *, context_tokens: Tokens
) -> tuple[EngineDraftLatency, EngineTargetLatency]:
    """Latency models of draft and target for one configuration, with the error that holds there.

    Args:
        fit: of the engine's profile.
        exit_layer: the exit that drafts; None for plain decoding.
        draft_tokens: draft length.
        context_tokens: cached at the end of the output.
    """
    doublings = fit.doublings(exit_layer, draft_tokens, context_tokens)
    is_beyond = fit.is_beyond(exit_layer, draft_tokens, context_tokens)
    return (
        EngineDraftLatency(fit, doublings=doublings, is_beyond=is_beyond),
        EngineTargetLatency(fit, doublings=doublings, is_beyond=is_beyond),
    )
