"""Convert a Hugging Face `config.json` to a geometry.

A missing key has the value that transformers gives it: the default of the architecture's class
(`perfmodel.models.known_architectures`). Without such a default there are as many kv heads as heads, the heads divide the
hidden size, the head is untied, and the context is 2048 tokens. Rotary settings, scalings and soft caps change neither bytes
nor FLOP. The vocabulary includes its padding, which is read too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from perfmodel.core.errors import UserInputError, quoted
from perfmodel.core.units import Tokens
from perfmodel.models.architectures import Config, architecture_names, decoder_config, find_architecture, layer_types
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.known_architectures import Architecture, BiasRule

MAX_COUNT = 10**9
"""Upper limit for every size of a model."""
MAX_LAYERS = 1000
"""Upper limit for the number of layers; the format of a quantised model is computed layer by layer."""

_DEFAULT_CONTEXT_TOKENS: Tokens = 2048
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_PATTERNS = ("_sliding_window_pattern", "sliding_window_pattern")


def geometry_from_config(config: Config, name: str, source: str | None = None) -> ModelGeometry:
    """The geometry of the model in a config; the text decoder of a multimodal model.

    Args:
        config: the object in the file.
        name: the model's name in the geometry.
        source: origin of the file; `config.json of NAME` when None. Sizes that transformers fills in are appended.

    Raises:
        UserInputError: the latency law does not cover the model, or a size is missing or not a count.
        UnknownName: the architecture is not in the table.
    """
    keys = _keys(config, name)
    architecture = keys.architecture
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
        source=", ".join([source or f"config.json of {name}", *_source_remarks(keys)]),
        gated_mlp=architecture.gated_mlp,
        extra_layer_params=_extra_layer_params(keys),
        embedding_size=None if embedding_size == keys.hidden else embedding_size,
        learned_positions=0 if offset is None else context_tokens + offset,
        window_tokens=keys.count("sliding_window") if windowed_layers else None,
        windowed_layers=windowed_layers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """A decoder's config by Llama's key names, with the architecture's defaults for missing keys."""

    decoder: Config
    architecture: Architecture
    name: str
    is_nested: bool
    """Whether the decoder is one part of a larger config."""

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
        """Number of kv heads, which must divide the number of heads."""
        kv_heads = self.count("num_key_value_heads", default=self.heads)
        if self.heads % kv_heads:
            raise self._wrong("num_key_value_heads", f"a divisor of the {self.heads} heads")
        return kv_heads

    @property
    def head_dim(self) -> int:
        return self.count("head_dim", default=max(1, self.hidden // self.heads))

    @property
    def mlp(self) -> int:
        """The MLP's size: outputs of its up matrix."""
        factor = self.architecture.mlp_per_hidden
        size = self.count("intermediate_size", default=factor and factor * self.hidden)
        if size % self.architecture.mlp_divisor:
            raise self._wrong("intermediate_size", f"a multiple of {self.architecture.mlp_divisor}")
        return size // self.architecture.mlp_divisor

    def file_key(self, key: str) -> str:
        """The name of a key in files of this architecture."""
        return self.architecture.keys.get(key, key)

    def is_given(self, key: str) -> bool:
        return self.file_key(key) in self.decoder or key in self.decoder

    def value(self, key: str) -> object:
        """The value in the file, else the architecture's default, else None."""
        for written in (self.file_key(key), key):
            if written in self.decoder:
                value: object = self.decoder[written]
                return value
        return self.architecture.defaults.get(key)

    def count(self, key: str, *, default: int | None = None) -> int:
        """A size; the default if the file has null, or if neither the file nor the architecture has a value."""
        value = self.value(key)
        if value is None and default is not None:
            return default
        if value is None and not self.is_given(key):
            raise UserInputError(
                f"model {quoted(self.name)}: its config leaves out {self.file_key(key)}, for which "
                f"{self.architecture.model_type} has no default. Give the complete config.json of the model."
            )
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
            raise self._wrong(key, "a count from 1 to 10^9")
        return value

    def flag(self, key: str) -> bool:
        """A switch; false if neither the file nor the architecture has a value."""
        value = self.value(key)
        if value not in (None, True, False):
            raise self._wrong(key, "true or false")
        return bool(value)

    def applies(self, rule: BiasRule) -> bool:
        """Whether a matrix has a bias."""
        return rule if isinstance(rule, bool) else self.flag(rule)

    def _wrong(self, key: str, expected: str) -> UserInputError:
        written, value = self.file_key(key), quoted(self.value(key))
        return UserInputError(f"model {quoted(self.name)}: {written} is {value}, expected {expected}. Correct its config.json.")


def _keys(config: Config, name: str) -> _Keys:
    """The decoder's keys in a config."""
    decoder = decoder_config(config)
    return _Keys(decoder=decoder, architecture=find_architecture(decoder, name), name=name, is_nested=decoder is not config)


def _source_remarks(keys: _Keys) -> Iterator[str]:
    """Parts of a geometry's source: whether only a text decoder was read, and which sizes are defaults."""
    if _is_multimodal(keys):
        yield "text decoder only"
    if defaults := _defaults_text(keys):
        yield f"with transformers' defaults of {keys.architecture.model_type}: {defaults}"


def _is_multimodal(keys: _Keys) -> bool:
    """Whether the model also processes images or audio."""
    architecture = keys.architecture
    other_names = set(architecture.other_names) & set(architecture_names(keys.decoder))
    return keys.is_nested or architecture.is_multimodal or bool(other_names)


def _defaults_text(keys: _Keys) -> str:
    """`vocab_size 32000, num_attention_heads 32`: sizes that the file omits, with the architecture's defaults."""
    omitted = [key for key in _SIZES if not keys.is_given(key) and key in keys.architecture.defaults]
    return ", ".join(f"{key} {keys.value(key)}" for key in omitted)


def config_note(config: Config, name: str) -> str | None:
    """A note that only the text decoder is priced, or that sizes are defaults; None if neither is the case."""
    keys = _keys(config, name)
    notes = [f"only the text decoder of {name} is priced"] if _is_multimodal(keys) else []
    if defaults := _defaults_text(keys):
        notes.append(f"its config leaves out sizes, taken from transformers' {keys.architecture.model_type}: {defaults}")
    return "; ".join(notes) or None


def _extra_layer_params(keys: _Keys) -> int:
    """Weights in one layer's norms and biases beyond two gains of the hidden size; negative if there are fewer."""
    family, hidden, mlp = keys.architecture, keys.hidden, keys.mlp
    query, key = keys.heads * keys.head_dim, keys.kv_heads * keys.head_dim
    is_parallel = family.parallel_key is not None and keys.flag(family.parallel_key)
    gains = (1 if is_parallel else family.norms_per_layer) * (2 if family.norms_have_biases else 1)
    is_normed = family.query_key_norm_key is None or keys.flag(family.query_key_norm_key)
    norm_params = {"none": 0, "head": 2 * keys.head_dim, "head-with-bias": 4 * keys.head_dim, "whole": query + key}
    extra = (gains - 2) * hidden + (norm_params[family.query_key_norm] if is_normed else 0) + family.activation_params
    if keys.applies(family.qkv_bias):
        extra += query + 2 * key
    if keys.applies(family.attn_out_bias):
        extra += hidden
    if keys.applies(family.mlp_bias):
        extra += (2 if family.gated_mlp else 1) * mlp + hidden
    return extra


def _windowed_layers(keys: _Keys, context_tokens: Tokens) -> int:
    """Number of layers with sliding-window attention; 0 if the window is as long as the context."""
    rule, num_layers = keys.architecture.windows, keys.num_layers
    types = layer_types(keys.decoder)
    if types and len(types) != num_layers:
        name = quoted(keys.name)
        raise UserInputError(f"model {name}: layer_types has {len(types)} entries, expected {num_layers}, one per layer.")
    if rule in ("none", "from-layer") and not keys.flag("use_sliding_window"):
        return 0
    if rule == "none":
        raise UserInputError(
            f"model {quoted(keys.name)}: use_sliding_window is true, but its family is not known to have windows. Set it to "
            "false if its layers attend to the whole context."
        )
    if keys.value("sliding_window") is None or keys.count("sliding_window") >= context_tokens:
        return 0
    if types:
        return types.count("sliding_attention")
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
