"""Table of decoder architectures: what no config states, and defaults.

A test compares the defaults with those of the classes in transformers 5.23. It also builds a small model of every row in
transformers and compares the number of weights. Rows without a class there are checked against a published count.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict

BiasRule: TypeAlias = bool | str
"""True: always. False: never. A text: as the config key of that name states."""
QueryKeyNorm = Literal["none", "head", "head-with-bias", "whole"]
"""Norm of queries and keys: none, per head with one gain (and bias) shared by all heads, or with a gain for every element."""
WindowRule = Literal["none", "all", "from-layer", "every-other", "all-but-every", "all-but-first-of"]
"""The layers with sliding-window attention if the config has no `layer_types`.

`from-layer` starts at `max_window_layers`. `all-but-every` leaves out the last of every `sliding_window_pattern` layers,
`all-but-first-of` the first.
"""
Defaults: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture; defaults are those of a Llama."""

    model_type: str
    class_name: str
    other_names: tuple[str, ...] = ()
    """Other classes or model types whose text decoder has the same layers and keys."""
    is_multimodal: bool = False
    """Whether its class also processes images or audio."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Its names for keys that Llama calls differently, by Llama's name."""
    gated_mlp: bool = True
    mlp_divisor: int = 1
    """`intermediate_size` divided by the size of one MLP matrix."""
    mlp_per_hidden: int | None = None
    """MLP size over hidden size if the file gives no MLP size."""
    norms_per_layer: int = 2
    norms_have_biases: bool = False
    parallel_key: str | None = None
    """Attention and MLP share one norm if this key is true."""
    query_key_norm: QueryKeyNorm = "none"
    query_key_norm_key: str | None = None
    """Queries and keys are normed only if this key is true."""
    qkv_bias: BiasRule = "attention_bias"
    attn_out_bias: BiasRule = "attention_bias"
    mlp_bias: BiasRule = "mlp_bias"
    activation_params: int = 0
    """Trained parameters in one layer's activation."""
    learned_position_offset: int | None = None
    """Extra rows at the start of the position table; None for rotary positions."""
    windows: WindowRule = "none"
    defaults: Defaults = field(default_factory=dict)
    """Values that transformers uses for missing keys, by Llama's names."""


class _Biases(TypedDict):
    """Which matrices have biases."""

    qkv_bias: BiasRule
    attn_out_bias: BiasRule
    mlp_bias: BiasRule


_NO_BIASES: _Biases = {"qkv_bias": False, "attn_out_bias": False, "mlp_bias": False}
_QKV_BIASES: _Biases = {"qkv_bias": True, "attn_out_bias": False, "mlp_bias": False}
_ALL_BIASES: _Biases = {"qkv_bias": True, "attn_out_bias": True, "mlp_bias": True}


def _sizes(
    hidden_size: int, mlp_size: int, layers: int, heads: int, vocab_size: int, context: int, **more: object
) -> dict[str, object]:
    """Default sizes of an architecture's class."""
    return {
        "hidden_size": hidden_size,
        "intermediate_size": mlp_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        **more,
    }


_QWEN2_VL = _sizes(8192, 29568, 80, 64, 152064, 32768, num_key_value_heads=8, sliding_window=4096, max_window_layers=80)
_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
_CHATGLM_KEYS = {
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_hidden_size",
    "num_key_value_heads": "multi_query_group_num",
    "head_dim": "kv_channels",
    "vocab_size": "padded_vocab_size",
    "max_position_embeddings": "seq_length",
}


