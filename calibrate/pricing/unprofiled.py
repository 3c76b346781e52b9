"""Latency of an engine that was not run: other kernels' seconds, with the error that this adds."""

from __future__ import annotations

import math

from perfmodel.core.units import Frac, Seconds
from perfmodel.latency.latency_model import LatencyLevel, LatencyModel
from perfmodel.passes.passes import Line, PassKind

UNPROFILED_ERROR_FRAC: Frac = 0.15
"""One standard deviation of the error of an engine's passes that its kernels add, assumed: about 0.2 of a speedup. The engines'
own micro-benchmarks missed measured speedups by 10 to 18 % in the median, and a datasheet knows less (docs/decisions.md)."""


class UnprofiledLatency:
    """The seconds of a latency model, with a larger error.

    Args:
        model: prices the passes as other kernels would run them.
    """

    __slots__ = ("error_frac", "model")

    def __init__(self, model: LatencyModel) -> None:
        self.model = model
        self.error_frac: Frac = math.hypot(model.error_frac, UNPROFILED_ERROR_FRAC)

    @property
    def level(self) -> LatencyLevel:
        """That of the model."""
        return self.model.level

    @property
    def host_error_frac(self) -> Frac:
        """That of the model."""
        return self.model.host_error_frac

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one warm pass, for any number of cached tokens.

        Raises:
            OutOfDomain: the model has no evidence near this shape.
        """
        return self.model.line(kind, stage, rows)

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Extra seconds of a pass at a place of its round."""
        return self.model.cold_s(kind, stage, place)
