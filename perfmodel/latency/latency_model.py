"""Seconds of a model's passes, from three kinds of evidence behind one interface.

    roofline  bytes over bandwidth, FLOP over peak, and a floor per layer: from a datasheet and kernel efficiencies
    fitted    the same terms with coefficients fitted to profiles of other models on the device
              (*extrapolated* if the model lies outside those profiles)
    measured  a profile of this model on this device

Prices are linear in the cached tokens of a pass, so many passes cost as much as their mean shape times their number. The
extra seconds of cold passes (early in a round) are measured; without a measurement they are unknown and taken as 0.
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
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.flops_bytes import PassSetting, PassWork
from perfmodel.passes.latency_law import LatencyFit, Law
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PREFILL_KINDS, Line, PassKind, PassName
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import layers_bytes

LatencyLevel = Literal["roofline", "extrapolated", "fitted", "measured"]

_ROWS_SLACK = 2
"""A fit prices passes up to this factor wider than the widest it has seen. Wider passes use other kernels."""


class LatencyModel(Protocol):
    """Seconds of one model's passes on one device."""

    @property
    def level(self) -> LatencyLevel:
        """The evidence that the seconds are based on."""
        ...

    @property
    def error_frac(self) -> Frac:
        """One standard deviation of the relative error of a round's seconds; all passes of a round share the error."""
        ...

    @property
    def host_error_frac(self) -> Frac:
        """One standard deviation of the additional error of launching, which all models on one host share."""
        ...

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one warm pass, for any number of cached tokens.

        Raises:
            OutOfDomain: a measured or fitted model has no evidence near this shape.
        """
        ...

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Extra seconds of a pass at a place of its round."""
        ...


class _LawLatency:
    """Passes of one model priced by the latency law."""

    __slots__ = ("_law", "_lines", "_setting")

    def __init__(self, law: Law, setting: PassSetting) -> None:
        self._law = law
        self._setting = setting
        self._lines: dict[PassName, Line] = {}

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one pass, for any number of cached tokens."""
        key = (kind, stage, rows)
        if key not in self._lines:
            self._lines[key] = self._price(kind, stage, rows)
        return self._lines[key]

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Zero: the law prices mean passes."""
        return 0.0

    def _price(self, kind: PassKind, stage: int, rows: int) -> Line:
        work = self._work(kind, stage, rows)
        return self._law.line(work, max_cached_tokens=self._setting.model.max_context_tokens)

    def _work(self, kind: PassKind, stage: int, rows: int) -> PassWork:
        return self._setting.work(kind, stage, rows)


class RooflineLatency(_LawLatency):
    """A model that was not measured, on a device with a datasheet.

    The errors of launching (the host's) and of kernels (the device's) are independent. The longer of the two times decides
    which error a pass has; where they are about equal, either may.

    Raises:
        UserInputError: the device has no such launch mode.
        OutOfDomain: no link joins this many devices.
    """

    __slots__ = ("_launch_bound_frac", "error_frac", "host_error_frac")

    def __init__(self, setting: PassSetting, hardware: Hardware, mode: LaunchMode) -> None:
        super().__init__(roofline_law(hardware, setting.weights, mode, setting.num_devices), setting)
        self.error_frac: Frac = hardware.error_frac
        host_error_frac = hardware.launch_costs(mode).host_error_frac
        plain_step = replace(setting, exit_layers=()).work("verify", 0, 1)
        host_s, kernels_s = self._law.host_and_kernels_s(plain_step, cached_tokens=setting.context_tokens or 0)
        self._launch_bound_frac = chance_longer(host_s, kernels_s, math.hypot(host_error_frac, self.error_frac))
        self.host_error_frac: Frac = self._launch_bound_frac * host_error_frac

    @property
    def level(self) -> LatencyLevel:
        """Nothing was measured."""
        return "roofline"

    @property
    def step_error_frac(self) -> Frac:
        """One standard deviation of the relative error of a step of plain decoding, on an unknown host and device."""
        launch_frac = self._launch_bound_frac
        host_error_frac = self.host_error_frac / launch_frac if launch_frac else 0.0
        return math.sqrt(launch_frac * host_error_frac**2 + (1 - launch_frac) * self.error_frac**2)