def _llamas() -> Iterator[Architecture]:
    """Llama, and architectures that differ from it in biases, query and key norms, or windows."""
    llava = ("LlavaLlamaForCausalLM",)
    yield Architecture(
        model_type="llama", class_name="LlamaForCausalLM", other_names=llava, defaults=_sizes(4096, 11008, 32, 32, 32000, 2048)
    )
    yield Architecture(
        model_type="mistral",
        class_name="MistralForCausalLM",
        **_NO_BIASES,
        windows="all",
        defaults=_sizes(4096, 14336, 32, 32, 32000, 131072, num_key_value_heads=8, sliding_window=4096),
    )
    yield Architecture(
        model_type="ministral",
        class_name="MinistralForCausalLM",
        **_NO_BIASES,
        windows="all",
        defaults=_sizes(4096, 14336, 32, 32, 32000, 131072, num_key_value_heads=8, sliding_window=4096),
    )
    yield Architecture(
        model_type="ministral3",
        class_name="Ministral3ForCausalLM",
        **_NO_BIASES,
        windows="all",
        defaults=_sizes(4096, 14336, 34, 32, 131072, 262144, num_key_value_heads=8, head_dim=128),
    )
    yield Architecture(model_type="granite", class_name="GraniteForCausalLM", defaults=_sizes(4096, 11008, 32, 32, 32000, 2048))
    yield Architecture(
        model_type="smollm3",
        class_name="SmolLM3ForCausalLM",
        defaults=_sizes(2048, 11008, 36, 16, 128256, 32768, num_key_value_heads=4, tie_word_embeddings=True),
    )
    yield Architecture(
        model_type="arcee", class_name="ArceeForCausalLM", gated_mlp=False, defaults=_sizes(2560, 18432, 32, 32, 32000, 4096)
    )
    yield Architecture(
        model_type="helium",
        class_name="HeliumForCausalLM",
        attn_out_bias=False,
        defaults=_sizes(2560, 7040, 24, 20, 48000, 4096, num_key_value_heads=20, head_dim=128),
    )
    yield Architecture(
        model_type="cwm",
        class_name="CwmForCausalLM",
        qkv_bias=False,
        attn_out_bias=False,
        windows="all-but-first-of",
        defaults=_sizes(
            *(6144, 21504, 64, 48, 128256, 131072),
            num_key_value_heads=8,
            head_dim=128,
            sliding_window=8192,
            sliding_window_pattern=4,
        ),
    )
    yield Architecture(
        model_type="seed_oss",
        class_name="SeedOssForCausalLM",
        attn_out_bias="attention_out_bias",
        defaults=_sizes(4096, 27648, 64, 80, 155136, 524288, num_key_value_heads=8, head_dim=128, attention_bias=True),
    )
    yield Architecture(
        model_type="ernie4_5",
        class_name="Ernie4_5ForCausalLM",
        qkv_bias="use_bias",
        attn_out_bias="use_bias",
        mlp_bias="use_bias",
        defaults=_sizes(1024, 3072, 18, 16, 103424, 131072, num_key_value_heads=2, head_dim=128, tie_word_embeddings=True),
    )
    yield Architecture(
        model_type="internlm3",
        class_name="InternLM3ForCausalLM",
        qkv_bias="qkv_bias",
        attn_out_bias="bias",
        mlp_bias="bias",
        defaults=_sizes(4096, 10240, 48, 32, 128512, 32768, num_key_value_heads=2, head_dim=128),
    )


def _qwens() -> Iterator[Architecture]:
    """Qwen 2, its successors, and an architecture like Qwen 3."""
    yield Architecture(
        model_type="qwen2",
        class_name="Qwen2ForCausalLM",
        other_names=("LlavaQwenForCausalLM",),
        **_QKV_BIASES,
        windows="from-layer",
        defaults=_sizes(4096, 22016, 32, 32, 151936, 32768, num_key_value_heads=32, sliding_window=4096, max_window_layers=28),
    )
    yield Architecture(
        model_type="qwen3",
        class_name="Qwen3ForCausalLM",
        query_key_norm="head",
        mlp_bias=False,
        windows="from-layer",
        defaults=_sizes(
            *(4096, 22016, 32, 32, 151936, 32768),
            num_key_value_heads=32,
            head_dim=128,
            sliding_window=4096,
            max_window_layers=28,
        ),
    )
    for model_type, class_name in (
        ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    ):
        yield Architecture(
            model_type=f"{model_type}_text",
            class_name=class_name,
            other_names=(model_type,),
            is_multimodal=True,
            **_QKV_BIASES,
            windows="from-layer",
            defaults=_QWEN2_VL,
        )
    yield Architecture(
        model_type="qwen3_vl_text",
        class_name="Qwen3VLForConditionalGeneration",
        other_names=("qwen3_vl",),
        is_multimodal=True,
        query_key_norm="head",
        mlp_bias=False,
        defaults=_sizes(4096, 22016, 32, 32, 151936, 128000, num_key_value_heads=32, head_dim=128),
    )
    yield Architecture(
        model_type="hunyuan_v1_dense",
        class_name="HunYuanDenseV1ForCausalLM",
        query_key_norm="head",
        mlp_bias=False,
        defaults=_sizes(4096, 11008, 32, 32, 290943, 2048),
    )


