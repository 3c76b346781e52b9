"""The latency law, seconds of a pass as a sum of physical terms; and the record of a fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.stats import NORMAL_QUANTILE
from perfmodel.core.units import Frac, Seconds, Tokens, format_bytes
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.flops_bytes import PassWork
from perfmodel.passes.passes import Line

UNTESTED_ERROR_FRAC: Frac = 0.2
"""Assumed error of a fit to a single model, which has no held-out error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Coefficients of the latency law, the formula of roofline and fit.

        fixed   = pass + sync + round + round_row * drafted
        kernels = layers * (layer + row_layer * rows + [rows > 1] many_rows_layer)
                  + overlap(reading, computing)
                  + all_reduce * count + link_byte * bytes sent
                  + overlap(kv_byte * bytes of full windows, attn_flop * FLOP on them)
                  + cached tokens * overlap(kv_byte * bytes, attn_flop * FLOP)
        reading = weight_byte * bytes of layers + head_byte * bytes of the head
                  + ([rows > 1] many_rows_byte + far_byte * far) * bytes of both
        computing = flop * FLOP of layers + head_flop * FLOP of the head
        far     = max(0, 1 - cache_bytes / bytes of the whole model)
        seconds = fixed + max(host_layer * layers, kernels)

    `[rows > 1]` is the step from a matrix-vector to a matrix-matrix kernel, seen on CPUs. If a model does not fit in the
    caches, the share `far` of its weights has been evicted when the next pass reads them. Launches overlap with kernels: a
    pass takes the longer of the two. Layers and head may be stored differently and read by different kernels; a fit to plain
    weights has one rate for both. Reading and computing overlap almost perfectly: overlap(a, b) = (a³ + b³)^(1/3), which is
    at least the larger and rounds the knee as the A100's kernel tables do (64, 128, 256 rows of a Llama-2-7B layer).
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
    head_byte_s: Seconds
    many_rows_byte_s: Seconds
    far_byte_s: Seconds
    cache_bytes: float
    flop_s: Seconds
    head_flop_s: Seconds
    kv_byte_s: Seconds
    attn_flop_s: Seconds
    all_reduce_s: Seconds
    link_byte_s: Seconds

    def __post_init__(self) -> None:
        for term in self.__slots__:
            value = getattr(self, term)
            if not 0 <= value < math.inf:
                raise ValueError(f"{term} is {value:g}, expected a finite number that is not negative")

    def line(self, work: PassWork, *, max_cached_tokens: int) -> Line:
        """Seconds of some work, for any number of cached tokens.

        A pass that is launch-bound even at `max_cached_tokens` hides its KV reads; any other pass pays them in full.
        """
        kv_s, attn_s = self.kv_byte_s * work.kv_bytes_per_cached_token, self.attn_flop_s * work.attn_flops_per_cached_token
        per_token_s = _overlap_s(kv_s, attn_s)
        kernels_s = self._kernels_s(work)
        host_s = self.host_layer_s * work.num_layers
        if host_s >= kernels_s + max_cached_tokens * per_token_s:
            per_token_s = 0.0
        return Line(self._fixed_s(work) + max(host_s, kernels_s), per_token_s)

    def host_and_kernels_s(self, work: PassWork, *, cached_tokens: float) -> tuple[Seconds, Seconds]:
        """Seconds of launching some work, and of its kernels. A pass takes the longer of the two."""
        kv_s, attn_s = self.kv_byte_s * work.kv_bytes_per_cached_token, self.attn_flop_s * work.attn_flops_per_cached_token
        return self.host_layer_s * work.num_layers, self._kernels_s(work) + cached_tokens * _overlap_s(kv_s, attn_s)

    def _fixed_s(self, work: PassWork) -> Seconds:
        round_s = self.round_s * work.num_rounds + self.round_row_s * work.drafted_rows
        return self.pass_s * work.num_passes + self.sync_s * work.num_syncs + round_s

    def _kernels_s(self, work: PassWork) -> Seconds:
        has_many_rows = work.rows > 1
        layer_s = self.layer_s + self.row_layer_s * work.rows + self.many_rows_layer_s * has_many_rows
        far = max(0.0, 1 - self.cache_bytes / work.model_bytes) if work.model_bytes else 0.0
        reading_s = self.weight_byte_s * work.layer_bytes + self.head_byte_s * work.head_bytes
        reading_s += (self.many_rows_byte_s * has_many_rows + self.far_byte_s * far) * work.weight_bytes
        computing_s = self.flop_s * work.layer_flops + self.head_flop_s * work.head_flops
        reducing_s = self.all_reduce_s * work.num_all_reduces + self.link_byte_s * work.link_bytes
        windows_s = _overlap_s(self.kv_byte_s * work.window_kv_bytes, self.attn_flop_s * work.window_attn_flops)
        return layer_s * work.num_layers + _overlap_s(reading_s, computing_s) + reducing_s + windows_s


