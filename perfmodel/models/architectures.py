"""Find the architecture of a config.json, or explain why the latency law does not cover it.

A config.json lists sizes but does not describe the computation. Only the model code shows that Qwen2 adds biases to Q, K and V,
or that Gemma 2 has four norms per layer and a window in every other layer. An architecture is therefore recognised by its name
in `perfmodel.models.known_architectures`, never by its keys. An unknown name is refused even if its config resembles a Llama's.
Models that the law would misprice are refused by name and by characteristic keys. A new mixture of experts is thus recognised
as one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from perfmodel.core.errors import UnknownName, UserInputError, quoted
from perfmodel.models.known_architectures import ARCHITECTURES, WRAPPERS, Architecture

Config: TypeAlias = Mapping[str, Any]
"""The object in a config.json."""

MODELS_PAGE = "docs/reference/models.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedFeature:
    """A feature that the law would misprice, and how to recognise it."""

    name: str
    reason: str
    name_parts: tuple[str, ...]
    """Substrings of `architectures` or `model_type`, in lower case and without separators."""
    keys: tuple[str, ...]
    """Keys whose value is not empty, zero or false in such a config."""


UNSUPPORTED_FEATURES: tuple[UnsupportedFeature, ...] = (
    UnsupportedFeature(
        name="a mixture of experts",
        reason="the weights that a pass reads depend on its tokens",
        name_parts=("moe", "mixtral", "deepseek", "gptoss", "llama4", "dbrx", "grok", "arctic", "kimik", "jamba", "minimax"),
        keys=(
            "num_local_experts",
            "num_experts",
            "n_routed_experts",
            "n_shared_experts",
            "moe_num_experts",
            "num_experts_per_tok",
            "num_experts_per_token",
            "moe_intermediate_size",
        ),
    ),
    UnsupportedFeature(
        name="multi-head latent attention",
        reason="the cache holds compressed vectors instead of keys and values",
        name_parts=("deepseekv2", "deepseekv3", "minicpm3", "longcat"),
        keys=("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"),
    ),
    UnsupportedFeature(
        name="a state-space or recurrent model, or a hybrid with one",
        reason="the state does not grow with the context",
        name_parts=(
            *("mamba", "jamba", "zamba", "bamba", "rwkv", "retnet", "hyena", "xlstm", "hymba", "nemotronh", "falconh1"),
            *("recurrentgemma", "lfm2", "plamo2", "phi4flash", "hybrid"),
        ),
        keys=(
            *("state_size", "ssm_state_size", "ssm_cfg", "mamba_d_state", "mamba_expand", "mamba_num_heads"),
            *("hybrid_override_pattern", "layers_block_type", "attn_layer_period", "lru_width", "block_types"),
            *("conv_L_cache", "attention_hidden_size", "rescale_every"),
        ),
    ),
    UnsupportedFeature(
        name="linear attention",
        reason="the state does not grow with the context",
        name_parts=("qwen3next", "qwen35", "linear"),
        keys=("linear_num_value_heads", "linear_key_head_dim", "linear_conv_kernel_dim", "full_attention_interval"),
    ),
    UnsupportedFeature(
        name="layers that share keys and values",
        reason="the cache is smaller than the number of layers suggests",
        name_parts=("gemma3n", "gemma4", "yoco"),
        keys=("num_kv_shared_layers", "attention_k_eq_v", "cla_share_factor", "use_cla"),
    ),
    UnsupportedFeature(
        name="cross-attention layers",
        reason="they read the output of another encoder and a separate cache",
        name_parts=("mllama",),
        keys=("cross_attention_layers", "cross_layer_interval", "cross_attn_every_n_layers"),
    ),
    UnsupportedFeature(
        name="block-sparse attention",
        reason="the part of the cache that a layer reads depends on a pattern",
        name_parts=("phi3small",),
        keys=("blocksparse_block_size",),
    ),
    UnsupportedFeature(
        name="layers of different shapes",
        reason="the cost of one layer does not represent the others",
        name_parts=("decilm", "nemotronnas", "openelm"),
        keys=("block_configs", "num_query_heads"),
    ),
    UnsupportedFeature(
        name="an encoder-decoder",
        reason="the decoder also reads the output of an encoder",
        name_parts=("t5", "bart", "pegasus", "whisper", "marian", "encoderdecoder"),
        keys=("is_encoder_decoder", "num_decoder_layers", "decoder_layers", "encoder_layers"),
    ),
)

KNOWN_LAYER_TYPES = ("full_attention", "sliding_attention")
_TEXT_KEYS = ("text_config", "llm_config", "language_config")


def decoder_config(config: Config) -> Config:
    """The part of a config that describes the decoder; the text decoder of a multimodal model.

    If that part omits the architecture or whether the head is tied, the value comes from the rest of the file.
    """
    text = next((config[key] for key in _TEXT_KEYS if isinstance(config.get(key), Mapping)), None)
    if text is None:
        return config
    wrapper = next((known for known in WRAPPERS if known.model_type == config.get("model_type")), None)
    filled: dict[str, Any] = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    if wrapper is not None:
        if not text.get("architectures") and not text.get("model_type"):
            filled["model_type"] = wrapper.text_model_type
        filled |= wrapper.defaults
    return {**filled, **text}


def find_architecture(config: Config, name: str) -> Architecture:
    """The architecture of a decoder's config.

    Raises:
        UserInputError: the law does not cover it; the message names the feature and the key.
        UnknownName: its name is not in the table.
    """
    requested = architecture_name(config)
    features = "; ".join(unsupported_features(config))
    if features:
        raise UserInputError(
            f"model {quoted(name)}: the latency law does not cover {quoted(requested)}, which has {features}. Give a dense "
            f"decoder of a family in {MODELS_PAGE}."
        )
    for architecture in ARCHITECTURES:
        if requested in (architecture.class_name, architecture.model_type, *architecture.other_names):
            return architecture
    otherwise = f"give a model of a covered family: sizes alone do not show what the layers of {quoted(name)} compute"
    class_names = [architecture.class_name for architecture in ARCHITECTURES]
    raise UnknownName("architecture", requested, class_names, listed_in=MODELS_PAGE, otherwise=otherwise)


def architecture_name(config: Config) -> str:
    """The class name in a config, or its model type if there is no class.

    Raises:
        UserInputError: the config has neither, or one of them is not a name.
    """
    names = architecture_names(config)
    if not names:
        raise UserInputError("the config names neither architectures nor model_type. Give the complete config.json of a model.")
    return names[0]


def architecture_names(config: Config) -> list[str]:
    """The class names in a config, then its model type."""
    classes, model_type = _or_default(config.get("architectures"), []), _or_default(config.get("model_type"), "")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserInputError(f"architectures is {quoted(classes)}, expected a list of class names. Correct the config.json.")
    if not isinstance(model_type, str):
        raise UserInputError(f"model_type is {quoted(model_type)}, expected a name. Correct the config.json.")
    return [name for name in (*classes, model_type) if name]


def _or_default(value: object, default: object) -> Any:
    """A value, or the default for null."""
    return default if value is None else value


def layer_types(config: Config) -> list[str]:
    """The attention type of every layer; empty if the config does not list them.

    Raises:
        UserInputError: the value is not a list of names.
    """
    types = _or_default(config.get("layer_types"), [])
    if not isinstance(types, list) or not all(isinstance(layer_type, str) for layer_type in types):
        raise UserInputError(
            f"layer_types is {quoted(types)}, expected a list with one name per layer. Correct the config.json."
        )
    return types


def unsupported_features(config: Config) -> Iterator[str]:
    """`a mixture of experts (num_experts = 128): the weights …`, for each unsupported feature of a config."""
    names = [re.sub(r"[^a-z0-9]", "", name.casefold()) for name in architecture_names(config)]
    for feature in UNSUPPORTED_FEATURES:
        matching_keys = [f"{key} = {quoted(config[key])}" for key in feature.keys if config.get(key)]
        if matching_keys or any(part in name for part in feature.name_parts for name in names):
            yield f"{feature.name}{f' ({matching_keys[0]})' if matching_keys else ''}: {feature.reason}"
    unknown = sorted(set(layer_types(config)) - set(KNOWN_LAYER_TYPES))
    if unknown:
        yield f"layers of type {', '.join(map(quoted, unknown[:3]))}: only full and sliding-window attention are priced"
