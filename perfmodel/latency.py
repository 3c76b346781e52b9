"""Seconds of a pass, at three levels of evidence behind one interface.

    roofline  bytes over bandwidth, FLOP over peak, plus a floor per layer: from a hardware row with a source
    fitted    the same terms with coefficients fitted to a profile of any model on that device
    measured  this very model on this device

Every level is linear in the cached tokens of a pass, so that the seconds of many passes are those of their mean shape.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from perfmodel.errors import OutOfDomain
from perfmodel.geometry import ModelGeometry
from perfmodel.hardware import Hardware
from perfmodel.pass_table import PassTable
from perfmodel.passes import PassKind, PassShape
from perfmodel.profile import DeviceKey, Dtype, EngineMode, LatencyProfile
from perfmodel.units import Frac, Seconds
from perfmodel.work import PassSetting, PassWork

LATENCY_FIT_SCHEMA = "s2d/latency-fit"
LATENCY_FIT_VERSION = 1

LatencyLevel = Literal["roofline", "fitted", "measured"]
Line: TypeAlias = tuple[Seconds, Seconds]
"""Seconds with nothing cached, and seconds per cached token."""

_DOMAIN_SLACK = 2.0


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

    def pass_s(self, shape: PassShape) -> Seconds:
        """Seconds of one pass.

        Raises:
            OutOfDomain: a measured or fitted model has no evidence near this shape.
        """
        ...

    def affine(self, kind: PassKind, stage: int, rows: int) -> Line:
        """The same for any number of cached tokens: seconds with none, and seconds for each."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The coefficients of the latency law, the one formula behind roofline and fit.

        fixed   = pass + sync + round + round_row * drafted
        kernels = layers * (layer + row_layer * rows + [rows > 1] many_rows_layer)
                  + max(weight_byte * bytes (+ [rows > 1] many_rows_byte * bytes), flop * FLOP)
                  + all_reduce * count + link_byte * bytes sent
                  + cached tokens * max(kv_byte * bytes, attn_flop * FLOP)
        seconds = fixed + max(host_layer * layers, kernels)

    `[rows > 1]` is the step from a matrix-vector to a matrix-matrix kernel, seen on CPUs. Launches hide behind kernels: the
    slower of the two is paid.
    """

    pass_s: Seconds
    sync_s: Seconds
    round_s: Seconds
    round_row_s: Seconds
    layer_s: Seconds
    row_layer_s: Seconds
    many_rows_layer_s: Seconds
    host_layer_s: Seconds
    weight_byte_s: Seconds
    many_rows_byte_s: Seconds
    flop_s: Seconds
    kv_byte_s: Seconds
    attn_flop_s: Seconds
    all_reduce_s: Seconds
    link_byte_s: Seconds

    def line(self, work: PassWork, *, max_cached_tokens: int) -> Line:
        """Seconds of some work with nothing cached, and per cached token.

        A pass that waits for its launches even with `max_cached_tokens` hides its KV reads; any other pays them in full.
        """
        per_token_s = max(
            self.kv_byte_s * work.kv_bytes_per_cached_token, self.attn_flop_s * work.attn_flops_per_cached_token
        )
        kernels_s = self._kernels_s(work)
        host_s = self.host_layer_s * work.num_layers
        if host_s >= kernels_s + max_cached_tokens * per_token_s:
            per_token_s = 0.0
        return self._fixed_s(work) + max(host_s, kernels_s), per_token_s

    def _fixed_s(self, work: PassWork) -> Seconds:
        round_s = self.round_s * work.num_rounds + self.round_row_s * work.drafted_rows
        return self.pass_s * work.num_passes + self.sync_s * work.num_syncs + round_s

    def _kernels_s(self, work: PassWork) -> Seconds:
        many = work.rows > 1
        layer_s = self.layer_s + self.row_layer_s * work.rows + self.many_rows_layer_s * many
        reading_s = (self.weight_byte_s + self.many_rows_byte_s * many) * work.weight_bytes
        reducing_s = self.all_reduce_s * work.num_all_reduces + self.link_byte_s * work.link_bytes
        return layer_s * work.num_layers + max(reading_s, self.flop_s * work.flops) + reducing_s


def roofline_law(hardware: Hardware, dtype: Dtype, engine: EngineMode) -> Law:
    """The law's coefficients from a hardware row alone."""
    host = hardware.engines[engine]
    flop_s = 1 / (hardware.peak_flops_per_s[dtype] * hardware.flops_frac)
    cache_dtype: Dtype = "fp32" if dtype == "fp32" else "bf16"
    return Law(
        pass_s=host.pass_s,
        sync_s=host.sync_s,
        round_s=host.round_s,
        round_row_s=0.0,
        layer_s=hardware.layer_floor_s + hardware.attn_floor_s,
        row_layer_s=0.0,
        many_rows_layer_s=0.0,
        host_layer_s=host.host_layer_s,
        weight_byte_s=1 / (hardware.memory_bytes_per_s * hardware.weight_bandwidth_frac[dtype]),
        many_rows_byte_s=0.0,
        flop_s=flop_s,
        kv_byte_s=1 / (hardware.memory_bytes_per_s * hardware.weight_bandwidth_frac[cache_dtype]),
        attn_flop_s=1 / (hardware.peak_flops_per_s[cache_dtype] * hardware.flops_frac),
        all_reduce_s=hardware.all_reduce_s,
        link_byte_s=1 / hardware.link_bytes_per_s,
    )


