"""Synthetic model folders for field.py, each with the right answer.

The oracle for a readable folder is transformers: it builds the model without memory, and its weights are counted. The bytes of
quantised weights are summed over its matrices with the published bits of the format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Json: TypeAlias = Mapping[str, Any]

_SIZES: Json = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Bits of stored weights, as the publisher of the format describes them."""

    linear_bits: float
    """Bits per weight of the layers' matrices, including scales and zero points."""
    head_bits: float = 16.0
    embedding_bits: float = 16.0
    own_bits: Mapping[str, float] = field(default_factory=dict)
    """Other bits, by a part of the name of matrices. The first part found in a name applies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigCase:
    """One model folder."""

    name: str
    files: Mapping[str, Json]
    """JSON files of the folder, by name."""
    storage: Storage | None = None
    """Storage of a readable folder; None means 16 bits for all weights."""
    refused: tuple[str, ...] = ()
    """Words that the refusal must contain; empty for a readable folder."""
    named: str | None = None
    """Expected name of the target; None expects the name of the folder."""
    dtype: str | None = None
    """Value for `--dtype`."""
    subfolder: str = ""
    """Subfolder with the files."""


def _llama(**keys: object) -> dict[str, object]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_SIZES, **keys}


def _config(name: str, config: Json, **rest: Any) -> ConfigCase:
    return ConfigCase(name=name, files={"config.json": config}, **rest)


def _quantised(name: str, block: Json, storage: Storage, key: str = "quantization_config") -> ConfigCase:
    return _config(name, _llama(**{key: block}), storage=storage)


def _without(config: Json, *keys: str) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in keys}


def _group(
    bits: int, kind: str, strategy: str, *, inputs: int, targets: Sequence[str] = ("Linear",), group_size: int | None = None
) -> Json:
    """A group of compressed-tensors."""
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group_size, "symmetric": True}
    return {
        "targets": list(targets),
        "weights": weights,
        "input_activations": {"num_bits": inputs, "type": kind, "strategy": "token", "dynamic": True},
    }


READ = (
    _config("llama", _llama()),
    _config("llama-tied", _llama(tie_word_embeddings=True)),
    _config("llama-named", _llama(_name_or_path="some-org/Some-Llama-2B"), named="Some-Llama-2B"),
    _config("mistral", {**_llama(), "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 1024}),
    _config("qwen2", {**_llama(), "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}),
    _config("qwen3", {**_llama(), "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128}),
    _config("gemma", {**_llama(), "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 64}),
    _config("gemma2", {**_llama(), "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 64}),
    _config("gemma3-text", {**_llama(), "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 64}),
    _config("phi3", {**_llama(pad_token_id=0), "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}),
    _config("smollm3", {**_llama(pad_token_id=0), "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}),
    _config("olmo2", {**_llama(), "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"}),
    _config("granite", {**_llama(), "architectures": ["GraniteForCausalLM"], "model_type": "granite"}),
    _config(
        "opt",
        {
            "architectures": ["OPTForCausalLM"],
            "model_type": "opt",
            **_without(_SIZES, "intermediate_size", "num_key_value_heads"),
            "ffn_dim": 4096,
            "word_embed_proj_dim": 1024,
        },
    ),
    _config(
        "llava-with-the-differing-keys-only",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
            "tie_word_embeddings": False,
        },
    ),
    _config(
        "qwen2.5-vl-flat",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            **_SIZES,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 8, 8]},
            "vision_config": {"depth": 2, "hidden_size": 64, "num_heads": 2, "out_hidden_size": 1024},
        },
    ),
    _config(
        "qwen3-vl",
        {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "text_config": {**_SIZES, "model_type": "qwen3_vl_text", "head_dim": 128},
            "tie_word_embeddings": False,
            "vision_config": {"depth": 2, "hidden_size": 64, "num_heads": 2, "out_hidden_size": 1024},
        },
    ),
    _quantised(
        "awq",
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        Storage(linear_bits=4 + (16 + 4) / 128),
    ),
    _quantised(
        "gptq",
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
        Storage(linear_bits=4 + (16 + 4) / 128),
    ),
    _quantised("gptq-8-bits", {"quant_method": "gptq", "bits": 8, "group_size": 32}, Storage(linear_bits=8 + (16 + 8) / 32)),
    _quantised(
        "bitsandbytes-nf4",
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
        },
        Storage(linear_bits=4 + 32 / 64),
    ),
    _quantised("bitsandbytes-int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, Storage(linear_bits=8)),
    _quantised(
        "fp8-block",
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]},
        Storage(linear_bits=8),
    ),
    _quantised(
        "fp8-fbgemm",
        {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head", "model.layers.0", "model.layers.11"]},
        Storage(linear_bits=8, own_bits={"layers.0.": 16.0, "layers.11.": 16.0}),
    ),
    _quantised(
        "compressed-tensors-w4a16",
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True},
                    "input_activations": None,
                }
            },
        },
        Storage(linear_bits=4 + 16 / 128),
    ),
    _quantised(
        "compressed-tensors-fp8",
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
                    "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
                }
            },
        },
        Storage(linear_bits=8),
    ),
    ConfigCase(
        name="modelopt-fp8-in-a-second-file",
        files={
            "config.json": _llama(),
            "hf_quant_config.json": {
                "producer": {"name": "modelopt", "version": "0.23.0"},
                "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
            },
        },
        storage=Storage(linear_bits=8),
    ),
    ConfigCase(
        name="modelopt-nvfp4-in-a-second-file",
        files={
            "config.json": _llama(),
            "hf_quant_config.json": {
                "producer": {"name": "modelopt", "version": "0.30.0"},
                "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
            },
        },
        storage=Storage(linear_bits=4.5),
    ),
    _quantised(
        "torchao-int4",
        {"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 128}},
        Storage(linear_bits=4 + 32 / 128),
    ),
    _quantised(
        "hqq",
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        Storage(linear_bits=4 + 32 / 64),
    ),
    _quantised("mxfp4", {"quant_method": "mxfp4"}, Storage(linear_bits=4.25)),
    _quantised("exl2", {"quant_method": "exl2", "bits": 4.25, "head_bits": 6}, Storage(linear_bits=4.25, head_bits=6)),
    _quantised(
        "mlx-4-bits",
        {"bits": 4, "group_size": 64},
        Storage(linear_bits=4.5, head_bits=4.5, embedding_bits=4.5),
        key="quantization",
    ),
    _quantised(
        "mlx-mixed",
        {
            "bits": 4,
            "group_size": 64,
            "model.embed_tokens": {"bits": 8, "group_size": 64},
            "lm_head": {"bits": 6, "group_size": 32},
            "model.layers.3.mlp.down_proj": {"bits": 6, "group_size": 64},
            "model.layers.4.mlp.down_proj": False,
        },
        Storage(
            linear_bits=4.5,
            head_bits=7,
            embedding_bits=8.5,
            own_bits={"layers.3.mlp.down_proj": 6.5, "layers.4.mlp.down_proj": 16.0},
        ),
        key="quantization",
    ),
    _quantised(
        "bitsandbytes-dynamic",
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "llm_int8_skip_modules": ["lm_head", "multi_modal_projector", "model.layers.1.self_attn", "model.layers.11.mlp"],
        },
        Storage(linear_bits=4 + (8 + 32 / 256) / 64, own_bits={"layers.1.self_attn": 16.0, "layers.11.mlp": 16.0}),
    ),
    _quantised(
        "gptq-dynamic",
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "dynamic": {r"-:model\.layers\.0\..*": {}, r"+:.*\.o_proj": {"bits": 8}},
        },
        Storage(linear_bits=4 + 20 / 128, own_bits={"layers.0.": 16.0, "o_proj": 8 + 24 / 128}),
    ),
    _quantised(
        "compressed-tensors-fp8-with-kv-cache",
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "ignore": ["lm_head"],
            "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True},
            "config_groups": {"group_0": _group(8, "float", "tensor", inputs=8)},
        },
        Storage(linear_bits=8),
    ),
    _quantised(
        "compressed-tensors-w8a8",
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": _group(8, "int", "channel", inputs=8)},
        },
        Storage(linear_bits=8),
    ),
    _quantised(
        "compressed-tensors-mixed",
        {
            "quant_method": "compressed-tensors",
            "format": "mixed-precision",
            "ignore": ["re:.*lm_head", "re:.*layers\\.0\\..*"],
            "config_groups": {
                "group_0": _group(4, "float", "tensor_group", inputs=4, targets=["re:.*mlp.*"], group_size=16),
                "group_1": _group(8, "float", "channel", inputs=8, targets=["re:.*self_attn.*"]),
            },
        },
        Storage(linear_bits=4.5, own_bits={"layers.0.": 16.0, "self_attn": 8.0}),
    ),
    ConfigCase(
        name="modelopt-mixed-in-a-second-file",
        files={
            "config.json": _llama(),
            "hf_quant_config.json": {
                "producer": {"name": "modelopt", "version": "0.33.0"},
                "quantization": {
                    "quant_algo": "MIXED_PRECISION",
                    "kv_cache_quant_algo": "FP8",
                    "quantized_layers": {
                        **{
                            f"model.layers.{n}.mlp.{p}_proj": {"quant_algo": "NVFP4"}
                            for n in range(12)
                            for p in ("gate", "up", "down")
                        },
                        **{f"model.layers.{n}.self_attn.{p}_proj": {"quant_algo": "FP8"} for n in range(12) for p in "qkv"},
                    },
                },
            },
        },
        storage=Storage(linear_bits=4.5, own_bits={"o_proj": 16.0, "self_attn": 8.0}),
    ),
    _quantised(
        "torchao-by-module",
        {
            "quant_method": "torchao",
            "include_input_output_embeddings": True,
            "modules_to_not_convert": [],
            "quant_type": {
                "default": {
                    "_type": "FqnToConfig",
                    "_version": 1,
                    "_data": {
                        "fqn_to_config": {
                            "_default": {
                                "_type": "Int8DynamicActivationIntxWeightConfig",
                                "_version": 1,
                                "_data": {
                                    "weight_dtype": {"_type": "torch.dtype", "_data": "int4"},
                                    "weight_granularity": {"_type": "PerGroup", "_version": 1, "_data": {"group_size": 32}},
                                },
                            },
                            "model.embed_tokens": {
                                "_type": "IntxWeightOnlyConfig",
                                "_version": 1,
                                "_data": {"weight_dtype": {"_type": "torch.dtype", "_data": "int8"}},
                            },
                        }
                    },
                }
            },
        },
        Storage(linear_bits=4.5, head_bits=4.5, embedding_bits=8 + 16 / 1024),
    ),
    _config(
        "multimodal-fp8-whose-head-has-the-wrapper-s-name",
        {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "text_config": {**_SIZES, "model_type": "qwen3_vl_text", "head_dim": 128},
            "tie_word_embeddings": False,
            "vision_config": {"depth": 2, "hidden_size": 64, "num_heads": 2, "out_hidden_size": 1024},
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "ignore": ["language_model.lm_head", "re:visual.*"],
                "config_groups": {"group_0": _group(8, "float", "channel", inputs=8)},
            },
        },
        storage=Storage(linear_bits=8),
    ),
    _quantised(
        "regex-that-takes-re-for-ever",
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "modules_to_not_convert": [r"(\w+\.?)+!", r"((a|aa|[a-z_.])+)+!"],
        },
        Storage(linear_bits=4 + 20 / 128),
    ),
    _config("gguf-q4_0", _llama(), dtype="q4_0", storage=Storage(linear_bits=4.5, head_bits=6.5625, embedding_bits=4.5)),
    _config("gguf-q8_0", _llama(), dtype="q8_0", storage=Storage(linear_bits=8.5, head_bits=8.5, embedding_bits=8.5)),
    _config(
        "gguf-q4_k_m",
        _llama(),
        dtype="q4_k_m",
        storage=Storage(
            linear_bits=4.5,
            head_bits=6.5625,
            embedding_bits=4.5,
            own_bits={f"layers.{n}.{p}_proj": 6.5625 for n in (0, 3, 6, 9, 10, 11) for p in ("self_attn.v", "mlp.down")},
        ),
    ),
    _config("hub-cache", _llama(), subfolder="models--some-org--Some-Llama-2B/snapshots/0a1b2c", named="Some-Llama-2B"),
)

_MOE: Json = {**_llama(), "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8}

REFUSED = (
    _config("mixture-of-experts", _MOE, refused=("mixture of experts", "num_local_experts")),
    _config("latent-attention", _llama(kv_lora_rank=512, model_type="minicpm3"), refused=("latent attention",)),
    _config(
        "state-space",
        {**_llama(), "architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1", "mamba_d_state": 256},
        refused=("state-space",),
    ),
    _config(
        "linear-attention",
        {**_llama(), "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "linear_num_value_heads": 32},
        refused=("linear attention",),
    ),
    _config(
        "encoder-decoder",
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
        refused=("encoder-decoder",),
    ),
    _config(
        "unknown-architecture",
        {**_llama(), "architectures": ["NobodyForCausalLM"], "model_type": "nobody"},
        refused=("Nobody",),
    ),
    _config("reward-model", {**_llama(), "architectures": ["LlamaForSequenceClassification"]}, refused=("does not generate",)),
    ConfigCase(
        name="embedding-model",
        files={
            "config.json": {**_llama(), "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
            "modules.json": {"0": {"type": "sentence_transformers.models.Transformer"}},
        },
        refused=("embedding", "does not generate"),
    ),
    _config(
        "embedding-model-that-is-not-causal",
        {**_llama(), "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "is_causal": False},
        refused=("does not generate",),
    ),
    _config(
        "eagle-3-head",
        {**_llama(num_hidden_layers=1, draft_vocab_size=8000), "architectures": ["LlamaForCausalLMEagle3"]},
        refused=("EAGLE-3", "hidden states"),
    ),
    _config(
        "dflash-head",
        {
            **_llama(num_hidden_layers=5, block_size=16, dflash_config={"target_layer_ids": [1, 5], "mask_token_id": 9}),
            "architectures": ["DFlashDraftModel"],
            "model_type": "qwen3",
        },
        refused=("DFlash",),
    ),
    _config(
        "dspark-head",
        {
            **_llama(num_hidden_layers=5, block_size=7, dflash_config={"target_layer_ids": [1, 5], "projector_type": "dspark"}),
            "architectures": ["DSparkDraftModel"],
            "model_type": "qwen3",
        },
        refused=("DSpark",),
    ),
    _config("no-such-quantisation", _llama(quantization_config={"quant_method": "zipzap"}), refused=("zipzap", "--dtype")),
    _config("quantisation-of-nothing", _llama(quantization_config={}), refused=("quantization_config", "--dtype")),
    _config("quantisation-of-a-word", _llama(quantization_config="awq"), refused=("quantization_config", "'awq'", "object")),
    _config(
        "quantisation-in-words",
        _llama(quantization_config={"quant_method": "gptq", "bits": "four"}),
        refused=("quantization_config", "bits", "'four'"),
    ),
    ConfigCase(
        name="two-files-that-contradict-each-other",
        files={
            "config.json": _llama(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128}),
            "hf_quant_config.json": {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}},
        },
        refused=("AWQ int4", "fp8", "hf_quant_config.json"),
    ),
    _config("heads-not-shared-evenly", _llama(num_key_value_heads=5), refused=("num_key_value_heads",)),
    _config("negative-size", _llama(hidden_size=-1), refused=("hidden_size", "-1")),
    _config("architectures-of-no-text", _llama(architectures=3), refused=("architectures",)),
)