def chance_longer(first_s: Seconds, second_s: Seconds, error_frac: Frac) -> Frac:
    """The probability that the first time is longer than the second, if their ratio has a lognormal error."""
    return NormalDist(sigma=error_frac).cdf(math.log(first_s / second_s)) if first_s else 0.0


class FittedLatency(_LawLatency):
    """A model that was not measured, on a device where other models were.

    A model outside the fit's domain is priced too, at level `extrapolated`: its error grows by the fit's own error with every
    doubling outside, up to the error on a device without measurements (both assumed). A fitted price below the hardware lower
    bound is refused.

    Args:
        context_tokens: cached tokens at which the model is priced.
    """

    __slots__ = ("_hardware", "error_frac", "extrapolations", "fit")

    def __init__(
        self, fit: LatencyFit, model: ModelGeometry, exit_layers: tuple[int, ...] = (), *, context_tokens: Tokens
    ) -> None:
        key = fit.device
        weights = dtype_format(key.dtype, model)
        setting = PassSetting(
            model=model,
            exit_layers=exit_layers,
            weights=weights,
            num_devices=key.num_devices,
            context_tokens=context_tokens,
            pads_rows=fit.pads_rows,
        )
        super().__init__(fit.law, setting)
        self._hardware = known_accelerator(key)
        self.fit = fit
        self.extrapolations = fit.domain.beyond(
            layer_weight_bytes=layers_bytes(model, weights, 1) / key.num_devices,
            num_layers=model.num_layers,
            cached_tokens=context_tokens,
        )
        grown_frac = fit.error_frac * (1 + sum(extrapolation.doublings for extrapolation in self.extrapolations))
        self.error_frac: Frac = max(fit.error_frac, min(grown_frac, WIDEST_ERROR_FRAC))

    @property
    def level(self) -> LatencyLevel:
        """The device was measured, the model was not."""
        return "extrapolated" if self.extrapolations else "fitted"

    @property
    def host_error_frac(self) -> Frac:
        """Zero: the fit's error includes the host's."""
        return 0.0

    def _price(self, kind: PassKind, stage: int, rows: int) -> Line:
        line = super()._price(kind, stage, rows)
        if self._hardware is not None:
            check_line(line, self._setting, (kind, stage, rows), self._hardware)
        return line

    def _work(self, kind: PassKind, stage: int, rows: int) -> PassWork:
        work = self._setting.work(kind, stage, rows)
        max_rows = self.fit.domain.max_rows * _ROWS_SLACK
        compared_rows = min(rows, work.rows)  # padding may widen a pass; a round's bookkeeping has no rows
        if kind not in PREFILL_KINDS and compared_rows > max_rows:
            fix = "Profile wider passes and fit again: s2d-profile law --rows"
            raise OutOfDomain(f"rows of a {kind} pass", compared_rows, low=0, high=max_rows, fix=fix)
        return work


class MeasuredLatency:
    """This model on this device: the mean of the measured passes of each shape.

    Args:
        profile: the measured passes. Kinds and widths that it lacks have no price.
    """

    __slots__ = ("_times", "error_frac", "profile")

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        self._times = MeasuredTimes(profile.samples, name=profile.model.name, pads_rows=profile.pads_rows)
        self.error_frac: Frac = min(self._times.error_frac, WIDEST_ERROR_FRAC)

    @property
    def level(self) -> LatencyLevel:
        """Measured on this device."""
        return "measured"

    @property
    def host_error_frac(self) -> Frac:
        """Zero: this host was measured."""
        return 0.0

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of one warm pass, for any number of cached tokens.

        Raises:
            OutOfDomain: no such pass was measured.
        """
        return self._times.line(kind, stage, rows)

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Measured extra seconds; 0 for places that are warm."""
        return self._times.cold_s(kind, stage, place)
