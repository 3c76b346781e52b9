"""Split the price of a drafted token into reading, overhead of layers, and exit checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.hardware.hardware import Hardware
from perfmodel.latency.roofline_law import roofline_law
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import DraftGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.flops_bytes import PassSetting, PassWork
from perfmodel.passes.latency_law import Law
from perfmodel.quantisation.dtype_format import dtype_format


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCost:
    """One drafted token that leaves at an exit, with every shallower exit active."""

    exit_layer: int
    layers_s: Seconds
    """Reading weights and caches, and arithmetic: the segments without their overhead."""
    overhead_s: Seconds
    """Overhead of layers, launches and synchronisation, independent of the bytes read."""
    checks_s: Seconds
    """Reading the LM head at every active exit."""

    @property
    def token_s(self) -> Seconds:
        """Time of the whole token."""
        return self.layers_s + self.overhead_s + self.checks_s

    @property
    def overhead_frac(self) -> Frac:
        """Share of overhead: more bandwidth would not shorten it."""
        return self.overhead_s / self.token_s


def exit_costs(
    draft: DraftGeometry, hardware: Hardware, dtype: Dtype, mode: LaunchMode, *, context_tokens: Tokens
) -> tuple[ExitCost, ...]:
    """Price of a drafted token at every exit of a draft on one device.

    Args:
        draft: its shapes and exits.
        hardware: the device, whose datasheet gives the prices.
        dtype: of the weights.
        mode: how kernels are launched.
        context_tokens: cached when the token is drafted.
    """
    weights = dtype_format(dtype, draft.model)
    law = roofline_law(hardware, weights, mode, 1)
    setting = PassSetting(model=draft.model, exit_layers=draft.exit_layers, weights=weights, context_tokens=context_tokens)
    stages = range(len(draft.exit_layers))
    segments = [setting.work("segment", stage, 1) for stage in stages]
    checks = [setting.work("exit", stage, 1) for stage in stages]
    return tuple(
        _exit_cost(law, layers, segments[: number + 1], checks[: number + 1], context_tokens)
        for number, layers in enumerate(draft.exit_layers)
    )


def _exit_cost(
    law: Law, exit_layer: int, segments: Sequence[PassWork], checks: Sequence[PassWork], context_tokens: Tokens
) -> ExitCost:
    no_overhead = without_overhead(law)
    layers_s, checks_s = (_seconds(no_overhead, works, context_tokens) for works in (segments, checks))
    whole_s = _seconds(law, (*segments, *checks), context_tokens)
    return ExitCost(exit_layer=exit_layer, layers_s=layers_s, overhead_s=whole_s - layers_s - checks_s, checks_s=checks_s)


def without_overhead(law: Law) -> Law:
    """The same law with prices for bytes and FLOP only."""
    return replace(law, pass_s=0.0, sync_s=0.0, layer_s=0.0, row_layer_s=0.0, many_rows_layer_s=0.0, host_layer_s=0.0)


def _seconds(law: Law, works: Sequence[PassWork], cached_tokens: Tokens) -> Seconds:
    return sum(law.line(work, max_cached_tokens=cached_tokens).at(cached_tokens) for work in works)
