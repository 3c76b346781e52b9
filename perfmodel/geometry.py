"""What a model is, as far as speed and memory care: its shapes.

Symbols: L layers, D hidden, F mlp, N heads, K kv heads, H head dim, V vocab, E exits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from perfmodel.errors import BadPolicy, UnknownName, UserInputError

DraftKind = Literal["separate", "self"]
"""`separate`: the draft has its own weights. `self`: the draft is the target's first layers and shares its KV."""

_Known = TypeVar("_Known")


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
        """Number of layers of each segment: embedding to e1, e1 to e2, and so on."""
        starts = (0, *self.exit_layers[:-1])
        return tuple(end - start for start, end in zip(starts, self.exit_layers, strict=True))


def _llama(
    name: str,
    repo: str,
    *,
    layers: int,
    hidden: int,
    mlp: int,
    heads: int,
    kv_heads: int,
    vocab: int = 32000,
    context_tokens: int = 4096,
) -> ModelGeometry:
    """A row of the table: heads of 128, an untied head."""
    return ModelGeometry(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        vocab_size=vocab,
        tied_embeddings=False,
        max_context_tokens=context_tokens,
        source=f"config.json of {repo} on the Hugging Face hub",
    )


def _reference(name: str, num_layers: int) -> ModelGeometry:
    """A model of the reference family."""
    return ModelGeometry(
        name=name,
        num_layers=num_layers,
        hidden_size=128,
        intermediate_size=320,
        num_heads=2,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=2048,
        tied_embeddings=True,
        max_context_tokens=512,
        source="the reference family shipped with this package (docs/reference-family.md)",
    )


_LLAMA_3_CONTEXT = {"vocab": 128256, "context_tokens": 131072}
_VICUNA_7B = _llama("vicuna-7b", "lmsys/vicuna-7b-v1.5", layers=32, hidden=4096, mlp=11008, heads=32, kv_heads=32)

KNOWN_MODELS: tuple[ModelGeometry, ...] = (
    _llama("llama-2-7b", "meta-llama/Llama-2-7b-hf", layers=32, hidden=4096, mlp=11008, heads=32, kv_heads=32),
    _llama("llama-2-13b", "meta-llama/Llama-2-13b-hf", layers=40, hidden=5120, mlp=13824, heads=40, kv_heads=40),
    _llama("llama-2-70b", "meta-llama/Llama-2-70b-hf", layers=80, hidden=8192, mlp=28672, heads=64, kv_heads=8),
    _VICUNA_7B,
    _llama("vicuna-13b", "lmsys/vicuna-13b-v1.5", layers=40, hidden=5120, mlp=13824, heads=40, kv_heads=40),
    _llama(
        "llama-3.1-8b", "meta-llama/Llama-3.1-8B", layers=32, hidden=4096, mlp=14336, heads=32, kv_heads=8, **_LLAMA_3_CONTEXT
    ),
    _llama(
        "llama-3.1-70b", "meta-llama/Llama-3.1-70B", layers=80, hidden=8192, mlp=28672, heads=64, kv_heads=8, **_LLAMA_3_CONTEXT
    ),
    _reference("ref-target-16", 16),
    _reference("ref-target-32", 32),
)

KNOWN_DRAFTS: tuple[DraftGeometry, ...] = (
    DraftGeometry(
        kind="separate",
        model=replace(
            _VICUNA_7B,
            name="s2d-vicuna-12",
            num_layers=12,
            source="first 12 layers of lmsys/vicuna-7b-v1.5, exits after 6, 9, 12: Kavehzadeh et al. (arXiv 2407.01955)",
        ),
        exit_layers=(6, 9, 12),
    ),
    DraftGeometry(kind="separate", model=_reference("ref-draft", 6), exit_layers=(1, 2, 4, 6)),
)

