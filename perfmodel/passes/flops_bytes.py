"""Bytes and FLOP of one pass: pure functions, one formula each, and the record that sums them up.

Symbols: T rows (tokens in the pass, all sequences together), S cached tokens, L layers, D hidden, F mlp, N heads, K kv
heads, H head dim, V vocab, W window. A multiply and an add are two FLOP. Activations and rotations move few bytes and are
part of the floor per layer.

A layer with a window reads min(S, W) cached tokens, while every price is a straight line in S. So a model with such layers is
priced at a context: up to its window they read every further token, beyond it W tokens whatever S is. The line is exact at
that context and on its side of the window, and never too low.
"""

from dataclasses import dataclass

from perfmodel.core.errors import BadPolicy
from perfmodel.core.units import Bytes, Flops, Frac, Tokens
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PassKind, graph_width
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import WeightFormat, head_bytes, layers_bytes

_ALL_REDUCES_PER_LAYER = 2
_ACTIVATION_BYTES = 2.0


def kv_bytes_per_token(model: ModelGeometry, weights: WeightFormat) -> float:
    """Bytes of KV cache per token and sequence: 2 L K H times the bytes of a number."""
    return model.kv_values_per_token * weights.activation_bytes


def kv_cache_bytes(model: ModelGeometry, weights: WeightFormat, context_tokens: Tokens) -> Bytes:
    """Bytes of one sequence's cache at a context; a layer with a window keeps no more than that."""
    return round(model.seen_tokens(context_tokens) * kv_bytes_per_token(model, weights))


def layers_weights(model: ModelGeometry, num_layers: int) -> int:
    """Weights read by a pass over some layers, whatever its rows."""
    return num_layers * model.layer_params


def matrix_flops(num_weights: float, rows: float) -> Flops:
    """2 T per weight."""
    return 2.0 * rows * num_weights


def attn_flops(model: ModelGeometry, num_layers: int, rows: float, keys: float) -> Flops:
    """Scores and mixing of T queries over S keys: 4 L T S N H."""
    return 4.0 * num_layers * rows * keys * model.num_heads * model.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class PassWork:
    """What one pass does on each device: one quantity per term of the latency law (`perfmodel.passes.latency_law.Law`)."""

    num_passes: int
    """1 where layers run; 0 for an exit check and for a round's bookkeeping."""
    num_syncs: int
    """Times the host waits for a result."""
    num_rounds: int
    drafted_rows: int
    num_layers: int
    rows: int
    """Rows through those layers or the head, all sequences together."""
    layer_bytes: float
    """Of the weights of those layers."""
    head_bytes: float
    """Of the LM head, where it is called."""
    model_bytes: float
    """Of all the model's weights but its embedding: what the caches see before these weights come again."""
    layer_flops: float
    """Of the layers' matrices, and of attention among the rows."""
    head_flops: float
    kv_bytes_per_cached_token: float
    attn_flops_per_cached_token: float
    window_kv_bytes: float
    """Read whatever is cached, by layers whose window the context exceeds."""
    window_attn_flops: float
    num_all_reduces: int
    """Two a layer; the rows that go out and the logits that come in take as long as one each."""
    link_bytes: float
    """Bytes a device sends or receives in all of those."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights read."""
        return self.layer_bytes + self.head_bytes

    @property
    def flops(self) -> float:
        """FLOP of all matrices, and of attention among the rows."""
        return self.layer_flops + self.head_flops


def round_work(drafted_rows: int) -> PassWork:
    """A round's bookkeeping on the host."""
    return PassWork(
        num_passes=0,
        num_syncs=0,
        num_rounds=1,
        drafted_rows=drafted_rows,
        num_layers=0,
        rows=0,
        layer_bytes=0.0,
        head_bytes=0.0,
        model_bytes=0.0,
        layer_flops=0.0,
        head_flops=0.0,
        kv_bytes_per_cached_token=0.0,
        attn_flops_per_cached_token=0.0,
        window_kv_bytes=0.0,
        window_attn_flops=0.0,
        num_all_reduces=0,
        link_bytes=0.0,
    )


def layers_work(
    model: ModelGeometry,
    *,
    num_layers: int,
    head_rows: int,
    rows: int,
    batch: int,
    num_devices: int,
    weights: WeightFormat,
    context_tokens: Tokens | None = None,
) -> PassWork:
    """Some layers over `rows` tokens of each of `batch` sequences, then the LM head over `head_rows` of them.

    The rows of one sequence attend to half of each other on average, and share one read of its cache.

    Args:
        context_tokens: where a model that has layers with a window is priced; others need none.
    """
    share, tokens = _cache_reads(model, context_tokens)
    kv_bytes = num_layers / model.num_layers * batch * kv_bytes_per_token(model, weights) / num_devices
    token_flops = attn_flops(model, num_layers, rows * batch, 1) / num_devices
    flops = matrix_flops(layers_weights(model, num_layers), rows * batch)
    flops += attn_flops(model, num_layers, rows * batch, model.seen_tokens((rows + 1) / 2))
    all_reduces, link_bytes = _exchanges(model, num_layers, head_rows * batch, rows * batch, num_devices)
    return PassWork(
        num_passes=1 if num_layers else 0,
        num_syncs=1 if head_rows else 0,
        num_rounds=0,
        drafted_rows=0,
        num_layers=num_layers,
        rows=max(rows, head_rows) * batch,
        layer_bytes=layers_bytes(model, weights, num_layers) / num_devices,
        head_bytes=head_bytes(model, weights) / num_devices if head_rows else 0.0,
        model_bytes=(layers_bytes(model, weights, model.num_layers) + head_bytes(model, weights)) / num_devices,
        layer_flops=flops / num_devices,
        head_flops=matrix_flops(model.head_params, head_rows * batch) / num_devices,
        kv_bytes_per_cached_token=share * kv_bytes,
        attn_flops_per_cached_token=share * token_flops,
        window_kv_bytes=tokens * kv_bytes,
        window_attn_flops=tokens * token_flops,
        num_all_reduces=all_reduces,
        link_bytes=link_bytes,
    )


