"""Families of decoders: those the latency law covers, with what their code does that no config says, and those it refuses.

A config.json tells sizes, not arithmetic. That Qwen2 adds biases to Q, K and V, that Gemma 2 norms a layer four times and
lets every other layer see a window only, stands in code. So a family is covered by its name, never by its keys: a name that
is not in the table is refused however much its config looks like a Llama's, as its price would be a guess that looks like
knowledge. A refusal goes by name and by telltale keys, so that a new mixture of experts is refused as one.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from perfmodel.errors import UnknownName, UserInputError

Config: TypeAlias = Mapping[str, Any]
"""What is in a config.json."""

BiasRule = Literal["as-told", "qkv", "all"]
"""`as-told`: by the keys `attention_bias` and `mlp_bias`. `qkv`: Q, K and V always. `all`: unless `enable_bias` is false."""
QueryKeyNorm = Literal["none", "head", "whole"]
"""Queries and keys are normed not at all, per head with one gain for all heads, or across their heads."""
WindowRule = Literal["none", "all", "from-layer", "every-other", "all-but-every"]
"""Which layers see a window, where `layer_types` does not say: `from-layer` is `max_window_layers`, `all-but-every` is
`sliding_window_pattern`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One family; what is not said is as in a Llama."""

    model_type: str
    class_name: str
    mlp_key: str = "intermediate_size"
    gated_mlp: bool = True
    norms_per_layer: int = 2
    norms_have_biases: bool = False
    query_key_norm: QueryKeyNorm = "none"
    biases: BiasRule = "as-told"
    has_learned_positions: bool = False
    windows: WindowRule = "none"
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What transformers (5.23) takes for keys that a file of this family leaves out."""


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(model_type="llama", class_name="LlamaForCausalLM"),
    Architecture(
        model_type="mistral",
        class_name="MistralForCausalLM",
        windows="all",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    ),
    Architecture(
        model_type="qwen2",
        class_name="Qwen2ForCausalLM",
        biases="qkv",
        windows="from-layer",
        defaults={"sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768},
    ),
    Architecture(
        model_type="qwen3",
        class_name="Qwen3ForCausalLM",
        query_key_norm="head",
        windows="from-layer",
        defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768},
    ),
    Architecture(
        model_type="gemma",
        class_name="GemmaForCausalLM",
        defaults={"head_dim": 256, "tie_word_embeddings": True, "max_position_embeddings": 8192},
    ),
    Architecture(
        model_type="gemma2",
        class_name="Gemma2ForCausalLM",
        norms_per_layer=4,
        windows="every-other",
        defaults={"head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096, "max_position_embeddings": 8192},
    ),
    Architecture(
        model_type="gemma3_text",
        class_name="Gemma3ForCausalLM",
        norms_per_layer=4,
        query_key_norm="head",
        windows="all-but-every",
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262208,
            "tie_word_embeddings": True,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "max_position_embeddings": 131072,
        },
    ),
    Architecture(model_type="phi3", class_name="Phi3ForCausalLM", windows="all", defaults={"max_position_embeddings": 4096}),
    Architecture(
        model_type="opt",
        class_name="OPTForCausalLM",
        mlp_key="ffn_dim",
        gated_mlp=False,
        norms_have_biases=True,
        biases="all",
        has_learned_positions=True,
        defaults={"tie_word_embeddings": True},
    ),
    Architecture(model_type="granite", class_name="GraniteForCausalLM"),
    Architecture(model_type="smollm3", class_name="SmolLM3ForCausalLM", defaults={"tie_word_embeddings": True}),
    Architecture(model_type="olmo2", class_name="Olmo2ForCausalLM", query_key_norm="whole"),
)


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
        what="an encoder-decoder",
        why="its decoder also reads what an encoder made",
        name_parts=("t5", "bart", "pegasus", "whisper", "marian", "encoderdecoder"),
        keys=("is_encoder_decoder", "num_decoder_layers", "decoder_layers", "encoder_layers"),
    ),
)

KNOWN_LAYER_TYPES = ("full_attention", "sliding_attention")
_TEXT_KEYS = ("text_config", "llm_config", "language_config")


def decoder_config(config: Config) -> Config:
    """The part of a config that describes the decoder: of a model that also sees or hears, that of its text."""
    return next((config[key] for key in _TEXT_KEYS if isinstance(config.get(key), Mapping)), config)


def find_architecture(config: Config, name: str) -> Architecture:
    """The family of a decoder's config.

    Raises:
        UserInputError: the law does not cover it; says what it is and by what it was told.
        UnknownName: it goes by a name that is not in the table.
    """
    found = architecture_name(config)
    uncovered = "; ".join(uncovered_traits(config))
    if uncovered:
        raise UserInputError(
            f"model {name!r}: the latency law does not cover {found!r}, which has {uncovered}. Give a dense decoder: "
            f"{', '.join(one.class_name for one in ARCHITECTURES)}."
        )
    for architecture in ARCHITECTURES:
        if found in (architecture.class_name, architecture.model_type):
            return architecture
    otherwise = f"plan for a model of one of these families: sizes alone do not tell what the layers of {name!r} compute"
    raise UnknownName("architecture", found, [one.class_name for one in ARCHITECTURES], otherwise=otherwise)


def architecture_name(config: Config) -> str:
    """The class that a config names, else its model type.

    Raises:
        UserInputError: one of the two is no name.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str | None):
        raise UserInputError(f"model_type is {reprlib.repr(model_type)}, expected a text. Correct the config.json.")
    return str((_names_in(config, "architectures") or (model_type,))[0])


def _names_in(config: Config, key: str) -> tuple[str, ...]:
    """The texts in a list of a config; none where it is missing.

    Raises:
        UserInputError: it is no list of texts.
    """
    names = config.get(key) or []
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserInputError(f"{key} is {reprlib.repr(names)}, expected a list of texts. Correct the config.json.")
    return tuple(names)


def uncovered_traits(config: Config) -> Iterator[str]:
    """`a mixture of experts (num_experts = 128): which weights …`, for every kind that a config is of."""
    names = [*_names_in(config, "architectures"), config.get("model_type") or ""]
    plain = [re.sub(r"[^a-z0-9]", "", str(name).lower()) for name in names]
    for kind in UNCOVERED:
        by_key = [f"{key} = {config[key]!r}" for key in kind.keys if config.get(key)]
        by_name = any(part in name for part in kind.name_parts for name in plain)
        if by_key or by_name:
            told_by = f" ({', '.join(by_key)})" if by_key else ""
            yield f"{kind.what}{told_by}: {kind.why}"
    unknown = sorted({*_names_in(config, "layer_types")} - set(KNOWN_LAYER_TYPES))
    if unknown:
        yield f"layers of type {', '.join(unknown)}: only full and sliding-window attention are priced"
