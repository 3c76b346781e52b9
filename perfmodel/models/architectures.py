"""The family of a decoder: the row of the table that a config.json belongs to, or why the latency law does not cover it.

A config.json gives sizes, not arithmetic. Code alone says that Qwen2 adds biases to Q, K and V, and that Gemma 2 norms a layer
four times and limits every other layer to a window. So a family is covered by its name, never by its keys
(`perfmodel.models.known_architectures`): a name that is not in the table is refused however much its config looks like a Llama's.
What the law would misprice is refused by name and by telltale keys, so that a new mixture of experts is refused as one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from perfmodel.core.errors import UnknownName, UserInputError, quoted
from perfmodel.models.known_architectures import ARCHITECTURES, WRAPPERS, Architecture

Config: TypeAlias = Mapping[str, Any]
"""What is in a config.json."""

MODELS_PAGE = "docs/models.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncovered:
    """A kind of model that the law would misprice, and how it is told."""

    what: str
    why: str
    name_parts: tuple[str, ...]
    """Found in `architectures` or `model_type`, in lower case and without separators."""
    keys: tuple[str, ...]
    """Present with a value that is neither empty, zero nor false."""


UNCOVERED: tuple[Uncovered, ...] = (
    Uncovered(
        what="a mixture of experts",
        why="which weights a pass reads depends on its tokens",
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
    Uncovered(
        what="multi-head latent attention",
        why="its cache holds compressed vectors instead of keys and values",
        name_parts=("deepseekv2", "deepseekv3", "minicpm3", "longcat"),
        keys=("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"),
    ),
    Uncovered(
        what="a state-space or recurrent model, or a hybrid with one",
        why="its state does not grow with the context",
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
    Uncovered(
        what="linear attention",
        why="its state does not grow with the context",
        name_parts=("qwen3next", "qwen35", "linear"),
        keys=("linear_num_value_heads", "linear_key_head_dim", "linear_conv_kernel_dim", "full_attention_interval"),
    ),
    Uncovered(
        what="layers that share keys and values",
        why="its cache is smaller than its layers say",
        name_parts=("gemma3n", "gemma4", "yoco"),
        keys=("num_kv_shared_layers", "attention_k_eq_v", "cla_share_factor", "use_cla"),
    ),
    Uncovered(
        what="cross-attention layers",
        why="they read what another encoder made, and a cache of its own",
        name_parts=("mllama",),
        keys=("cross_attention_layers", "cross_layer_interval", "cross_attn_every_n_layers"),
    ),
    Uncovered(
        what="block-sparse attention",
        why="how much of its cache a layer reads depends on a pattern",
        name_parts=("phi3small",),
        keys=("blocksparse_block_size",),
    ),
    Uncovered(
        what="layers of different shapes",
        why="one layer's price does not stand for the others",
        name_parts=("decilm", "nemotronnas", "openelm"),
        keys=("block_configs", "num_query_heads"),
    ),
    Uncovered(
        what="an encoder-decoder",
        why="its decoder also reads what an encoder made",
        name_parts=("t5", "bart", "pegasus", "whisper", "marian", "encoderdecoder"),
        keys=("is_encoder_decoder", "num_decoder_layers", "decoder_layers", "encoder_layers"),
    ),
)

KNOWN_LAYER_TYPES = ("full_attention", "sliding_attention")
_TEXT_KEYS = ("text_config", "llm_config", "language_config")


def decoder_config(config: Config) -> Config:
    """The part of a config that describes the decoder: of a model that also sees or hears, that of its text.

    Where that part leaves out its family, or whether its head is tied, the rest of the file says so.
    """
    text = next((config[key] for key in _TEXT_KEYS if isinstance(config.get(key), Mapping)), None)
    if text is None:
        return config
    wrapper = next((one for one in WRAPPERS if one.model_type == config.get("model_type")), None)
    filled: dict[str, Any] = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    if wrapper is not None:
        named = {} if text.get("architectures") or text.get("model_type") else {"model_type": wrapper.text_model_type}
        filled |= named | dict(wrapper.defaults)
    return {**filled, **text}


def find_architecture(config: Config, name: str) -> Architecture:
    """The family of a decoder's config.

    Raises:
        UserInputError: the law does not cover it; says what it is and by which keys.
        UnknownName: it goes by a name that is not in the table, or the file has no name for it.
    """
    given = architecture_name(config)
    uncovered = "; ".join(uncovered_traits(config))
    if uncovered:
        raise UserInputError(
            f"model {quoted(name)}: the latency law does not cover {quoted(given)}, which has {uncovered}. Give a dense "
            f"decoder of a family in {MODELS_PAGE}."
        )
    for architecture in ARCHITECTURES:
        if given in (architecture.class_name, architecture.model_type, *architecture.other_names):
            return architecture
    otherwise = f"give a model of a covered family: sizes alone do not tell what the layers of {quoted(name)} compute"
    known = [one.class_name for one in ARCHITECTURES]
    raise UnknownName("architecture", given, known, listed_in=MODELS_PAGE, otherwise=otherwise)


def architecture_name(config: Config) -> str:
    """The class that a config names, else its model type.

    Raises:
        UserInputError: it has neither, or one that is no name.
    """
    names = architecture_names(config)
    if not names:
        raise UserInputError("the config names neither architectures nor model_type. Give a model's whole config.json.")
    return names[0]


def architecture_names(config: Config) -> list[str]:
    """What a config calls its model: its classes, then its type."""
    classes, model_type = _or_nothing(config.get("architectures"), []), _or_nothing(config.get("model_type"), "")
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise UserInputError(f"architectures is {quoted(classes)}, expected a list of class names. Correct the config.json.")
    if not isinstance(model_type, str):
        raise UserInputError(f"model_type is {quoted(model_type)}, expected a name. Correct the config.json.")
    return [name for name in (*classes, model_type) if name]


def _or_nothing(value: object, nothing: object) -> Any:
    """A value, or what stands for null."""
    return nothing if value is None else value


def layer_types(config: Config) -> list[str]:
    """What a config says of every layer; empty where it says nothing.

    Raises:
        UserInputError: it is no list of names.
    """
    types = _or_nothing(config.get("layer_types"), [])
    if not isinstance(types, list) or not all(isinstance(one, str) for one in types):
        raise UserInputError(
            f"layer_types is {quoted(types)}, expected a list with one name per layer. Correct the config.json."
        )
    return types


def uncovered_traits(config: Config) -> Iterator[str]:
    """`a mixture of experts (num_experts = 128): which weights …`, for every kind that a config is of."""
    names = [re.sub(r"[^a-z0-9]", "", name.casefold()) for name in architecture_names(config)]
    for kind in UNCOVERED:
        by_key = [f"{key} = {quoted(config[key])}" for key in kind.keys if config.get(key)]
        by_name = any(part in name for part in kind.name_parts for name in names)
        if by_key or by_name:
            yield f"{kind.what}{f' ({by_key[0]})' if by_key else ''}: {kind.why}"
    unknown = sorted(set(layer_types(config)) - set(KNOWN_LAYER_TYPES))
    if unknown:
        yield f"layers of type {', '.join(map(quoted, unknown[:3]))}: only full and sliding-window attention are priced"
