"""A Hugging Face `config.json` as a geometry.

What a file leaves out has transformers' meaning: what its family's code takes (`perfmodel.architectures`), else as many kv
heads as heads, heads that share the hidden size, an untied head, 2048 tokens of context. Rotary settings, scalings and soft
caps change neither bytes nor FLOP. The vocabulary counts its padding, which is read too.
"""

from typing import Any

from perfmodel.architectures import Architecture, Config, decoder_config, find_architecture
from perfmodel.errors import UserInputError
from perfmodel.geometry import ModelGeometry
from perfmodel.profile import Dtype
from perfmodel.units import Tokens

_DEFAULT_CONTEXT_TOKENS: Tokens = 2048
_LARGEST_COUNT = 10**9
_OPT_POSITION_OFFSET = 2
"""OPT's table of positions starts at the third row."""
_BITS_DTYPE: dict[object, Dtype] = {4: "int4", 8: "int8"}


def geometry_from_config(config: Config, name: str, source: str | None = None) -> ModelGeometry:
    """The geometry in a config, of a multimodal one that of its text decoder.

    Args:
        config: the object in the file.
        name: what to call the model.
        source: where the file is from; `config.json of NAME` when None.

    Raises:
        UserInputError: a kind of model that the latency law does not cover, or a size that is missing or no count.
        UnknownName: an architecture that is not in the table.
    """
    decoder = decoder_config(config)
    architecture = find_architecture(decoder, name)
    keys = {**architecture.defaults, **decoder}
    hidden, heads = _count(keys, "hidden_size", name), _count(keys, "num_attention_heads", name)
    layers = _count(keys, "num_hidden_layers", name)
    context_tokens = _count(keys, "max_position_embeddings", name, default=_DEFAULT_CONTEXT_TOKENS)
    embedding_size = _count(keys, "word_embed_proj_dim", name, default=hidden)
    kv_heads = _count(keys, "num_key_value_heads", name, default=heads)
    if heads % kv_heads:
        raise UserInputError(
            f"model {name!r}: num_key_value_heads is {kv_heads}, expected a divisor of num_attention_heads, {heads}. Mend its "
            "config.json."
        )
    windowed_layers = _windowed_layers(keys, architecture, layers, context_tokens, name)
    return ModelGeometry(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=_count(keys, architecture.mlp_key, name),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_count(keys, "head_dim", name, default=hidden // heads),
        vocab_size=_count(keys, "vocab_size", name),
        tied_embeddings=bool(keys.get("tie_word_embeddings", False)),
        max_context_tokens=context_tokens,
        source=source or f"config.json of {name}",
        gated_mlp=architecture.gated_mlp,
        extra_layer_params=_extra_layer_params(keys, architecture, name),
        embedding_size=None if embedding_size == hidden else embedding_size,
        learned_positions=context_tokens + _OPT_POSITION_OFFSET if architecture.has_learned_positions else 0,
        window_tokens=_count(keys, "sliding_window", name) if windowed_layers else None,
        windowed_layers=windowed_layers,
    )


def _extra_layer_params(keys: dict[str, Any], architecture: Architecture, name: str) -> int:
    """Norms and biases of one layer beyond two gains of the hidden size."""
    hidden, heads = _count(keys, "hidden_size", name), _count(keys, "num_attention_heads", name)
    mlp, head_dim = _count(keys, architecture.mlp_key, name), _count(keys, "head_dim", name, default=hidden // heads)
    query = heads * head_dim
    key = _count(keys, "num_key_value_heads", name, default=heads) * head_dim
    gains = architecture.norms_per_layer * (2 if architecture.norms_have_biases else 1)
    norms = (gains - 2) * hidden + {"none": 0, "head": 2 * head_dim, "whole": query + key}[architecture.query_key_norm]
    match architecture.biases:
        case "qkv":
            return norms + query + 2 * key
        case "all":
            return norms + (query + 2 * key + hidden + mlp + hidden if keys.get("enable_bias", True) else 0)
        case "as-told":
            attn_biases = query + 2 * key + hidden if keys.get("attention_bias") else 0
            return norms + attn_biases + (2 * mlp + hidden if keys.get("mlp_bias") else 0)


def _windowed_layers(
    keys: dict[str, Any], architecture: Architecture, num_layers: int, context_tokens: Tokens, name: str
) -> int:
    """How many layers see a window only; none where the window is as long as the context."""
    rule = architecture.windows
    if rule in ("none", "from-layer") and not keys.get("use_sliding_window"):
        return 0
    if rule == "none":
        raise UserInputError(
            f"model {name!r}: use_sliding_window is true, which its family is not known to have. Set it to false if its "
            "layers attend to everything."
        )
    if keys.get("sliding_window") is None or _count(keys, "sliding_window", name) >= context_tokens:
        return 0
    types = keys.get("layer_types")
    if types:
        if len(types) != num_layers:
            raise UserInputError(f"model {name!r}: layer_types has {len(types)} entries, expected {num_layers}, one per layer.")
        return sum(one == "sliding_attention" for one in types)
    match rule:
        case "all":
            return num_layers
        case "from-layer":
            return max(0, num_layers - int(keys["max_window_layers"]))
        case "every-other":
            return num_layers - num_layers // 2
        case "all-but-every":
            every = "_sliding_window_pattern" if "_sliding_window_pattern" in keys else "sliding_window_pattern"
            return num_layers - num_layers // _count(keys, every, name)


def _count(keys: dict[str, Any], key: str, name: str, *, default: int | None = None) -> int:
    value = keys.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserInputError(f"model {name!r}: {key} is {value!r}, expected a count of at least 1. Mend its config.json.")
    if value > _LARGEST_COUNT:
        raise UserInputError(f"model {name!r}: {key} is above 10**9, expected a smaller count. Mend its config.json.")
    return value


def quantisation_note(config: Config, name: str) -> str | None:
    """What to say of a config whose weights are stored quantised; None where they are not.

    Shapes do not tell bytes: a model is priced in the dtype that is asked for, whatever its file holds.
    """
    stored = config.get("quantization_config") or decoder_config(config).get("quantization_config")
    if not isinstance(stored, dict):
        return None
    method = str(stored.get("quant_method", "an unknown method"))
    bits = stored.get("bits") or (4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else None)
    dtype: Dtype | None = "fp8" if "fp8" in method else _BITS_DTYPE.get(bits)
    told = f"{name} is stored quantised ({method}{f', {bits} bits' if bits else ''}), and priced in the dtype asked for: "
    return told + (f"give --dtype {dtype} for its own" if dtype else "give the --dtype whose bytes are nearest to its own")
