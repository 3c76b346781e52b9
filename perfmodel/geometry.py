"""What a model is, as far as speed and memory care: its shapes.

Symbols: L layers, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, E exits.
"""

from dataclasses import dataclass
from typing import Literal

from perfmodel.errors import BadPolicy

DraftKind = Literal["separate", "self"]
"""`separate`: the draft has its own weights. `self`: the draft is the target's first layers and shares its KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGeometry:
    """The shapes of one decoder of the Llama family (RMSNorm, gated MLP, rotary positions, no biases)."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    max_context_tokens: int
    source: str

    def __post_init__(self) -> None:
        counts = (self.num_layers, self.hidden_size, self.intermediate_size, self.num_heads, self.num_kv_heads)
        if min(*counts, self.head_dim, self.vocab_size, self.max_context_tokens) < 1:
            raise ValueError(f"geometry {self.name!r}: every size is at least 1, got {self!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"geometry {self.name!r}: {self.num_heads} heads do not share {self.num_kv_heads} kv heads")

    @property
    def layer_params(self) -> int:
        """Weights of one layer: Q and O, K and V, gate, up and down, two norms."""
        attn = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return attn + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def head_params(self) -> int:
        """Weights read by one LM head call: V D."""
        return self.vocab_size * self.hidden_size

    @property
    def num_params(self) -> int:
        """All weights; a tied head is counted once."""
        tables = self.head_params * (1 if self.tied_embeddings else 2)
        return self.num_layers * self.layer_params + tables + self.hidden_size

    @property
    def kv_values_per_token(self) -> int:
        """Numbers kept in the KV cache per token: 2 L K H."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftGeometry:
    """A nested draft: one decoder and the layers after which it may answer.

    For a `self` draft, `model` is the target and the last exit lies above its last layer.
    """

    kind: DraftKind
    model: ModelGeometry
    exit_layers: tuple[int, ...]
    """Layer counts, rising; a separate draft's last exit is its depth."""

    def __post_init__(self) -> None:
        layers, depth = self.exit_layers, self.model.num_layers
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
            raise BadPolicy(f"exit layers {layers!r}", "rising layer counts, the first at least 1")
        if self.kind == "separate" and layers[-1] > depth:
            raise BadPolicy(f"exit layer {layers[-1]} of a draft with {depth} layers", f"exits up to {depth}")
        if self.kind == "self" and layers[-1] >= depth:
            raise BadPolicy(f"exit layer {layers[-1]} of a self-draft", f"exits below the target's {depth} layers")

    @property
    def segment_layers(self) -> tuple[int, ...]:
        """Number of layers of each segment: embedding to e1, e1 to e2, …"""
        starts = (0, *self.exit_layers[:-1])
        return tuple(end - start for start, end in zip(starts, self.exit_layers, strict=True))
