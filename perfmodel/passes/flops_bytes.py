"""Bytes and FLOP of one pass, one function for each formula.

Symbols: T rows (tokens in the pass, all sequences together), S cached tokens, L layers, D hidden, F mlp, N heads, K kv
heads, H head dim, V vocab, W window. A multiply and an add are two FLOP. Activations and rotary embeddings move few bytes;
the floor per layer includes them.

A layer with a window reads min(S, W) cached tokens, but every price is linear in S. A model with such layers is therefore
priced at a context: below the window each layer reads every cached token; above it, windowed layers read W tokens at any
S. The price is exact at that context and on its side of the window, and never too low.
"""

from dataclasses import dataclass

from perfmodel.core.errors import BadPolicy
from perfmodel.core.units import Bytes, Flops, Frac, Tokens
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.passes import PassKind, graph_width
from perfmodel.quantisation.weight_format import WeightFormat, head_bytes, layers_bytes

_ALL_REDUCES_PER_LAYER = 2
_ACTIVATION_BYTES = 2.0


def kv_bytes_per_token(model: ModelGeometry, weights: WeightFormat) -> float:
    """Bytes of KV cache per token and sequence: 2 L K H times the bytes of a number."""
    return model.kv_values_per_token * weights.activation_bytes


def kv_cache_bytes(model: ModelGeometry, weights: WeightFormat, context_tokens: Tokens) -> Bytes:
    """Bytes of one sequence's KV cache at a context. A layer with a window keeps at most its window."""
    return round(model.mean_attended_tokens(context_tokens) * kv_bytes_per_token(model, weights))


def matrix_flops(num_weights: float, rows: float) -> Flops:
    """FLOP of matrix products: 2 T per weight."""
    return 2.0 * rows * num_weights