class _LawLatency:
    """Passes of one model priced by a law; the common part of roofline and fit."""

    __slots__ = ("_law", "_lines", "_setting")

    def __init__(self, law: Law, setting: PassSetting) -> None:
        self._law = law
        self._setting = setting
        self._lines: dict[tuple[str, int, int], Line] = {}

    def pass_s(self, shape: PassShape) -> Seconds:
        """Seconds of one pass."""
        base_s, per_token_s = self.affine(shape.kind, shape.stage, shape.rows)
        return base_s + per_token_s * shape.cached_tokens

    def affine(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds with nothing cached, and per cached token."""
        key = (kind, stage, rows)
        if key not in self._lines:
            work = self._work(kind, stage, rows)
            self._lines[key] = self._law.line(work, max_cached_tokens=self._setting.model.max_context_tokens)
        return self._lines[key]

    def _work(self, kind: PassKind, stage: int, rows: int) -> PassWork:
        return self._setting.work(kind, stage, rows)


class RooflineLatency(_LawLatency):
    """A model nobody ran, on a device with a datasheet.

    Args:
        exit_layers: the exits that cut the model into segments; empty for a target that does not draft.
        num_devices: tensor-parallel degree, inside one node.
        batch: sequences in every pass.
    """

    __slots__ = ("error_frac",)

    def __init__(
        self,
        geometry: ModelGeometry,
        exit_layers: tuple[int, ...],
        hardware: Hardware,
        dtype: Dtype,
        engine: EngineMode,
        num_devices: int = 1,
        batch: int = 1,
    ) -> None:
        setting = PassSetting(
            model=geometry, exit_layers=exit_layers, dtype=dtype, batch=batch, num_devices=num_devices
        )
        super().__init__(roofline_law(hardware, dtype, engine), setting)
        self.error_frac: Frac = hardware.error_frac

    @property
    def level(self) -> LatencyLevel:
        """Nothing was measured."""
        return "roofline"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitDomain:
    """The passes a fit has seen: outside it a prediction is a guess."""

    min_layer_weight_bytes: float
    max_layer_weight_bytes: float
    """Bytes of one layer's weights."""
    max_layers: int
    """Of one pass."""
    max_rows: int
    max_cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyFit:
    """The law's coefficients fitted to profiles taken on one device."""

    device: DeviceKey
    models: tuple[str, ...]
    law: Law
    standard_error: Law
    """Of each coefficient; 0 for those held at 0."""
    domain: FitDomain
    num_samples: int
    residual_frac: Frac
    """Mean absolute error over the passes it was fitted to."""
    held_out_error_frac: Frac | None
    """Mean absolute error over the passes of a model left out of the fit; None with a single model."""


class FittedLatency(_LawLatency):
    """A model that was not run, on a device where others were."""

    __slots__ = ("error_frac", "fit")

    def __init__(self, fit: LatencyFit, geometry: ModelGeometry, exit_layers: tuple[int, ...]) -> None:
        setting = PassSetting(
            model=geometry,
            exit_layers=exit_layers,
            dtype=fit.device.dtype,
            batch=1,
            num_devices=fit.device.num_devices,
        )
        super().__init__(fit.law, setting)
        self.fit = fit
        held_out = fit.held_out_error_frac
        self.error_frac: Frac = fit.residual_frac if held_out is None else held_out

    @property
    def level(self) -> LatencyLevel:
        """Coefficients measured, model not."""
        return "fitted"

    def _work(self, kind: PassKind, stage: int, rows: int) -> PassWork:
        work = self._setting.work(kind, stage, rows)
        domain = self.fit.domain
        if work.num_layers:
            layer_bytes = work.weight_bytes / work.num_layers
            low, high = domain.min_layer_weight_bytes / _DOMAIN_SLACK, domain.max_layer_weight_bytes * _DOMAIN_SLACK
            _check("bytes per layer", layer_bytes, low, high)
            _check(f"layers of a {kind} pass", work.num_layers, 0, domain.max_layers * _DOMAIN_SLACK)
        if kind != "prefill":
            _check(f"rows of a {kind} pass", work.rows, 0, domain.max_rows * _DOMAIN_SLACK)
        return work


def _check(quantity: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        fix = "Profile a model nearer to this one with s2d-profile latency and fit again"
        raise OutOfDomain(quantity, value, low=low, high=high, fix=fix)


class MeasuredLatency:
    """This very model on this device: the mean of what was measured, pass by pass.

    Args:
        profile: its samples; a pass of a kind or width it does not hold cannot be priced.
    """

    __slots__ = ("_table", "error_frac", "profile")

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        self._table = PassTable(profile.samples, name=profile.model.name)
        self.error_frac: Frac = self._table.error_frac

    @property
    def level(self) -> LatencyLevel:
        """Measured on this device."""
        return "measured"

    def pass_s(self, shape: PassShape) -> Seconds:
        """Seconds of one pass."""
        base_s, per_token_s = self.affine(shape.kind, shape.stage, shape.rows)
        return base_s + per_token_s * shape.cached_tokens

    def affine(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds with nothing cached, and per cached token.

        Raises:
            OutOfDomain: such a pass was not measured.
        """
        return self._table.line(kind, stage, rows)