def _overlap_s(first_s: Seconds, second_s: Seconds) -> Seconds:
    """Seconds of two activities that overlap almost perfectly."""
    longer, shorter = max(first_s, second_s), min(first_s, second_s)
    return longer * (1 + (shorter / longer) ** 3) ** (1 / 3) if longer else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FitDomain:
    """The range of the passes in a fit. Predictions outside it are extrapolated."""

    min_layer_weight_bytes: float
    max_layer_weight_bytes: float
    """Weight bytes of one layer."""
    max_layers: int
    """Layers of one pass."""
    max_rows: int
    """Rows of a pass other than a prefill."""
    max_cached_tokens: int

    def beyond(self, *, layer_weight_bytes: float, num_layers: int, cached_tokens: Tokens) -> tuple["Extrapolation", ...]:
        """The quantities of a model that lie outside the domain."""
        ranges = (
            ("a layer of {}", format_bytes, layer_weight_bytes, self.min_layer_weight_bytes, self.max_layer_weight_bytes),
            ("{} layers", str, num_layers, 1, self.max_layers),
            ("{} cached tokens", str, cached_tokens, 0, self.max_cached_tokens),
        )
        return tuple(
            Extrapolation(
                label=f"{template.format(text(value))} (seen: {text(low)} to {text(high)})",
                doublings=math.log2(value / high if value > high else low / value),
            )
            for template, text, value, low, high in ranges
            if not low <= value <= high
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation:
    """A quantity outside the domain of a fit."""

    label: str
    """`80 layers (seen: 1 to 24)`."""
    doublings: float
    """Distance: 1 for twice the highest value seen, or half the lowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyFit(Printable):
    """Coefficients of the law fitted to passes of some models on one device."""

    device: DeviceKey
    models: tuple[str, ...]
    source: str
    """Who timed the passes, and with which program."""
    pads_rows: bool
    """Whether passes ran at `perfmodel.passes.passes.graph_width` rows and are priced so, as in this runtime's graph mode."""
    law: Law
    standard_error: Law
    """Standard error of each coefficient; 0 for coefficients that were fixed at 0."""
    domain: FitDomain
    num_samples: int
    residual_frac: Frac
    """Mean absolute relative error over the fitted passes."""
    held_out_error_frac: Frac | None
    """Mean absolute relative error over the passes of a held-out model; None with a single model."""
    held_out_90_frac: Frac | None
    """90 % quantile of the absolute relative error over the passes of a held-out model; None with a single model."""

    @property
    def error_frac(self) -> Frac:
        """One standard deviation of the relative error on a model that was not fitted.

        A normal distribution with this deviation has the 90 % interval `held_out_90_frac`. Assumed for a single model.
        """
        return UNTESTED_ERROR_FRAC if self.held_out_90_frac is None else self.held_out_90_frac / NORMAL_QUANTILE

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-plan fit` as blocks of text."""
        from perfmodel.passes.fit_text import fit_blocks

        return fit_blocks(self, explain=explain)

    def save(self, path: PathLike) -> None:
        """Write the fit as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        FIT_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",)))


FIT_FILE = FileFormat(record=LatencyFit, schema="s2d/latency-fit", made_with="s2d-plan fit -o FILE")
