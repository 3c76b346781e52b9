"""The shapes of a model, which determine its speed and memory.

Symbols: L layers, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, U tokens in the LM head, E exits, W window.
`perfmodel.models.known_models` is the table of models. `perfmodel.models.model_config` reads a Hugging Face config.json.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from perfmodel.core.errors import BadPolicy, UserInputError
from perfmodel.core.units import Frac, Tokens

DraftKind = Literal["separate", "self"]
"""`separate`: the draft has its own weights. `self`: the draft is the target's first layers and shares its KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGeometry:
    """The shapes of one dense decoder. Defaults are those of a Llama."""

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
    gated_mlp: bool = True
    """True: gate, up and down matrices. False: up and down only."""
    extra_layer_params: int = 0
    """Weights in the norms and biases of one layer beyond two gains of the hidden size; negative if there are fewer."""
    embedding_size: int | None = None
    """Width of an embedding that is projected to the hidden size and back (OPT-350M); None without projections."""
    learned_positions: int = 0
    """Rows of a learned table of positions; 0 for rotary positions."""
    window_tokens: Tokens | None = None
    """Tokens that a windowed layer attends to, W; None without windowed layers."""
    windowed_layers: int = 0
    """Number of layers with sliding-window attention, spread evenly."""
    head_vocab_size: int | None = None
    """Tokens in a reduced LM head, U; None if the head covers the whole vocabulary."""

    def __post_init__(self) -> None:
        counts = (self.num_layers, self.hidden_size, self.intermediate_size, self.num_heads, self.num_kv_heads)
        sizes = (self.head_dim, self.vocab_size, self.max_context_tokens, self.embedding_size or 1, self.window_tokens or 1)
        if min(*counts, *sizes) < 1 or self.extra_layer_params < -2 * self.hidden_size or self.learned_positions < 0:
            raise ValueError(f"geometry {self.name!r}: expected every size to be at least 1, got {self!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"geometry {self.name!r}: {self.num_heads} heads cannot share {self.num_kv_heads} kv heads evenly")
        if not 0 <= self.windowed_layers <= self.num_layers or bool(self.windowed_layers) != (self.window_tokens is not None):
            problem = f"{self.windowed_layers} of {self.num_layers} layers with a window of {self.window_tokens} tokens"
            raise ValueError(f"geometry {self.name!r}: {problem}, expected both or neither")
        if not 1 <= self.num_head_tokens <= self.vocab_size:
            problem = f"an LM head of {self.head_vocab_size} tokens, expected 1 to the {self.vocab_size} of its vocabulary"
            raise ValueError(f"geometry {self.name!r}: {problem}")

    @property
    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """Rows (outputs) and columns (inputs) of each matrix in one layer, by its name in checkpoints."""
        hidden, mlp = self.hidden_size, self.intermediate_size
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attn = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
        if self.gated_mlp:
            return attn | {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
        return attn | {"fc1": (mlp, hidden), "fc2": (hidden, mlp)}

    @property
    def layer_matrix_params(self) -> int:
        """Weights of `layer_matrices`, computed directly because every priced pass needs the sum."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        mlp_matrices = 3 if self.gated_mlp else 2
        return self.hidden_size * (2 * query + 2 * key + mlp_matrices * self.intermediate_size)

    @property
    def layer_params(self) -> int:
        """Weights of one layer: Q, K, V and O, up, down and (if gated) gate, norms and biases."""
        return self.layer_matrix_params + 2 * self.hidden_size + self.extra_layer_params

    @property
    def num_head_tokens(self) -> Tokens:
        """Tokens that the LM head covers: U."""
        return self.vocab_size if self.head_vocab_size is None else self.head_vocab_size

    @property
    def has_reduced_head(self) -> bool:
        """Whether the LM head covers less than the vocabulary."""
        return self.num_head_tokens < self.vocab_size

    @property
    def head_label(self) -> str:
        """`a head of 8192 of 32000 tokens`."""
        return f"a head of {self.num_head_tokens} of {self.vocab_size} tokens"

    @property
    def head_params(self) -> int:
        """Weights read by one LM head call: U D; with a narrow embedding, U times its width plus the projection."""
        if self.embedding_size is None:
            return self.num_head_tokens * self.hidden_size
        return (self.num_head_tokens + self.hidden_size) * self.embedding_size

    @property
    def num_params(self) -> int:
        """All weights; a tied head is counted once.

        A reduced head is never tied: its rows are scattered over the embedding and are copied, so both are stored. The table
        that maps its tokens to the vocabulary is not counted as weights.
        """
        tables = self.embedding_params + (0 if self.has_tied_head else self.head_table_params)
        return self.num_layers * self.layer_params + tables + self.outer_params

    @property
    def embedding_width(self) -> int:
        """Width of the embedding and of each row in the LM head."""
        return self.embedding_size or self.hidden_size

    @property
    def has_tied_head(self) -> bool:
        """Whether the LM head reads the rows of the embedding."""
        return self.tied_embeddings and not self.has_reduced_head

    @property
    def embedding_params(self) -> int:
        """Weights of the embedding."""
        return self.vocab_size * self.embedding_width

    @property
    def head_table_params(self) -> int:
        """Weights of the LM head's table."""
        return self.num_head_tokens * self.embedding_width

    @property
    def outer_params(self) -> int:
        """Weights outside layers, embedding and head: the final norm, learned positions, projections of the embedding."""
        projections = 2 * self.embedding_size * self.hidden_size if self.embedding_size else 0
        return projections + self.learned_positions * self.hidden_size + self.hidden_size

    @property
    def kv_values_per_token(self) -> int:
        """Values written to the KV cache per token: 2 L K H."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def windowed_frac(self) -> Frac:
        """Fraction of the layers with sliding-window attention."""
        return self.windowed_layers / self.num_layers

    @property
    def full_attention_tokens(self) -> Tokens:
        """The longest text that every layer attends to completely: the shorter of context and window."""
        return self.max_context_tokens if self.window_tokens is None else min(self.window_tokens, self.max_context_tokens)

    def mean_attended_tokens(self, context_tokens: float) -> float:
        """Number of tokens that a layer attends to in a given context, averaged over layers."""
        if self.window_tokens is None:
            return context_tokens
        outside_window = max(0.0, context_tokens - self.window_tokens)
        return context_tokens - self.windowed_frac * outside_window

    @property
    def differences_from_llama(self) -> tuple[str, ...]:
        """Features that a Llama does not have, in words."""
        features = {
            "a plain MLP": not self.gated_mlp,
            "additional norms or biases": self.extra_layer_params > 0,
            "fewer norms": self.extra_layer_params < 0,
            "projected embeddings": self.embedding_size is not None,
            "learned positions": self.learned_positions > 0,
            "layers with a window": self.windowed_layers > 0,
            "a reduced head": self.has_reduced_head,
        }
        return tuple(feature for feature, is_present in features.items() if is_present)


SELF_DRAFT = "self"
"""Draft name for the target's own first layers."""
REFERENCE_PREFIX = "ref-"
"""Prefix of all names in the reference family: `ref-draft`, `ref-target-16`."""


def same_shape(model: ModelGeometry, other: ModelGeometry) -> bool:
    """Whether two models differ in name and source only. Then they have the same speed and memory."""
    return replace(model, name="", source="") == replace(other, name="", source="")


def check_exit_layers(layers: tuple[int, ...]) -> None:
    """Check that a model can have these exits.

    Raises:
        BadPolicy: there are no exits, or their layer counts do not increase from 1 or more.
    """
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
        raise BadPolicy(f"exit layers {layers!r}", "rising layer counts, the first at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftGeometry:
    """A nested draft: one decoder and the layers after which it may predict a token.

    For a `self` draft, `model` is the target, and the last exit comes before the target's last layer.
    """

    kind: DraftKind
    model: ModelGeometry
    exit_layers: tuple[int, ...]
    """Increasing layer counts; the last exit of a separate draft is its depth."""

    def __post_init__(self) -> None:
        layers, depth = self.exit_layers, self.model.num_layers
        check_exit_layers(layers)
        if self.kind == "separate" and layers[-1] > depth:
            raise BadPolicy(f"exit layer {layers[-1]} of a draft with {depth} layers", f"exits up to {depth}")
        if self.kind == "self" and layers[-1] >= depth:
            raise BadPolicy(f"exit layer {layers[-1]} of a self-draft", f"exits below the target's {depth} layers")

    @property
    def segment_layers(self) -> tuple[int, ...]:
        """Number of layers of each segment: embedding to e1, e1 to e2, and so on."""
        starts = (0, *self.exit_layers[:-1])
        return tuple(end - start for start, end in zip(starts, self.exit_layers, strict=True))


def tensor_parallel_degrees(model: ModelGeometry) -> tuple[int, ...]:
    """Numbers of devices that can share each layer, increasing: the common divisors of KV heads and MLP units.

    They also divide the heads, because every KV head serves the same number of heads. KV heads are never duplicated.
    """
    shared = math.gcd(model.num_kv_heads, model.intermediate_size)
    return tuple(degree for degree in range(1, shared + 1) if shared % degree == 0)


def check_degree(model: ModelGeometry, degree: int, *, noun: str, fix: str, max_degree: int | None = None) -> None:
    """Check that a number of devices can share a model's layers evenly.

    Args:
        model: the whole model.
        degree: the number of devices.
        noun: the word for them in the message, such as `devices`.
        fix: advice for the message, a sentence without its full stop.
        max_degree: the largest number to suggest; None for all that the model allows.

    Raises:
        UserInputError: they cannot; the message lists the numbers that can.
    """
    degrees = tensor_parallel_degrees(model)
    if degree in degrees:
        return
    counts = {"KV head": model.num_kv_heads, "MLP unit": model.intermediate_size}
    part, count = next((part, count) for part, count in counts.items() if degree < 1 or count % degree)
    *others, last = (str(allowed) for allowed in degrees if max_degree is None or allowed <= max_degree)
    expected = f"{', '.join(others)} or {last}" if others else last
    parts = f"{count} {part}{'' if count == 1 else 's'}"
    raise UserInputError(
        f"model {model.name} has {parts}, which {degree} {noun} cannot share evenly: expected {expected}. {fix}."
    )


def with_reduced_head(model: ModelGeometry, draft_vocab: Tokens | None) -> ModelGeometry:
    """A model whose LM head covers only the most frequent tokens.

    Args:
        model: the model with its complete head.
        draft_vocab: tokens in the reduced head (`--draft-vocab`); None, or the vocabulary size, keeps the complete head.

    Raises:
        UserInputError: fewer than one token, or more than the vocabulary.
    """
    if draft_vocab is None:
        return model
    if not 1 <= draft_vocab <= model.vocab_size:
        raise UserInputError(
            f"--draft-vocab {draft_vocab}: expected from 1 to {model.vocab_size} tokens, the vocabulary of {model.name}."
        )
    return replace(model, head_vocab_size=None if draft_vocab == model.vocab_size else draft_vocab)