def attn_flops(model: ModelGeometry, num_layers: int, rows: float, keys: float) -> Flops:
    """FLOP of attention scores and mixing, T queries over S keys: 4 L T S N H."""
    return 4.0 * num_layers * rows * keys * model.num_heads * model.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class PassWork:
    """Work of one pass on each device: one quantity for each term of the latency law (`perfmodel.passes.latency_law.Law`)."""

    num_passes: int = 0
    """1 where layers run; 0 for an exit check and for a round's bookkeeping."""
    num_syncs: int = 0
    """Times the host waits for a result."""
    num_rounds: int = 0
    drafted_rows: int = 0
    num_layers: int = 0
    rows: int = 0
    """Rows through the layers or the head, all sequences together."""
    layer_bytes: float = 0.0
    """Weights of the layers."""
    head_bytes: float = 0.0
    """Weights of the LM head, where it runs."""
    model_bytes: float = 0.0
    """All weights but the embedding: what passes through the caches before the same weights are read again."""
    layer_flops: float = 0.0
    """Matrices of the layers, and attention among the rows."""
    head_flops: float = 0.0
    kv_bytes_per_cached_token: float = 0.0
    attn_flops_per_cached_token: float = 0.0
    window_kv_bytes: float = 0.0
    """KV cache of layers whose window is shorter than the context: read at any number of cached tokens."""
    window_attn_flops: float = 0.0
    num_all_reduces: int = 0
    """Two for each layer. Sending the rows out and gathering the logits take as long as one each."""
    link_bytes: float = 0.0
    """Bytes that one device sends or receives in all of them."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights read."""
        return self.layer_bytes + self.head_bytes

    @property
    def flops(self) -> float:
        """FLOP of all matrices, and of attention among the rows."""
        return self.layer_flops + self.head_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSetting:
    """A model as it runs: its exits, weights, batch and devices. Turns a pass into work."""

    model: ModelGeometry
    exit_layers: tuple[int, ...] = ()
    """The exits that cut the model into segments; empty for a target that does not draft."""
    weights: WeightFormat
    batch: int = 1
    """Sequences in every pass."""
    num_devices: int = 1
    """Tensor-parallel degree, inside one node."""
    context_tokens: Tokens | None = None
    """The context at which a model that has layers with a window is priced; other models need none."""
    pads_rows: bool = False
    """Whether layers run at `graph_width` rows, as the runtime's captured passes do. Heads are never padded."""

    def work(self, kind: PassKind, stage: int, rows: int) -> PassWork:
        """The work of one pass.

        A self-draft's verify covers the layers above its last exit; with one row it is a step of plain decoding and covers all
        layers. A prefill does not run the head: the prompt's last token leads the first round. An ahead pass counts its wait
        in full; only a measurement shows how much of the wait is hidden.

        Raises:
            BadPolicy: the model has no such exit.
        """
        match kind:
            case "segment" | "draft_prefill":
                return self.layers_work(self._segment_layers(stage), rows=rows)
            case "exit":
                self._segment_layers(stage)
                return self.layers_work(0, rows=0, head_rows=rows)
            case "ahead":
                self._segment_layers(stage - 1)
                return self.layers_work(self._segment_layers(stage), rows=rows, head_rows=1)
            case "verify":
                is_above_draft = self.exit_layers and rows > 1
                num_layers = self.model.num_layers - (self.exit_layers[-1] if is_above_draft else 0)
                return self.layers_work(num_layers, rows=rows, head_rows=rows)
            case "target_prefill":
                return self.layers_work(self.model.num_layers, rows=rows)
            case "round":
                return PassWork(num_rounds=1, drafted_rows=rows)

    def layers_work(self, num_layers: int, *, rows: int, head_rows: int = 0) -> PassWork:
        """The work of some layers over `rows` tokens of each sequence, then of the LM head over `head_rows` of them.

        A row of a sequence attends to half of the sequence's rows on average. All rows of a sequence share one read of its
        cache.
        """
        if self.pads_rows and num_layers:
            rows = graph_width(rows) or rows
        model, weights, num_devices = self.model, self.weights, self.num_devices
        batch_rows, batch_head_rows = rows * self.batch, head_rows * self.batch
        kv_bytes = num_layers / model.num_layers * self.batch * kv_bytes_per_token(model, weights) / num_devices
        token_flops = attn_flops(model, num_layers, batch_rows, 1) / num_devices
        flops = matrix_flops(num_layers * model.layer_params, batch_rows)
        flops += attn_flops(model, num_layers, batch_rows, model.mean_attended_tokens((rows + 1) / 2))
        cached_frac, window_tokens = self._cache_reads()
        num_all_reduces, link_bytes = self._communication(num_layers, batch_rows, batch_head_rows)
        return PassWork(
            num_passes=1 if num_layers else 0,
            num_syncs=1 if head_rows else 0,
            num_layers=num_layers,
            rows=max(batch_rows, batch_head_rows),
            layer_bytes=layers_bytes(model, weights, num_layers) / num_devices,
            head_bytes=head_bytes(model, weights) / num_devices if head_rows else 0.0,
            model_bytes=(layers_bytes(model, weights, model.num_layers) + head_bytes(model, weights)) / num_devices,
            layer_flops=flops / num_devices,
            head_flops=matrix_flops(model.head_params, batch_head_rows) / num_devices,
            kv_bytes_per_cached_token=cached_frac * kv_bytes,
            attn_flops_per_cached_token=cached_frac * token_flops,
            window_kv_bytes=window_tokens * kv_bytes,
            window_attn_flops=window_tokens * token_flops,
            num_all_reduces=num_all_reduces,
            link_bytes=link_bytes,
        )

    def _segment_layers(self, stage: int) -> int:
        if not 0 <= stage < len(self.exit_layers):
            raise BadPolicy(f"exit number {stage} of {self.model.name!r}", f"one of its {len(self.exit_layers)} exits")
        return self.exit_layers[stage] - (self.exit_layers[stage - 1] if stage else 0)

    def _cache_reads(self) -> tuple[Frac, float]:
        """Cache reads of the mean layer near the context: a share of the cached tokens, and a fixed number of tokens."""
        model = self.model
        if model.window_tokens is None:
            return 1.0, 0.0
        if self.context_tokens is None:
            raise ValueError(f"{model.name!r} has layers with a window: its price needs a context")
        if self.context_tokens <= model.window_tokens:
            return 1.0, 0.0
        return 1 - model.windowed_frac, model.windowed_frac * model.window_tokens

    def _communication(self, num_layers: int, rows: int, head_rows: int) -> tuple[int, float]:
        """How often the devices wait for each other, and the bytes that one of them sends or receives in all.

        The first device sends the rows to all others. Each all-reduce moves 2 (n - 1) / n of the rows' bytes. The first device
        receives (n - 1) / n of the logits.
        """
        if self.num_devices == 1:
            return 0, 0.0
        row_bytes = rows * self.model.hidden_size * _ACTIVATION_BYTES
        logit_bytes = head_rows * self.model.num_head_tokens * _ACTIVATION_BYTES
        num_sums, others_frac = _ALL_REDUCES_PER_LAYER * num_layers, (self.num_devices - 1) / self.num_devices
        num_waits = num_sums + (1 if num_layers else 0) + (1 if head_rows else 0)
        return num_waits, row_bytes + others_frac * (2 * num_sums * row_bytes + logit_bytes)
