"""Table of known models: shapes from config.json, and published weight counts.

The same reader handles these rows and a user's file (`perfmodel.models.model_config`). The published count enters no price.
It checks the row: a wrong size or a missing bias would change the count. docs/reference/models.md is generated from this table.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.models.model_config import geometry_from_config

Shape: TypeAlias = tuple[int, int, int, int, int]
"""Layers, hidden size, MLP size, heads, kv heads."""
Row: TypeAlias = tuple[str, str, Shape, int, dict[str, object]]
"""Name, repository or other source, shape, published number of weights, config keys that differ from the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One known model."""

    geometry: ModelGeometry
    published_params: int
    """Published number of weights; a tied head is counted once."""
    count_source: str
    """Source of that count."""


_HUB = "the hub's count of its safetensors"
_HUB_TWICE = "the hub's count of its safetensors, less the copy of the tied head"
_LLAMA_PAPER = "arXiv 2302.13971, Table 2"
_OPT_PAPER = "arXiv 2205.01068, Table 1"
_GEMMA_3_PAPER = "arXiv 2503.19786, Table 1, vision encoder left out"
_SPECULATIVE_PAPER = "arXiv 2402.01528"
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
_NO_MORE: dict[str, object] = {}
_TIED: dict[str, object] = {"tie_word_embeddings": True}


def _rows(model_type: str, count_source: str, shared: dict[str, object], *rows: Row) -> Iterator[KnownModel]:
    """Models of one architecture; `shared` and the last item of each row are keys of their config.json."""
    for name, repository, shape, published_params, own in rows:
        config = {"model_type": model_type, **dict(zip(_SIZES, shape, strict=True)), **shared, **own}
        source = f"config.json of {repository} on the Hugging Face hub" if "/" in repository else repository
        geometry = geometry_from_config(config, name, source)
        yield KnownModel(geometry=geometry, published_params=published_params, count_source=count_source)


def _keys(vocab_size: int, context_tokens: int, **more: object) -> dict[str, object]:
    return {"vocab_size": vocab_size, "max_position_embeddings": context_tokens, **more}


_LLAMA_65B: Shape = (80, 8192, 22016, 64, 64)
_LLAMA_33B: Shape = (60, 6656, 17920, 52, 52)
_LLAMA_13B: Shape = (40, 5120, 13824, 40, 40)
_LLAMA_7B: Shape = (32, 4096, 11008, 32, 32)
_LLAMA_2_70B: Shape = (80, 8192, 28672, 64, 8)
_LLAMA_3_8B: Shape = (32, 4096, 14336, 32, 8)

_LLAMAS = (
    *_rows(
        "llama",
        _HUB,
        _keys(32000, 4096),
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf", _LLAMA_7B, 6_738_417_664, _NO_MORE),
        ("llama-2-13b", "meta-llama/Llama-2-13b-hf", _LLAMA_13B, 13_015_866_880, _NO_MORE),
        ("llama-2-70b", "meta-llama/Llama-2-70b-hf", _LLAMA_2_70B, 68_976_653_312, _NO_MORE),
    ),
    *_rows(
        "llama",
        "the hub's count of Llama 2, which it was tuned from",
        _keys(32000, 4096),
        ("vicuna-7b", "lmsys/vicuna-7b-v1.5", _LLAMA_7B, 6_738_417_664, _NO_MORE),
        ("vicuna-13b", "lmsys/vicuna-13b-v1.5", _LLAMA_13B, 13_015_866_880, _NO_MORE),
    ),
    *_rows(
        "llama",
        _HUB,
        _keys(128256, 131072),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B", _LLAMA_3_8B, 8_030_261_248, _NO_MORE),
        ("llama-3.1-70b", "meta-llama/Llama-3.1-70B", _LLAMA_2_70B, 70_553_706_496, _NO_MORE),
        ("llama-3.1-405b", "meta-llama/Llama-3.1-405B", (126, 16384, 53248, 128, 8), 405_853_388_800, _NO_MORE),
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B", (16, 2048, 8192, 32, 8), 1_235_814_400, _TIED),
        ("llama-3.2-3b", "meta-llama/Llama-3.2-3B", (28, 3072, 8192, 24, 8), 3_212_749_824, _TIED),
        ("llama-3.3-70b", "meta-llama/Llama-3.3-70B-Instruct", _LLAMA_2_70B, 70_553_706_496, _NO_MORE),
    ),
    *_rows(
        "llama",
        _HUB,
        _keys(128256, 8192),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B", _LLAMA_3_8B, 8_030_261_248, _NO_MORE),
        ("llama-3-70b", "meta-llama/Meta-Llama-3-70B", _LLAMA_2_70B, 70_553_706_496, _NO_MORE),
    ),
    *_rows(
        "llama",
        _LLAMA_PAPER,
        _keys(32000, 2048),
        ("llama-1-7b", "huggyllama/llama-7b", _LLAMA_7B, 6_700_000_000, _NO_MORE),
        ("llama-1-13b", "huggyllama/llama-13b", _LLAMA_13B, 13_000_000_000, _NO_MORE),
        ("llama-1-33b", "huggyllama/llama-30b", _LLAMA_33B, 32_500_000_000, _NO_MORE),
        ("llama-1-65b", "huggyllama/llama-65b", _LLAMA_65B, 65_200_000_000, _NO_MORE),
    ),
    *_rows(
        "llama",
        f"{_LLAMA_PAPER}: LLaMA, which it was tuned from",
        _keys(32000, 2048),
        ("vicuna-7b-v1.3", "lmsys/vicuna-7b-v1.3", _LLAMA_7B, 6_700_000_000, _NO_MORE),
        ("vicuna-13b-v1.3", "lmsys/vicuna-13b-v1.3", _LLAMA_13B, 13_000_000_000, _NO_MORE),
        ("vicuna-33b", "lmsys/vicuna-33b-v1.3", _LLAMA_33B, 32_500_000_000, _NO_MORE),
    ),
)

_WITHOUT_WINDOW: dict[str, object] = {"sliding_window": None}
_HEADS_OF_128: dict[str, object] = {"head_dim": 128}

_MISTRALS = (
    *_rows(
        "mistral",
        _HUB,
        _keys(32000, 32768),
        ("mistral-7b-v0.1", "mistralai/Mistral-7B-v0.1", _LLAMA_3_8B, 7_241_732_096, {"sliding_window": 4096}),
        ("mistral-7b-v0.2", "mistralai/Mistral-7B-Instruct-v0.2", _LLAMA_3_8B, 7_241_732_096, _WITHOUT_WINDOW),
    ),
    *_rows(
        "mistral",
        _HUB,
        _WITHOUT_WINDOW,
        ("mistral-7b-v0.3", "mistralai/Mistral-7B-v0.3", _LLAMA_3_8B, 7_248_023_552, _keys(32768, 32768)),
        (
            "mistral-nemo-12b",
            "mistralai/Mistral-Nemo-Instruct-2407",
            (40, 5120, 14336, 32, 8),
            12_247_782_400,
            _keys(131072, 131072, **_HEADS_OF_128),
        ),
        (
            "mistral-small-24b",
            "mistralai/Mistral-Small-24B-Instruct-2501",
            (40, 5120, 32768, 32, 8),
            23_572_403_200,
            _keys(131072, 32768, **_HEADS_OF_128),
        ),
    ),
)

_QWENS = (
    *_rows(
        "qwen2",
        _HUB,
        _keys(151936, 32768, **_TIED),
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", (24, 896, 4864, 14, 2), 494_032_768, _NO_MORE),
        ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", (28, 1536, 8960, 12, 2), 1_543_714_304, _NO_MORE),
        ("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct", (36, 2048, 11008, 16, 2), 3_085_938_688, _NO_MORE),
    ),
    *_rows(
        "qwen2",
        _HUB,
        _keys(152064, 32768),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", (28, 3584, 18944, 28, 4), 7_615_616_512, _NO_MORE),
        ("qwen2.5-14b", "Qwen/Qwen2.5-14B-Instruct", (48, 5120, 13824, 40, 8), 14_770_033_664, _NO_MORE),
        ("qwen2.5-32b", "Qwen/Qwen2.5-32B-Instruct", (64, 5120, 27648, 40, 8), 32_763_876_352, _NO_MORE),
        ("qwen2.5-72b", "Qwen/Qwen2.5-72B-Instruct", (80, 8192, 29568, 64, 8), 72_706_203_648, _NO_MORE),
    ),
    *_rows(
        "qwen3",
        _HUB_TWICE,
        _keys(151936, 40960, **_TIED),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B", (28, 1024, 3072, 16, 8), 751_632_384 - 151_936 * 1024, _NO_MORE),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B", (28, 2048, 6144, 16, 8), 2_031_739_904 - 151_936 * 2048, _NO_MORE),
    ),
    *_rows(
        "qwen3",
        _HUB,
        _keys(151936, 40960),
        ("qwen3-4b", "Qwen/Qwen3-4B", (36, 2560, 9728, 32, 8), 4_022_468_096, _TIED),
        ("qwen3-8b", "Qwen/Qwen3-8B", (36, 4096, 12288, 32, 8), 8_190_735_360, _NO_MORE),
        ("qwen3-14b", "Qwen/Qwen3-14B", (40, 5120, 17408, 40, 8), 14_768_307_200, _NO_MORE),
        ("qwen3-32b", "Qwen/Qwen3-32B", (64, 5120, 25600, 64, 8), 32_762_123_264, _NO_MORE),
    ),
)

_GEMMAS = (
    *_rows(
        "gemma",
        _HUB,
        _keys(256000, 8192),
        ("gemma-2b", "google/gemma-2b", (18, 2048, 16384, 8, 1), 2_506_172_416, _NO_MORE),
        ("gemma-7b", "google/gemma-7b", (28, 3072, 24576, 16, 16), 8_537_680_896, _NO_MORE),
    ),
    *_rows(
        "gemma2",
        _HUB,
        _keys(256000, 8192, sliding_window=4096),
        ("gemma-2-2b", "google/gemma-2-2b", (26, 2304, 9216, 8, 4), 2_614_341_888, _NO_MORE),
        ("gemma-2-9b", "google/gemma-2-9b", (42, 3584, 14336, 16, 8), 9_241_705_984, _NO_MORE),
        ("gemma-2-27b", "google/gemma-2-27b", (46, 4608, 36864, 32, 16), 27_227_128_320, _HEADS_OF_128),
    ),
    *_rows(
        "gemma3_text",
        _HUB,
        _keys(262144, 32768, sliding_window=512),
        ("gemma-3-1b", "google/gemma-3-1b-it", (26, 1152, 6912, 4, 1), 999_885_952, _NO_MORE),
    ),
    *_rows(
        "gemma3_text",
        _GEMMA_3_PAPER,
        _keys(262208, 131072, sliding_window=1024),
        ("gemma-3-4b", "google/gemma-3-4b-it", (34, 2560, 10240, 8, 4), 3_884_000_000, _NO_MORE),
        ("gemma-3-12b", "google/gemma-3-12b-it", (48, 3840, 15360, 16, 8), 11_771_000_000, _NO_MORE),
        ("gemma-3-27b", "google/gemma-3-27b-it", (62, 5376, 21504, 32, 16), 27_016_000_000, _HEADS_OF_128),
    ),
)

_PHI_3_MINI: Shape = (32, 3072, 8192, 32, 32)

_OTHERS = (
    *_rows(
        "phi3",
        _HUB,
        _NO_MORE,
        (
            "phi-3-mini",
            "microsoft/Phi-3-mini-4k-instruct",
            _PHI_3_MINI,
            3_821_079_552,
            _keys(32064, 4096, sliding_window=2047),
        ),
        ("phi-3.5-mini", "microsoft/Phi-3.5-mini-instruct", _PHI_3_MINI, 3_821_079_552, _keys(32064, 131072)),
        ("phi-4", "microsoft/phi-4", (40, 5120, 17920, 40, 10), 14_659_507_200, _keys(100352, 16384)),
        (
            "phi-4-mini",
            "microsoft/Phi-4-mini-instruct",
            (32, 3072, 8192, 24, 8),
            3_836_021_760,
            _keys(200064, 131072, **_TIED),
        ),
    ),
    *_rows(
        "granite",
        _HUB,
        _keys(49159, 131072, **_TIED),
        ("granite-3.3-8b", "ibm-granite/granite-3.3-8b-instruct", (40, 4096, 12800, 32, 8), 8_170_864_640, _NO_MORE),
    ),
    *_rows(
        "smollm3",
        _HUB,
        _keys(128256, 65536),
        ("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", (36, 2048, 11008, 16, 4), 3_075_098_624, _NO_MORE),
    ),
    *_rows(
        "olmo2",
        _HUB,
        _keys(100352, 4096),
        ("olmo-2-7b", "allenai/OLMo-2-1124-7B", (32, 4096, 11008, 32, 32), 7_298_617_344, _NO_MORE),
        ("olmo-2-13b", "allenai/OLMo-2-1124-13B", (40, 5120, 13824, 40, 40), 13_716_198_400, _NO_MORE),
    ),
)


def _opt(name: str, shape: tuple[int, int, int], published_params: int, **own: object) -> Row:
    """An OPT model by layers, hidden size and heads; its MLP size is four times the hidden size (key `ffn_dim`)."""
    layers, hidden, heads = shape
    full_shape = (layers, hidden, 4 * hidden, heads, heads)
    return name, f"facebook/{name}", full_shape, published_params, {"ffn_dim": 4 * hidden, **own}


_OPTS = tuple(
    _rows(
        "opt",
        _OPT_PAPER,
        _keys(50272, 2048),
        _opt("opt-125m", (12, 768, 12), 125_000_000),
        _opt("opt-1.3b", (24, 2048, 32), 1_300_000_000),
        _opt("opt-6.7b", (32, 4096, 32), 6_700_000_000),
        _opt("opt-13b", (40, 5120, 40), 13_000_000_000),
        _opt("opt-30b", (48, 7168, 56), 30_000_000_000),
        _opt("opt-66b", (64, 9216, 72), 66_000_000_000),
    )
) + tuple(
    _rows(
        "opt",
        "its checkpoint; its name rounds",
        _keys(50272, 2048),
        _opt("opt-350m", (24, 1024, 16), 331_196_416, word_embed_proj_dim=512),
        _opt("opt-2.7b", (32, 2560, 32), 2_651_596_800),
    )
)

_GGUF_SHAPE = "layers of Llama 2 7B, as many as fill its GGUF files on the hub (minghaoyan, converted by Nafnlaus)"
_GGUF = "its Q6_K file, at 6.5625 bits a weight; its name counts otherwise"

_DRAFTS = (
    *_rows(
        "llama",
        _HUB,
        _keys(32000, 2048),
        ("tinyllama-1.1b", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", (22, 2048, 5632, 32, 4), 1_100_048_384, _NO_MORE),
    ),
    *_rows(
        "llama",
        "its name",
        _keys(32000, 2048),
        ("vicuna-68m", "double7/vicuna-68m", (2, 768, 3072, 12, 12), 68_000_000, _NO_MORE),
        ("vicuna-160m", "double7/vicuna-160m", (12, 768, 3072, 12, 12), 162_000_000, _NO_MORE),
    ),
    *_rows(
        "llama",
        _SPECULATIVE_PAPER,
        _keys(32000, 4096),
        ("noft-1.3b", _SPECULATIVE_PAPER, (24, 2048, 5504, 16, 16), 1_345_000_000, _NO_MORE),
        ("noft-wide-1.3b", _SPECULATIVE_PAPER, (12, 2560, 9280, 20, 20), 1_334_000_000, _NO_MORE),
    ),
    *_rows(
        "llama",
        _GGUF,
        _keys(32000, 4096),
        ("wide-sheared-llama-290m", _GGUF_SHAPE, (1, 4096, 11008, 32, 32), 465_700_000, _NO_MORE),
        ("wide-sheared-llama-543m", _GGUF_SHAPE, (3, 4096, 11008, 32, 32), 870_400_000, _NO_MORE),
        ("wide-sheared-llama-796m", _GGUF_SHAPE, (5, 4096, 11008, 32, 32), 1_280_000_000, _NO_MORE),
    ),
    *_rows(
        "llama",
        "its name",
        _keys(32000, 4096),
        ("sheared-llama-2.7b", "princeton-nlp/Sheared-LLaMA-2.7B", (32, 2560, 6912, 20, 20), 2_700_000_000, _NO_MORE),
    ),
    *_rows(
        "llama",
        _HUB,
        _keys(49152, 8192, **_TIED),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", (30, 576, 1536, 9, 3), 134_515_008, _NO_MORE),
        ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", (32, 960, 2560, 15, 5), 361_821_120, _NO_MORE),
        ("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B", (24, 2048, 8192, 32, 32), 1_711_376_384, _NO_MORE),
    ),
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


_FAMILY = "docs/reference-family.md"

KNOWN_ROWS: tuple[KnownModel, ...] = (
    *_LLAMAS,
    *_MISTRALS,
    *_QWENS,
    *_GEMMAS,
    *_OTHERS,
    *_OPTS,
    *_DRAFTS,
    KnownModel(geometry=_reference("ref-target-16", 16), published_params=3_280_000, count_source=_FAMILY),
    KnownModel(geometry=_reference("ref-target-32", 32), published_params=6_300_000, count_source=_FAMILY),
)
KNOWN_MODELS: tuple[ModelGeometry, ...] = tuple(known.geometry for known in KNOWN_ROWS)

KNOWN_DRAFTS: tuple[DraftGeometry, ...] = (
    DraftGeometry(
        kind="separate",
        model=replace(
            next(model for model in KNOWN_MODELS if model.name == "vicuna-7b"),
            name="s2d-vicuna-12",
            num_layers=12,
            source="first 12 layers of lmsys/vicuna-7b-v1.5, exits after 6, 9, 12: Kavehzadeh et al. (arXiv 2407.01955)",
        ),
        exit_layers=(6, 9, 12),
    ),
    DraftGeometry(kind="separate", model=_reference("ref-draft", 6), exit_layers=(1, 2, 4, 6)),
)

UNPUBLISHED_DRAFTS = {"s2d-vicuna-12": "vicuna-7b"}
"""Nested drafts with published acceptance but unpublished weights, and the model whose first layers they use."""

ALIASES: dict[str, str] = {
    "llama-7b": "llama-2-7b",
    "llama-13b": "llama-2-13b",
    "llama-70b": "llama-2-70b",
    "llama-30b": "llama-1-33b",
    "llama-33b": "llama-1-33b",
    "llama-65b": "llama-1-65b",
    "llama-405b": "llama-3.1-405b",
    "meta-llama-3-8b": "llama-3-8b",
    "meta-llama-3-70b": "llama-3-70b",
    "meta-llama-3.1-8b": "llama-3.1-8b",
    "meta-llama-3.1-70b": "llama-3.1-70b",
    "meta-llama-3.1-405b": "llama-3.1-405b",
    "vicuna-7b-v1.5": "vicuna-7b",
    "vicuna-13b-v1.5": "vicuna-13b",
    "vicuna-33b-v1.3": "vicuna-33b",
    "mistral-7b": "mistral-7b-v0.3",
    "mistral-nemo": "mistral-nemo-12b",
    "mistral-nemo-2407": "mistral-nemo-12b",
    "mistral-small-24b-2501": "mistral-small-24b",
    "phi-3-mini-4k": "phi-3-mini",
    "olmo-2-1124-7b": "olmo-2-7b",
    "olmo-2-1124-13b": "olmo-2-13b",
    "tinyllama": "tinyllama-1.1b",
    "tinyllama-1.1b-v1.0": "tinyllama-1.1b",
    "llama-68m": "vicuna-68m",
    "llama-160m": "vicuna-160m",
    "sheared-llama-1.3b": "noft-1.3b",
    "wide-sheared-llama-1.3b": "noft-wide-1.3b",
    "target-16": "ref-target-16",
    "target-32": "ref-target-32",
    "draft": "ref-draft",
    "s2d": "s2d-vicuna-12",
    "s2d-vicuna-7b": "s2d-vicuna-12",
}
"""Other names of known models with the same shapes. An ambiguous name (`llama-70b`) means the model of the S2D paper.

Suffixes for tuned models (`-hf`, `-chat`, `-instruct`, `-it`) are removed before a name is looked up. Commands print the name
of the model that was found.
"""