def _gemmas() -> Iterator[Architecture]:
    """Gemma 1 to 3."""
    yield Architecture(
        model_type="gemma",
        class_name="GemmaForCausalLM",
        mlp_bias=False,
        defaults=_sizes(3072, 24576, 28, 16, 256000, 8192, num_key_value_heads=16, head_dim=256, tie_word_embeddings=True),
    )
    yield Architecture(
        model_type="gemma2",
        class_name="Gemma2ForCausalLM",
        norms_per_layer=4,
        mlp_bias=False,
        windows="every-other",
        defaults=_sizes(
            2304, 9216, 26, 8, 256000, 8192, num_key_value_heads=4, sliding_window=4096, head_dim=256, tie_word_embeddings=True
        ),
    )
    yield Architecture(
        model_type="gemma3_text",
        class_name="Gemma3ForCausalLM",
        norms_per_layer=4,
        query_key_norm="head",
        mlp_bias=False,
        windows="all-but-every",
        defaults=_sizes(
            *(2304, 9216, 26, 8, 262208, 131072),
            num_key_value_heads=4,
            sliding_window=4096,
            sliding_window_pattern=6,
            head_dim=256,
            tie_word_embeddings=True,
        ),
    )


def _others() -> Iterator[Architecture]:
    """Architectures with gated MLPs and different norms, biases or windows."""
    yield Architecture(
        model_type="phi3",
        class_name="Phi3ForCausalLM",
        other_names=("phi3_v", "Phi3VForCausalLM"),
        **_NO_BIASES,
        windows="all",
        defaults=_sizes(3072, 8192, 32, 32, 32064, 4096),
    )
    yield Architecture(
        model_type="olmo2",
        class_name="Olmo2ForCausalLM",
        query_key_norm="whole",
        mlp_bias=False,
        defaults=_sizes(4096, 11008, 32, 32, 50304, 2048),
    )
    yield Architecture(
        model_type="olmo3",
        class_name="Olmo3ForCausalLM",
        query_key_norm="whole",
        mlp_bias=False,
        windows="all-but-every",
        defaults=_sizes(4096, 11008, 32, 32, 50304, 2048, sliding_window=4096, sliding_window_pattern=4),
    )
    yield Architecture(
        model_type="exaone4",
        class_name="Exaone4ForCausalLM",
        query_key_norm="head",
        **_NO_BIASES,
        windows="all-but-every",
        defaults=_sizes(
            4096, 16384, 32, 32, 102400, 2048, num_key_value_heads=32, sliding_window=4096, sliding_window_pattern=4
        ),
    )
    for model_type, class_name, norms_per_layer in (("glm", "GlmForCausalLM", 2), ("glm4", "Glm4ForCausalLM", 4)):
        yield Architecture(
            model_type=model_type,
            class_name=class_name,
            norms_per_layer=norms_per_layer,
            attn_out_bias=False,
            mlp_bias=False,
            defaults=_sizes(4096, 13696, 40, 32, 151552, 131072, num_key_value_heads=2, head_dim=128, attention_bias=True),
        )
    yield Architecture(
        model_type="cohere",
        class_name="CohereForCausalLM",
        norms_per_layer=1,
        query_key_norm="whole",
        query_key_norm_key="use_qk_norm",
        mlp_bias=False,
        defaults=_sizes(8192, 22528, 40, 64, 256000, 8192, tie_word_embeddings=True),
    )
    yield Architecture(
        model_type="cohere2",
        class_name="Cohere2ForCausalLM",
        norms_per_layer=1,
        mlp_bias=False,
        windows="all-but-every",
        defaults=_sizes(
            8192, 22528, 40, 64, 256000, 8192, tie_word_embeddings=True, sliding_window=4096, sliding_window_pattern=4
        ),
    )
    yield Architecture(
        model_type="stablelm",
        class_name="StableLmForCausalLM",
        norms_have_biases=True,
        parallel_key="use_parallel_residual",
        query_key_norm="whole",
        query_key_norm_key="qk_layernorm",
        qkv_bias="use_qkv_bias",
        attn_out_bias=False,
        mlp_bias=False,
        defaults=_sizes(2560, 6912, 32, 32, 50304, 4096, num_key_value_heads=32),
    )