def _exchanges(model: ModelGeometry, num_layers: int, head_rows: int, rows: int, num_devices: int) -> tuple[int, float]:
    """How often several devices wait for each other, and the bytes that one of them sends or receives then.

    The first sends the rows to all; each sum takes 2 (n - 1) / n of its rows; the first receives (n - 1) / n of the logits.
    """
    if num_devices == 1:
        return 0, 0.0
    row_bytes, logit_bytes = rows * model.hidden_size * _ACTIVATION_BYTES, head_rows * model.num_head_tokens * _ACTIVATION_BYTES
    sums, others = _ALL_REDUCES_PER_LAYER * num_layers, (num_devices - 1) / num_devices
    number = sums + (1 if num_layers else 0) + (1 if head_rows else 0)
    return number, row_bytes + others * (2 * sums * row_bytes + logit_bytes)


def _cache_reads(model: ModelGeometry, context_tokens: Tokens | None) -> tuple[Frac, float]:
    """What a mean layer reads of its cache, near a context: a share of the cached tokens, and so many tokens in any case."""
    if model.window_tokens is None:
        return 1.0, 0.0
    if context_tokens is None:
        raise ValueError(f"{model.name!r} has layers with a window, which have no price without a context")
    if context_tokens <= model.window_tokens:
        return 1.0, 0.0
    return 1 - model.windowed_frac, model.windowed_frac * model.window_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSetting:
    """Which model runs its passes, cut where, and how: what turns a pass shape into work."""

    model: ModelGeometry
    exit_layers: tuple[int, ...]
    """The exits that cut the model into segments; empty for a target that does not draft."""
    weights: WeightFormat
    batch: int
    num_devices: int
    context_tokens: Tokens | None = None
    """Where a model that has layers with a window is priced; others need none."""
    pads_rows: bool = False
    """Whether layers run at `graph_width` rows, as the runtime's captured passes do. Heads run at the rows asked for."""

    def work(self, kind: PassKind, stage: int, rows: int) -> PassWork:
        """The work of one pass.

        A self-draft's verify covers the layers above its last exit, but with one row it is the plain loop's and covers all.
        A prefill asks no head: the prompt's last token leads the first round.
        An ahead pass is told with its wait, as nothing but a measurement tells how much of it is hidden.
        """
        match kind:
            case "segment":
                return self._layers(self._segment_layers(stage), head_rows=0, rows=rows)
            case "exit":
                self._segment_layers(stage)
                return self._layers(0, head_rows=rows, rows=0)
            case "ahead":
                self._segment_layers(stage - 1)
                return self._layers(self._segment_layers(stage), head_rows=1, rows=rows)
            case "verify":
                return self._layers(self._verify_layers(rows), head_rows=rows, rows=rows)
            case "draft_prefill":
                return self._layers(self._segment_layers(stage), head_rows=0, rows=rows)
            case "target_prefill":
                return self._layers(self.model.num_layers, head_rows=0, rows=rows)
            case "round":
                return round_work(rows)

    def _verify_layers(self, rows: int) -> int:
        depth = self.model.num_layers
        return depth - self.exit_layers[-1] if self.exit_layers and rows > 1 else depth

    def _segment_layers(self, stage: int) -> int:
        if not 0 <= stage < len(self.exit_layers):
            raise BadPolicy(f"exit number {stage} of {self.model.name!r}", f"one of its {len(self.exit_layers)} exits")
        return self.exit_layers[stage] - (self.exit_layers[stage - 1] if stage else 0)

    def _layers(self, num_layers: int, *, head_rows: int, rows: int) -> PassWork:
        padded_rows = graph_width(rows) if self.pads_rows and num_layers else None
        return layers_work(
            self.model,
            num_layers=num_layers,
            head_rows=head_rows,
            rows=padded_rows or rows,
            batch=self.batch,
            num_devices=self.num_devices,
            weights=self.weights,
            context_tokens=self.context_tokens,
        )


def setting_of(profile: LatencyProfile) -> PassSetting:
    """How the passes of a profile ran; for layers with a window the context is still to be told."""
    return PassSetting(
        model=profile.model,
        exit_layers=profile.exit_layers,
        weights=dtype_format(profile.device.dtype, profile.model),
        batch=1,
        num_devices=profile.device.num_devices,
    )
