"""Seconds of a pass, at three levels of evidence behind one interface.

    roofline  bytes over bandwidth, FLOP over peak, plus a floor per layer: from a hardware row with a source
    fitted    the same terms with coefficients fitted to profiles of any models on that device (beyond what those covered:
              *extrapolated*)
    measured  this very model on this device

Every level is linear in the cached tokens of a pass, so that the seconds of many passes are those of their mean shape. What
the first passes of a round take on top of a warm pass is measured, or not known and 0.
"""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Literal, Protocol

from perfmodel.core.errors import OutOfDomain
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.hardware.hardware import Hardware
from perfmodel.hardware.kernel_efficiency import WIDEST_ERROR_FRAC
from perfmodel.latency.lower_bound import check_line, known_accelerator
from perfmodel.latency.measured_times import MeasuredTimes
from perfmodel.latency.roofline_law import roofline_law
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import EngineMode
from perfmodel.passes.flops_bytes import PassSetting, PassWork
from perfmodel.passes.latency_law import LatencyFit, Law
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PREFILL_KINDS, Line, PassKind
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import WeightFormat, layers_bytes

LatencyLevel = Literal["roofline", "extrapolated", "fitted", "measured"]

_ROWS_SLACK = 2
"""How far beyond the widest pass that a fit has seen, as a factor, it is still asked: kernels change with the rows."""