def _plain_mlps() -> Iterator[Architecture]:
    """Architectures with two MLP matrices."""
    yield Architecture(
        model_type="opt",
        class_name="OPTForCausalLM",
        keys={"intermediate_size": "ffn_dim"},
        gated_mlp=False,
        norms_have_biases=True,
        qkv_bias="enable_bias",
        attn_out_bias="enable_bias",
        mlp_bias="enable_bias",
        learned_position_offset=2,
        defaults=_sizes(768, 3072, 12, 12, 50272, 2048, tie_word_embeddings=True, enable_bias=True),
    )
    yield Architecture(
        model_type="gpt2",
        class_name="GPT2LMHeadModel",
        keys=_GPT2_KEYS,
        gated_mlp=False,
        mlp_per_hidden=4,
        norms_have_biases=True,
        **_ALL_BIASES,
        learned_position_offset=0,
        defaults={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 50257,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
    )
    yield Architecture(
        model_type="gpt_neox",
        class_name="GPTNeoXForCausalLM",
        gated_mlp=False,
        norms_have_biases=True,
        mlp_bias=True,
        defaults=_sizes(6144, 24576, 44, 64, 50432, 2048, attention_bias=True),
    )
    yield Architecture(
        model_type="phi",
        class_name="PhiForCausalLM",
        gated_mlp=False,
        norms_per_layer=1,
        norms_have_biases=True,
        query_key_norm="head-with-bias",
        query_key_norm_key="qk_layernorm",
        **_ALL_BIASES,
        defaults=_sizes(2048, 8192, 24, 32, 51200, 2048),
    )
    yield Architecture(
        model_type="starcoder2",
        class_name="Starcoder2ForCausalLM",
        gated_mlp=False,
        norms_have_biases=True,
        qkv_bias="use_bias",
        attn_out_bias="use_bias",
        mlp_bias="use_bias",
        windows="all",
        defaults=_sizes(3072, 12288, 30, 24, 49152, 4096, num_key_value_heads=2, tie_word_embeddings=True, use_bias=True),
    )
    yield Architecture(
        model_type="nemotron",
        class_name="NemotronForCausalLM",
        gated_mlp=False,
        norms_have_biases=True,
        defaults=_sizes(6144, 24576, 32, 48, 256000, 4096),
    )
    yield Architecture(
        model_type="apertus",
        class_name="ApertusForCausalLM",
        gated_mlp=False,
        activation_params=2,
        query_key_norm="head",
        mlp_bias=False,
        defaults=_sizes(4096, 14336, 32, 32, 131072, 65536),
    )


def _remote() -> Iterator[Architecture]:
    """Architectures with code in their own repositories; their files give every size."""
    yield Architecture(
        model_type="qwen",
        class_name="QWenLMHeadModel",
        keys={"max_position_embeddings": "seq_length"},
        mlp_divisor=2,
        **_QKV_BIASES,
    )
    yield Architecture(model_type="baichuan", class_name="BaichuanForCausalLM", **_NO_BIASES)
    yield Architecture(
        model_type="chatglm",
        class_name="ChatGLMModel",
        other_names=("ChatGLMForConditionalGeneration",),
        keys=_CHATGLM_KEYS,
        qkv_bias="add_qkv_bias",
        attn_out_bias="add_bias_linear",
        mlp_bias="add_bias_linear",
    )
    yield Architecture(
        model_type="internlm2", class_name="InternLM2ForCausalLM", qkv_bias="bias", attn_out_bias="bias", mlp_bias=False
    )
    yield Architecture(
        model_type="exaone",
        class_name="ExaoneForCausalLM",
        keys={"num_hidden_layers": "num_layers"},
        **_NO_BIASES,
    )
    yield Architecture(
        model_type="mimo",
        class_name="MiMoForCausalLM",
        **_QKV_BIASES,
        windows="from-layer",
    )


ARCHITECTURES: tuple[Architecture, ...] = (*_llamas(), *_qwens(), *_gemmas(), *_others(), *_plain_mlps(), *_remote())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A multimodal model, and the architecture of its text decoder if its `text_config` names none."""

    model_type: str
    text_model_type: str
    defaults: Defaults = field(default_factory=dict)
    """Values that replace the defaults of that architecture."""


_VOXTRAL = _sizes(3072, 8192, 30, 32, 131072, 131072, num_key_value_heads=8, head_dim=128)

WRAPPERS: tuple[Wrapper, ...] = (
    *(
        Wrapper(model_type=model_type, text_model_type=text_model_type)
        for text_model_type, model_types in {
            "llama": (
                *("llava", "llava_next", "llava_next_video", "video_llava", "vipllava", "idefics3", "smolvlm", "janus"),
                *("deepseek_vl", "perception_lm"),
            ),
            "qwen2": (
                *("llava_onevision", "internvl", "qwen2_audio", "got_ocr2", "ovis2", "audioflamingo3", "fast_vlm"),
                "video_llama_3",
            ),
            "mistral": ("mistral3", "idefics2"),
            "gemma": ("paligemma",),
            "gemma3_text": ("gemma3",),
            "cohere2": ("aya_vision", "cohere2_vision"),
            "granite": ("granite_speech",),
            "opt": ("blip-2", "instructblip"),
            "qwen2_vl_text": ("qwen2_vl",),
            "qwen2_5_vl_text": ("qwen2_5_vl",),
            "qwen3_vl_text": ("qwen3_vl",),
        }.items()
        for model_type in model_types
    ),
    Wrapper(model_type="voxtral", text_model_type="llama", defaults=_VOXTRAL),
)
