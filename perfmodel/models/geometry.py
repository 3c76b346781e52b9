"""What a model is, as far as speed and memory care: its shapes.

Symbols: L layers, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, U tokens the LM head can say, E exits, W window.
The table of models is `perfmodel.models.known_models`, what a Hugging Face config.json says is read by `perfmodel.models.model_config`.
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
    """The shapes of one dense decoder. What has a default is as in a Llama unless given."""

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
    """Gate, up and down; up and down only where it is false."""
    extra_layer_params: int = 0
    """Norms and biases of one layer beyond two gains of the hidden size; below zero where it has fewer."""
    embedding_size: int | None = None
    """Width of the embedding where it is projected to the hidden size and back (OPT-350M); None where it is not."""
    learned_positions: int = 0
    """Rows of a learned table of positions; 0 where positions are rotary."""
    window_tokens: Tokens | None = None
    """What the windowed layers see of the context, W; None where there are none."""
    windowed_layers: int = 0
    """Layers that see a window only, spread evenly."""
    head_vocab_size: int | None = None
    """Tokens the LM head can say, U; None where it is the whole vocabulary."""

    def __post_init__(self) -> None:
        counts = (self.num_layers, self.hidden_size, self.intermediate_size, self.num_heads, self.num_kv_heads)
        sizes = (self.head_dim, self.vocab_size, self.max_context_tokens, self.embedding_size or 1, self.window_tokens or 1)
        if min(*counts, *sizes) < 1 or self.extra_layer_params < -2 * self.hidden_size or self.learned_positions < 0:
            raise ValueError(f"geometry {self.name!r}: every size is at least 1, got {self!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"geometry {self.name!r}: {self.num_heads} heads do not share {self.num_kv_heads} kv heads")
        if not 0 <= self.windowed_layers <= self.num_layers or bool(self.windowed_layers) != (self.window_tokens is not None):
            problem = f"{self.windowed_layers} of {self.num_layers} layers with a window of {self.window_tokens} tokens"
            raise ValueError(f"geometry {self.name!r}: {problem}, expected both or neither")
        if not 1 <= self.num_head_tokens <= self.vocab_size:
            problem = f"an LM head of {self.head_vocab_size} tokens, expected 1 to the {self.vocab_size} of its vocabulary"
            raise ValueError(f"geometry {self.name!r}: {problem}")

    @property
    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """Rows (out) and columns (in) of the matrices of one layer, by the names that checkpoints use."""
        hidden, mlp = self.hidden_size, self.intermediate_size
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attn = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
        if self.gated_mlp:
            return attn | {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
        return attn | {"fc1": (mlp, hidden), "fc2": (hidden, mlp)}

    @property
    def layer_matrix_params(self) -> int:
        """Weights of `layer_matrices`, added up here because every priced pass asks for them."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        mlp_matrices = 3 if self.gated_mlp else 2
        return self.hidden_size * (2 * query + 2 * key + mlp_matrices * self.intermediate_size)

    @property
    def layer_params(self) -> int:
        """Weights of one layer: Q and O, K and V, up, down and perhaps gate, norms and biases."""
        return self.layer_matrix_params + 2 * self.hidden_size + self.extra_layer_params

    @property
    def num_head_tokens(self) -> Tokens:
        """Tokens the LM head can say: U."""
        return self.vocab_size if self.head_vocab_size is None else self.head_vocab_size

    @property
    def has_reduced_head(self) -> bool:
        """Whether there are tokens that the LM head cannot say."""
        return self.num_head_tokens < self.vocab_size

    @property
    def head_label(self) -> str:
        """`a head of 8192 of 32000 tokens`."""
        return f"a head of {self.num_head_tokens} of {self.vocab_size} tokens"

    @property
    def head_params(self) -> int:
        """Weights read by one LM head call: U D, or where the embedding is narrower U times its width and the way there."""
        if self.embedding_size is None:
            return self.num_head_tokens * self.hidden_size
        return (self.num_head_tokens + self.hidden_size) * self.embedding_size

    @property
    def num_params(self) -> int:
        """All weights; a tied head is counted once.

        A reduced head is never tied: the rows it reads are scattered over the embedding and are copied out of it, so both are
        kept. The table that maps its tokens to the vocabulary's holds no weights.
        """
        tables = self.embedding_params + (0 if self.has_tied_head else self.head_table_params)
        return self.num_layers * self.layer_params + tables + self.outer_params

    @property
    def embedding_width(self) -> int:
        """Width of the embedding and of the rows of the LM head."""
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
        """Weights of the LM head's own table."""
        return self.num_head_tokens * self.embedding_width

    @property
    def outer_params(self) -> int:
        """Weights outside layers and tables: the final norm, learned positions, projections of the embedding."""
        projections = 2 * self.embedding_size * self.hidden_size if self.embedding_size else 0
        return projections + self.learned_positions * self.hidden_size + self.hidden_size

    @property
    def kv_values_per_token(self) -> int:
        """Numbers written to the KV cache per token: 2 L K H."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def windowed_frac(self) -> Frac:
        """Share of the layers that see a window only."""
        return self.windowed_layers / self.num_layers

    @property
    def fully_seen_tokens(self) -> Tokens:
        """The longest text of which every layer sees all: the context, or the window where that is shorter."""
        return self.max_context_tokens if self.window_tokens is None else min(self.window_tokens, self.max_context_tokens)

    def seen_tokens(self, context_tokens: float) -> float:
        """Of the tokens in a context, how many a layer sees, in the mean over layers."""
        if self.window_tokens is None:
            return context_tokens
        unseen = max(0.0, context_tokens - self.window_tokens)
        return context_tokens - self.windowed_frac * unseen

    @property
    def departures(self) -> tuple[str, ...]:
        """What sets it apart from a Llama, in words."""
        found = {
            "a plain MLP": not self.gated_mlp,
            "further norms or biases": self.extra_layer_params > 0,
            "fewer norms": self.extra_layer_params < 0,
            "projected embeddings": self.embedding_size is not None,
            "learned positions": self.learned_positions > 0,
            "layers with a window": self.windowed_layers > 0,
            "a reduced head": self.has_reduced_head,
        }
        return tuple(what for what, is_so in found.items() if is_so)


SELF_DRAFT = "self"
"""What commands take in the place of a draft's name: the target's own layers."""
REFERENCE_PREFIX = "ref-"
"""Names of the reference family begin with it: `ref-draft`, `ref-target-16`."""


def same_shape(model: ModelGeometry, other: ModelGeometry) -> bool:
    """Whether two models differ in name and source only. Then they have the same speed and memory."""
    return replace(model, name="", source="") == replace(other, name="", source="")


def check_exit_layers(layers: tuple[int, ...]) -> None:
    """Refuse what no model has as its exits.

    Raises:
        BadPolicy: none, or layer counts that do not rise from 1 or more.
    """
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
        raise BadPolicy(f"exit layers {layers!r}", "rising layer counts, the first at least 1")


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
    """The numbers of devices that can share a model's layers, rising: those that divide its KV heads and its MLP units.

    They divide the heads too, of which there are as many for every KV head. No KV head is held twice.
    """
    shared = math.gcd(model.num_kv_heads, model.intermediate_size)
    return tuple(degree for degree in range(1, shared + 1) if shared % degree == 0)


def check_degree(model: ModelGeometry, degree: int, *, among: str, fix: str, max_degree: int | None = None) -> None:
    """Refuse a number of devices that cannot share a model's layers evenly.

    Args:
        model: the whole model.
        degree: how many are to share it.
        among: what they are, such as `devices`.
        fix: what to do then, a whole sentence without its full stop.
        max_degree: the most to name; None for all that the model allows.

    Raises:
        UserInputError: says which numbers can.
    """
    degrees = tensor_parallel_degrees(model)
    if degree in degrees:
        return
    counts = {"KV head": model.num_kv_heads, "MLP unit": model.intermediate_size}
    what, count = next((what, count) for what, count in counts.items() if degree < 1 or count % degree)
    *others, last = (str(one) for one in degrees if one <= (max_degree or one))
    expected = f"{', '.join(others)} or {last}" if others else last
    parts = f"{count} {what}{'' if count == 1 else 's'}"
    raise UserInputError(
        f"model {model.name} has {parts}, which {degree} {among} cannot share evenly: expected {expected}. {fix}."
    )


def with_reduced_head(model: ModelGeometry, draft_vocab: Tokens | None) -> ModelGeometry:
    """A model whose LM head covers only its most frequent tokens.

    Args:
        model: with its own head.
        draft_vocab: so many, as `--draft-vocab` gives them; None, or all of them, where the head is to be whole.

    Raises:
        UserInputError: fewer than one, or more than there are.
    """
    if draft_vocab is None:
        return model
    if not 1 <= draft_vocab <= model.vocab_size:
        raise UserInputError(
            f"--draft-vocab {draft_vocab}: expected from 1 to {model.vocab_size} tokens, the vocabulary of {model.name}."
        )
    return replace(model, head_vocab_size=None if draft_vocab == model.vocab_size else draft_vocab)