class LatencyModel(Protocol):
    """Seconds of one model's passes on one device."""

    @property
    def level(self) -> LatencyLevel:
        """What the seconds rest on."""
        ...

    @property
    def error_frac(self) -> Frac:
        """One standard deviation of the relative error of a round's seconds, common to all passes of the round."""
        ...

    @property
    def host_error_frac(self) -> Frac:
        """One standard deviation of the error, besides, that all models on one host share: of launching, where that binds."""
        ...

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one warm pass, for any number of cached tokens.

        Raises:
            OutOfDomain: a measured or fitted model has no evidence near this shape.
        """
        ...

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """What a pass at a place of its round takes on top."""
        ...


class _LawLatency:
    """Passes of one model priced by a law: roofline and fit."""

    __slots__ = ("_law", "_lines", "_setting")

    def __init__(self, law: Law, setting: PassSetting) -> None:
        self._law = law
        self._setting = setting
        self._lines: dict[tuple[PassKind, int, int], Line] = {}

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one pass, for any number of cached tokens."""
        key = (kind, stage, rows)
        if key not in self._lines:
            self._lines[key] = self._line(kind, stage, rows)
        return self._lines[key]

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Nothing: a law tells mean passes."""
        return 0.0

    def _line(self, kind: PassKind, stage: int, rows: int) -> Line:
        work = self._work(kind, stage, rows)
        return self._law.line(work, max_cached_tokens=self._setting.model.max_context_tokens)

    def _work(self, kind: PassKind, stage: int, rows: int) -> PassWork:
        return self._setting.work(kind, stage, rows)


class RooflineLatency(_LawLatency):
    """A model nobody ran, on a device with a datasheet.

    Launching and kernels err apart from each other, the host's error and the device's. A pass errs by that of the longer one,
    and where both take about as long, by either.

    Args:
        exit_layers: the exits that cut the model into segments; empty for a target that does not draft.
        weights: how its weights are stored; a dtype stands for its format (`perfmodel.quantisation.weight_format`).
        num_devices: tensor-parallel degree, inside one node.
        batch: sequences in every pass.
        context_tokens: where a model that has layers with a window is priced (`perfmodel.passes.flops_bytes`); others need none.

    Raises:
        UserInputError: the device does not compute in the dtype, or has no such engine mode.
    """

    __slots__ = ("_host_share", "error_frac", "host_error_frac")

    def __init__(
        self,
        geometry: ModelGeometry,
        exit_layers: tuple[int, ...],
        hardware: Hardware,
        weights: WeightFormat | Dtype,
        engine: EngineMode,
        num_devices: int = 1,
        batch: int = 1,
        *,
        context_tokens: Tokens | None = None,
    ) -> None:
        if not isinstance(weights, WeightFormat):
            hardware.compute_dtype(weights)
            weights = dtype_format(weights, geometry)
        setting = PassSetting(
            model=geometry,
            exit_layers=exit_layers,
            weights=weights,
            batch=batch,
            num_devices=num_devices,
            context_tokens=context_tokens,
        )
        super().__init__(roofline_law(hardware, weights, engine, num_devices), setting)
        self.error_frac: Frac = hardware.error_frac
        host_error_frac = hardware.engine_costs(engine).host_error_frac
        plain_step = replace(setting, exit_layers=()).work("verify", 0, 1)
        host_s, kernels_s = self._law.host_and_kernels_s(plain_step, cached_tokens=context_tokens or 0)
        self._host_share = chance_longer(host_s, kernels_s, math.hypot(host_error_frac, self.error_frac))
        self.host_error_frac: Frac = self._host_share * host_error_frac

    @property
    def level(self) -> LatencyLevel:
        """Nothing was measured."""
        return "roofline"

    @property
    def step_error_frac(self) -> Frac:
        """One standard deviation of the relative error of a step of plain decoding, on a host and a device unknown."""
        host_error_frac = self.host_error_frac / self._host_share if self._host_share else 0.0
        return math.sqrt(self._host_share * host_error_frac**2 + (1 - self._host_share) * self.error_frac**2)


def chance_longer(one_s: Seconds, other_s: Seconds, error_frac: Frac) -> Frac:
    """The chance that one time is longer than another, where their ratio has a lognormal error."""
    return NormalDist(sigma=error_frac).cdf(math.log(one_s / other_s)) if one_s else 0.0


class FittedLatency(_LawLatency):
    """A model that was not run, on a device where others were.

    A model outside what the fit has seen is priced all the same, and said to be extrapolated: its error grows by the fit's
    own with every doubling outside, up to that of a device nobody measured; both are assumed. A pass that the fit would have
    faster than light is refused.

    Args:
        context_tokens: where the model is priced: the caches hold so many tokens.
    """

    __slots__ = ("_hardware", "error_frac", "extrapolations", "fit")

    def __init__(
        self, fit: LatencyFit, geometry: ModelGeometry, exit_layers: tuple[int, ...], *, context_tokens: Tokens
    ) -> None:
        key = fit.device
        weights = dtype_format(key.dtype, geometry)
        setting = PassSetting(
            model=geometry,
            exit_layers=exit_layers,
            weights=weights,
            batch=1,
            num_devices=key.num_devices,
            context_tokens=context_tokens,
            pads_rows=fit.pads_rows,
        )
        super().__init__(fit.law, setting)
        self._hardware = known_accelerator(key)
        self.fit = fit
        self.extrapolations = fit.domain.beyond(
            layer_weight_bytes=layers_bytes(geometry, weights, 1) / key.num_devices,
            num_layers=geometry.num_layers,
            cached_tokens=context_tokens,
        )
        grown_frac = fit.error_frac * (1 + sum(one.doublings for one in self.extrapolations))
        self.error_frac: Frac = max(fit.error_frac, min(grown_frac, WIDEST_ERROR_FRAC))

    @property
    def level(self) -> LatencyLevel:
        """Coefficients measured, model not."""
        return "extrapolated" if self.extrapolations else "fitted"

    @property
    def host_error_frac(self) -> Frac:
        """None besides: the fit's error holds the host's."""
        return 0.0

    def _line(self, kind: PassKind, stage: int, rows: int) -> Line:
        line = super()._line(kind, stage, rows)
        if self._hardware is not None:
            check_line(line, self._setting, (kind, stage, rows), self._hardware)
        return line

    def _work(self, kind: PassKind, stage: int, rows: int) -> PassWork:
        work = self._setting.work(kind, stage, rows)
        high = self.fit.domain.max_rows * _ROWS_SLACK
        asked_rows = min(rows, work.rows)  # the bookkeeping of a round has none
        if kind not in PREFILL_KINDS and asked_rows > high:
            fix = "Profile wider passes and fit again: s2d-profile law --rows"
            raise OutOfDomain(f"rows of a {kind} pass", asked_rows, low=0, high=high, fix=fix)
        return work


class MeasuredLatency:
    """This very model on this device: the mean of what was measured, pass by pass.

    Args:
        profile: its samples; a pass of a kind or width it does not hold cannot be priced.
    """

    __slots__ = ("_table", "error_frac", "profile")

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        self._table = MeasuredTimes(profile.samples, name=profile.model.name, pads_rows=profile.pads_rows)
        self.error_frac: Frac = min(self._table.error_frac, WIDEST_ERROR_FRAC)

    @property
    def level(self) -> LatencyLevel:
        """Measured on this device."""
        return "measured"

    @property
    def host_error_frac(self) -> Frac:
        """None: this host was measured."""
        return 0.0

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one warm pass, for any number of cached tokens.

        Raises:
            OutOfDomain: such a pass was not measured.
        """
        return self._table.line(kind, stage, rows)

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Measured; 0 from the place on at which passes are warm."""
        return self._table.cold_s(kind, stage, place)
