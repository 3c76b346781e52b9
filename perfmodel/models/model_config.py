"""A Hugging Face `config.json` as a geometry.

What a file leaves out has transformers' meaning: what its family's class takes (`perfmodel.models.known_architectures`), else as many
kv heads as heads, heads that share the hidden size, an untied head, 2048 tokens of context. Rotary settings, scalings and soft
caps change neither bytes nor FLOP. The vocabulary counts its padding, which is read too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from perfmodel.core.errors import UserInputError, quoted
from perfmodel.core.units import Tokens
from perfmodel.models.architectures import Config, architecture_names, decoder_config, find_architecture, layer_types
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.known_architectures import Architecture, BiasRule

MAX_COUNT = 10**9
"""No size of a model is larger."""
MAX_LAYERS = 1000
"""No model has more; a quantised one is read layer by layer."""

_DEFAULT_CONTEXT_TOKENS: Tokens = 2048
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_PATTERNS = ("_sliding_window_pattern", "sliding_window_pattern")


def geometry_from_config(config: Config, name: str, source: str | None = None) -> ModelGeometry:
    """The geometry in a config, of a multimodal one that of its text decoder.

    Args:
        config: the object in the file.
        name: what to call the model.
        source: where the file is from; `config.json of NAME` when None. What transformers fills in is added to it.

    Raises:
        UserInputError: a kind of model that the latency law does not cover, or a size that is missing or no count.
        UnknownName: an architecture that is not in the table.
    """
    decoder = decoder_config(config)
    architecture = find_architecture(decoder, name)
    keys = _Keys(decoder=decoder, architecture=architecture, name=name)
    context_tokens = keys.count("max_position_embeddings", default=_DEFAULT_CONTEXT_TOKENS)
    embedding_size = keys.count("word_embed_proj_dim", default=keys.hidden)
    windowed_layers = _windowed_layers(keys, context_tokens)
    offset = architecture.learned_position_offset
    return ModelGeometry(
        name=name,
        num_layers=keys.num_layers,
        hidden_size=keys.hidden,
        intermediate_size=keys.mlp,
        num_heads=keys.heads,
        num_kv_heads=keys.kv_heads,
        head_dim=keys.head_dim,
        vocab_size=keys.count("vocab_size"),
        tied_embeddings=keys.flag("tie_word_embeddings"),
        max_context_tokens=context_tokens,
        source=", ".join([source or f"config.json of {name}", *_remarks(keys, is_text=decoder is not config)]),
        gated_mlp=architecture.gated_mlp,
        extra_layer_params=_extra_layer_params(keys),
        embedding_size=None if embedding_size == keys.hidden else embedding_size,
        learned_positions=0 if offset is None else context_tokens + offset,
        window_tokens=keys.count("sliding_window") if windowed_layers else None,
        windowed_layers=windowed_layers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """What a decoder's config gives, by Llama's names, with its family's defaults for what it leaves out."""

    decoder: Config
    architecture: Architecture
    name: str

    @property
    def hidden(self) -> int:
        return self.count("hidden_size")

    @property
    def heads(self) -> int:
        return self.count("num_attention_heads")

    @property
    def num_layers(self) -> int:
        num_layers = self.count("num_hidden_layers")
        if num_layers > MAX_LAYERS:
            raise self._wrong("num_hidden_layers", f"a count from 1 to {MAX_LAYERS}")
        return num_layers

    @property
    def kv_heads(self) -> int:
        """Kv heads, which share the heads evenly."""
        kv_heads = self.count("num_key_value_heads", default=self.heads)
        if self.heads % kv_heads:
            raise self._wrong("num_key_value_heads", f"a divisor of the {self.heads} heads")
        return kv_heads

    @property
    def head_dim(self) -> int:
        return self.count("head_dim", default=max(1, self.hidden // self.heads))

    @property
    def mlp(self) -> int:
        """The MLP's size: columns of its up matrix."""
        factor = self.architecture.mlp_per_hidden
        whole = self.count("intermediate_size", default=factor and factor * self.hidden)
        if whole % self.architecture.mlp_divisor:
            raise self._wrong("intermediate_size", f"a multiple of {self.architecture.mlp_divisor}")
        return whole // self.architecture.mlp_divisor

    def file_key(self, key: str) -> str:
        """What this family's files call a key."""
        return self.architecture.keys.get(key, key)

    def is_given(self, key: str) -> bool:
        return self.file_key(key) in self.decoder or key in self.decoder

    def value(self, key: str) -> object:
        """What the file says, else the family's default, else None."""
        for written in (self.file_key(key), key):
            if written in self.decoder:
                value: object = self.decoder[written]
                return value
        return self.architecture.defaults.get(key)

    def count(self, key: str, *, default: int | None = None) -> int:
        """A size; the default where the file has null or, like its family's class, nothing."""
        value = self.value(key)
        if value is None and default is not None:
            return default
        if value is None and not self.is_given(key):
            raise UserInputError(
                f"model {quoted(self.name)}: its config leaves out {self.file_key(key)}, for which "
                f"{self.architecture.model_type} has no default. Give the whole config.json of the model."
            )
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
            raise self._wrong(key, "a count from 1 to 10^9")
        return value

    def flag(self, key: str) -> bool:
        """A switch; off where neither the file nor its family says."""
        value = self.value(key)
        if value not in (None, True, False):
            raise self._wrong(key, "true or false")
        return bool(value)

    def applies(self, rule: BiasRule) -> bool:
        """Whether a part has a bias."""
        return rule if isinstance(rule, bool) else self.flag(rule)

    def _wrong(self, key: str, expected: str) -> UserInputError:
        written, value = self.file_key(key), quoted(self.value(key))
        return UserInputError(f"model {quoted(self.name)}: {written} is {value}, expected {expected}. Correct its config.json.")


def _remarks(keys: _Keys, *, is_text: bool) -> Iterator[str]:
    """What a reader of a geometry should know of its file: which part was read, and which sizes it leaves out."""
    if _is_part(keys, is_text=is_text):
        yield "text decoder only"
    if filled := _filled_text(keys):
        yield f"with transformers' defaults of {keys.architecture.model_type}: {filled}"


def _is_part(keys: _Keys, *, is_text: bool) -> bool:
    """Whether the model also sees or hears."""
    family = keys.architecture
    return is_text or family.is_text_of_more or bool(set(family.other_names) & set(architecture_names(keys.decoder)))


def _filled_text(keys: _Keys) -> str:
    """`vocab_size 32000, num_attention_heads 32`: sizes that the file leaves out, as its family's class fills them."""
    left_out = [key for key in _SIZES if not keys.is_given(key) and key in keys.architecture.defaults]
    return ", ".join(f"{key} {keys.value(key)}" for key in left_out)


def reading_note(config: Config, name: str) -> str | None:
    """What to say of a config that was not read as a whole, or not from the file alone; None where there is nothing to say."""
    decoder = decoder_config(config)
    keys = _Keys(decoder=decoder, architecture=find_architecture(decoder, name), name=name)
    filled = _filled_text(keys)
    parts = [
        *([f"only the text decoder of {name} is priced"] if _is_part(keys, is_text=decoder is not config) else []),
        *(
            [f"its config leaves out sizes, taken from transformers' {keys.architecture.model_type}: {filled}"]
            if filled
            else []
        ),
    ]
    return "; ".join(parts) or None


def _extra_layer_params(keys: _Keys) -> int:
    """Norms and biases of one layer beyond two gains of the hidden size; below zero where it has fewer."""
    family, hidden, mlp = keys.architecture, keys.hidden, keys.mlp
    query, key = keys.heads * keys.head_dim, keys.kv_heads * keys.head_dim
    is_parallel = family.parallel_key is not None and keys.flag(family.parallel_key)
    gains = (1 if is_parallel else family.norms_per_layer) * (2 if family.norms_have_biases else 1)
    is_normed = family.query_key_norm_key is None or keys.flag(family.query_key_norm_key)
    normed = {"none": 0, "head": 2 * keys.head_dim, "head-with-bias": 4 * keys.head_dim, "whole": query + key}
    extra = (gains - 2) * hidden + (normed[family.query_key_norm] if is_normed else 0) + family.activation_params
    if keys.applies(family.qkv_bias):
        extra += query + 2 * key
    if keys.applies(family.attn_out_bias):
        extra += hidden
    if keys.applies(family.mlp_bias):
        extra += (2 if family.gated_mlp else 1) * mlp + hidden
    return extra


def _windowed_layers(keys: _Keys, context_tokens: Tokens) -> int:
    """How many layers see a window only; none where the window is as long as the context."""
    rule, num_layers = keys.architecture.windows, keys.num_layers
    types = layer_types(keys.decoder)
    if types and len(types) != num_layers:
        name = quoted(keys.name)
        raise UserInputError(f"model {name}: layer_types has {len(types)} entries, expected {num_layers}, one per layer.")
    if rule in ("none", "from-layer") and not keys.flag("use_sliding_window"):
        return 0
    if rule == "none":
        raise UserInputError(
            f"model {quoted(keys.name)}: use_sliding_window is true, which its family is not known to have. Set it to false if "
            "its layers attend to everything."
        )
    if keys.value("sliding_window") is None or keys.count("sliding_window") >= context_tokens:
        return 0
    if types:
        return sum(one == "sliding_attention" for one in types)
    match rule:
        case "all":
            return num_layers
        case "from-layer":
            return max(0, num_layers - keys.count("max_window_layers", default=num_layers))
        case "every-other":
            return num_layers - num_layers // 2
        case "all-but-every":
            return num_layers - num_layers // _pattern(keys)
        case "all-but-first-of":
            return num_layers - -(-num_layers // _pattern(keys))


def _pattern(keys: _Keys) -> int:
    return keys.count(_PATTERNS[0] if keys.is_given(_PATTERNS[0]) else _PATTERNS[1])