ALIASES: dict[str, str] = {
    "llama-7b": "llama-2-7b",
    "llama-13b": "llama-2-13b",
    "llama-70b": "llama-2-70b",
    "llama-2-7b-chat": "llama-2-7b",
    "llama-2-13b-chat": "llama-2-13b",
    "llama-2-70b-chat": "llama-2-70b",
    "vicuna-7b-v1.5": "vicuna-7b",
    "vicuna-13b-v1.5": "vicuna-13b",
    "llama-3.1-8b-instruct": "llama-3.1-8b",
    "llama-3.1-70b-instruct": "llama-3.1-70b",
    "target-16": "ref-target-16",
    "target-32": "ref-target-32",
    "draft": "ref-draft",
    "s2d": "s2d-vicuna-12",
    "s2d-vicuna-7b": "s2d-vicuna-12",
}
"""Other names of known models: of the same shapes, and where a name is open (`llama-70b`) the model S2D was tried on.

A command prints the name it understood, which is that of the geometry found."""


def find_model(name: str) -> ModelGeometry:
    """A known target by name, alias, or the last part of its repository's name; case is ignored.

    Raises:
        UnknownName: with near misses.
    """
    found = _by_name({model.name: model for model in KNOWN_MODELS}, name)
    if found is None:
        raise UnknownName("target", name, _names(KNOWN_MODELS), otherwise="give a config: --target path/to/config.json")
    return found


def find_draft(name: str) -> DraftGeometry:
    """A known nested draft by name or alias; case is ignored.

    Raises:
        UnknownName: with near misses.
    """
    found = _by_name({draft.model.name: draft for draft in KNOWN_DRAFTS}, name)
    if found is None:
        raise UnknownName("draft", name, _names([draft.model for draft in KNOWN_DRAFTS]))
    return found


def _by_name(known: Mapping[str, _Known], name: str) -> _Known | None:
    plain = name.casefold().rpartition("/")[2].removesuffix("-hf")
    return known.get(ALIASES.get(plain, plain))


def _names(models: Sequence[ModelGeometry]) -> list[str]:
    """The names and the aliases that lead to them."""
    names = [model.name for model in models]
    return [*names, *(alias for alias, name in ALIASES.items() if name in names)]


_ARCHITECTURE = "LlamaForCausalLM"
_HF_DEFAULT_CONTEXT_TOKENS = 2048
_REQUIRED_KEYS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def geometry_from_config(config: Mapping[str, Any], name: str) -> ModelGeometry:
    """The geometry in a Hugging Face `config.json` of the Llama family.

    Rotary settings change no shape. What the file leaves out has transformers' meaning: as many kv heads as heads, heads
    that share the hidden size, an untied head, 2048 tokens of context. The vocabulary counts its padding, which is read too.

    Raises:
        UserInputError: another architecture, biases, or a size that is missing or no count.
    """
    _check_architecture(config, name)
    sizes = {key: _count(config, key, name) for key in _REQUIRED_KEYS}
    heads = sizes["num_attention_heads"]
    return ModelGeometry(
        name=name,
        num_layers=sizes["num_hidden_layers"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_heads=heads,
        num_kv_heads=_count(config, "num_key_value_heads", name, default=heads),
        head_dim=_count(config, "head_dim", name, default=sizes["hidden_size"] // heads),
        vocab_size=sizes["vocab_size"],
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        max_context_tokens=_count(config, "max_position_embeddings", name, default=_HF_DEFAULT_CONTEXT_TOKENS),
        source=f"config.json of {name}",
    )


def _check_architecture(config: Mapping[str, Any], name: str) -> None:
    architectures = config.get("architectures") or ()
    found = architectures[0] if architectures else config.get("model_type")
    if found not in (_ARCHITECTURE, "llama"):
        raise UserInputError(
            f"model {name!r}: architecture {found!r}, expected {_ARCHITECTURE!r}. Only the Llama family is known: take a "
            "model whose config.json says so."
        )
    biased = [key for key in ("attention_bias", "mlp_bias") if config.get(key)]
    if biased:
        raise UserInputError(f"model {name!r}: {biased[0]} is true, expected false. Llama models with biases are not known.")


def _count(config: Mapping[str, Any], key: str, name: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserInputError(f"model {name!r}: {key} is {value!r}, expected a count of at least 1. Mend its config.json.")
    return value
