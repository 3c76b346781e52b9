"""Compare the table of architectures with transformers: defaults, and weights, kv heads and windows of small models."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from perfmodel.models.architectures import decoder_config
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.known_architectures import ARCHITECTURES, WRAPPERS, Architecture
from perfmodel.models.model_config import geometry_from_config

pytestmark = pytest.mark.e2e

REMOTE = ("qwen", "baichuan", "chatglm", "internlm2", "exaone", "mimo")
"""Architectures with code in their own repositories."""
SIZES: dict[str, object] = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 104,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SWITCHES = (
    *("attention_bias", "mlp_bias", "use_bias", "qkv_bias", "attention_out_bias", "enable_bias", "use_qkv_bias"),
    *("use_qk_norm", "qk_layernorm", "use_parallel_residual", "tie_word_embeddings"),
)
NEVER_MULTI_QUERY = ("opt", "gpt2", "gpt_neox")
NEEDS_HEAD_DIM = ("ministral", "hunyuan_v1_dense", "helium")
"""Architectures whose code does not derive the head dimension."""


def config_class(model_type: str) -> type:
    return type(transformers.CONFIG_MAPPING[model_type]())


def small_config(architecture: Architecture, **overrides: object) -> dict[str, Any]:
    """A small config of an architecture with the key names of its files, without keys that its class lacks."""
    known = config_class(architecture.model_type)()
    sizes = {key: size for key, size in SIZES.items() if hasattr(known, key) or key in architecture.keys}
    if architecture.model_type in NEVER_MULTI_QUERY:
        sizes.pop("num_key_value_heads", None)
    if architecture.model_type in NEEDS_HEAD_DIM:
        sizes["head_dim"] = 16
    named = {architecture.keys.get(key, key): size for key, size in (sizes | overrides).items()}
    return {"model_type": architecture.model_type, **named}


def built(config: Mapping[str, Any], device: str = "meta") -> PreTrainedModel:
    """The transformers model of a config; on `meta` it takes no memory for weights."""
    model_type = config["model_type"]
    with torch.device(device):
        if model_type.endswith("_vl_text"):
            whole = transformers.CONFIG_MAPPING[model_type.removesuffix("_text")](
                text_config=dict(config),
                vision_config={"depth": 1},
                tie_word_embeddings=config.get("tie_word_embeddings", False),
            )
            return AutoModelForImageTextToText.from_config(whole)
        return AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[model_type](**config))


def text_weights(model: PreTrainedModel) -> dict[str, int]:
    """Number of weights by name, tied ones once, without those for images and audio."""
    others = ("vision", "visual", "audio", "multi_modal_projector", "connector", "image_newline")
    return {name: parameter.numel() for name, parameter in model.named_parameters() if not any(part in name for part in others)}


def outside_biases(weights: Mapping[str, int], model: ModelGeometry) -> int:
    """Biases of the last norm and the head, the only weights that a geometry does not count."""
    outside = [name for name in weights if "layers." not in name and ".h." not in name]
    biases = sum(weights[name] for name in outside if name.endswith("bias"))
    assert biases <= model.hidden_size + model.vocab_size
    return biases


def switched(architecture: Architecture) -> Iterator[dict[str, Any]]:
    """Small configs of an architecture: with defaults, with each of its switches inverted, and with another head dimension."""
    known = config_class(architecture.model_type)()
    yield small_config(architecture)
    for switch in SWITCHES:
        if architecture.model_type == "internlm3" and switch == "qkv_bias":  # transformers requires both
            yield small_config(architecture, qkv_bias=True, bias=True)
        elif hasattr(known, switch) and (architecture.model_type != "internlm3" or switch == "tie_word_embeddings"):
            yield small_config(architecture, **{switch: not getattr(known, switch)})
    if "head_dim" in config_class(architecture.model_type).__dataclass_fields__ and architecture.model_type != "helium":
        yield small_config(architecture, head_dim=32)


def test_every_architecture_has_the_weights_of_transformers_with_any_switch() -> None:
    wrong = []
    for architecture in ARCHITECTURES:
        if architecture.model_type in REMOTE:
            continue
        for config in switched(architecture):
            model, weights = geometry_from_config(config, "mine"), text_weights(built(config))
            counted = model.num_params + outside_biases(weights, model)
            if counted != sum(weights.values()):
                changed = {k: v for k, v in config.items() if k not in SIZES}
                wrong.append(f"{changed}: {counted} counted, {sum(weights.values())} in transformers")
    assert not wrong, "\n".join(wrong)


def test_every_architecture_has_the_kv_cache_of_transformers_with_windows() -> None:
    """Keys that transformers keeps for 12 tokens and windows of 5: it keeps 4 besides the newest."""
    wrong, windowed = [], set()
    for architecture in ARCHITECTURES:
        if architecture.model_type in REMOTE:
            continue
        window = {} if architecture.windows == "none" else {"sliding_window": 5, "num_hidden_layers": 6}
        overrides: dict[str, Any] = (
            {"use_sliding_window": True, "max_window_layers": 4} if architecture.windows == "from-layer" else {}
        )
        if architecture.is_multimodal:
            overrides["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
        config = small_config(architecture, **window, **overrides)
        model = geometry_from_config(config, "mine")
        with torch.inference_mode():
            output = built(config, "cpu")(input_ids=torch.arange(3, 15)[None], use_cache=True)
        keys = [layer.keys for layer in output.past_key_values.layers]  # [1, K, S, H] each
        kept = (model.num_layers - model.windowed_layers) * 12 + model.windowed_layers * 4
        shapes = {(key.shape[1], key.shape[3]) for key in keys}
        if shapes != {(model.num_kv_heads, model.head_dim)} or sum(key.shape[2] for key in keys) != kept:
            kept_there = [tuple(key.shape) for key in keys]
            wrong.append(f"{architecture.model_type}: {model.windowed_layers} layers with a window; cached {kept_there}")
        windowed |= {architecture.windows} if model.windowed_layers else set()
    assert not wrong, "\n".join(wrong)
    assert windowed == {"all", "from-layer", "every-other", "all-but-every", "all-but-first-of"}


def test_every_default_is_the_default_of_transformers() -> None:
    """A file with only its model type is read as transformers completes it, and every default in the table is the class's."""
    wrong = []
    for architecture in ARCHITECTURES:
        if architecture.model_type in REMOTE:
            assert architecture.defaults == {}
            continue
        known = config_class(architecture.model_type)
        whole = known().to_dict()
        for key, value in architecture.defaults.items():
            theirs = getattr(known, architecture.keys.get(key, key), whole.get(f"_{key}"))
            if key == "sliding_window_pattern" and theirs is None:  # only in the class's code; the layers below show it
                continue
            if theirs != value:
                wrong.append(f"{architecture.model_type}: {key} is {value}, in transformers {theirs}")
        minimal, completed = ({"model_type": architecture.model_type}, {**whole, "model_type": architecture.model_type})
        if shapes_of(minimal) != shapes_of(completed):
            wrong.append(f"{architecture.model_type}: {shapes_of(minimal)}, completed {shapes_of(completed)}")
    assert not wrong, "\n".join(wrong)


def shapes_of(config: Mapping[str, Any]) -> ModelGeometry:
    return replace(geometry_from_config(config, "mine"), source="")


def test_the_text_decoder_of_every_multimodal_model_is_that_of_transformers() -> None:
    """With few sizes in the text_config, as in LLaVA 1.5's file, with and without a model type."""
    wrong = []
    for wrapper in WRAPPERS:
        sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
        default = transformers.CONFIG_MAPPING[wrapper.model_type]().get_text_config(decoder=True)
        if default.model_type != wrapper.text_model_type:
            wrong.append(f"{wrapper.model_type}: {wrapper.text_model_type}, in transformers {default.model_type}")
        family = {"model_type": wrapper.text_model_type}
        whole = transformers.CONFIG_MAPPING[wrapper.model_type](text_config=family | sizes).get_text_config(decoder=True)
        theirs = shapes_of({**whole.to_dict(), "tie_word_embeddings": getattr(whole, "tie_word_embeddings", False)})
        for text in (sizes, family | sizes):
            ours = shapes_of({"model_type": wrapper.model_type, "text_config": text})
            if ours != theirs:
                wrong.append(f"{wrapper.model_type}: {ours}, in transformers {theirs}")
    assert not wrong, "\n".join(wrong)
    assert len({wrapper.model_type for wrapper in WRAPPERS}) == len(WRAPPERS)


def test_a_flat_config_of_a_vision_model_gives_its_text_decoder() -> None:
    flat = small_config(next(row for row in ARCHITECTURES if row.model_type == "qwen2_vl_text"))
    nested = {"model_type": "qwen2_vl", "text_config": flat}
    for config in ({**flat, "model_type": "qwen2_vl"}, {**flat, "architectures": ["Qwen2VLForConditionalGeneration"]}, nested):
        assert shapes_of(config) == shapes_of(flat)
        assert "text decoder only" in geometry_from_config(config, "mine").source


def test_the_text_config_decides_whether_the_head_is_tied_before_the_outer_config() -> None:
    text = {"model_type": "llama", **SIZES}
    for inner, outer, is_tied in ((None, True, True), (None, False, False), (True, False, True), (False, True, False)):
        config: dict[str, Any] = {"model_type": "llava", "tie_word_embeddings": outer, "text_config": dict(text)}
        if inner is not None:
            config["text_config"]["tie_word_embeddings"] = inner
        assert geometry_from_config(config, "mine").tied_embeddings == is_tied
    assert decoder_config({"model_type": "llava"}) == {"model_type": "llava"}


LLAMA_7B = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
GLM_4_9B: dict[str, object] = {
    "num_layers": 40,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "padded_vocab_size": 151552,
    "seq_length": 8192,
    "add_qkv_bias": True,
    "add_bias_linear": False,
}
GROUPED = {**LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8}
PUBLISHED: list[tuple[str, dict[str, object], int]] = [
    ("QWenLMHeadModel", {**LLAMA_7B, "intermediate_size": 22016, "vocab_size": 151936, "seq_length": 8192}, 7_721_324_544),
    ("BaichuanForCausalLM", {**LLAMA_7B, "vocab_size": 64000}, 7_000_559_616),
    ("ChatGLMModel", GLM_4_9B, 9_399_951_360),
    ("ChatGLMModel", {**GLM_4_9B, "num_layers": 28, "padded_vocab_size": 65024}, 6_243_584_000),
    ("InternLM2ForCausalLM", {**GROUPED, "vocab_size": 92544, "bias": False}, 7_737_708_544),
]
"""Published weights of Qwen-7B, Baichuan-7B (Baichuan-13B's README), GLM-4-9B, ChatGLM3-6B and InternLM2-7B."""


def test_architectures_with_their_own_code_have_the_published_number_of_weights() -> None:
    for name, config, published_params in PUBLISHED:
        assert geometry_from_config({"architectures": [name], **config}, "mine").num_params == published_params
    exaone = {**GROUPED, "num_layers": 32, "vocab_size": 102400}
    del exaone["num_hidden_layers"]
    model = geometry_from_config({"architectures": ["ExaoneForCausalLM"], **exaone}, "mine")
    assert model.num_params == pytest.approx(7.8e9, rel=0.01)  # EXAONE 3.0 7.8B, by its name
    assert {*REMOTE} == {*(row.model_type for row in ARCHITECTURES if row.model_type not in transformers.CONFIG_MAPPING)}


def test_mimo_is_qwen_2_with_mtp_layers_that_are_not_counted() -> None:
    """Its class inherits Qwen 2's; only a drafting head reads its MTP layers, not plain decoding."""
    config = {**GROUPED, "vocab_size": 151680, "max_position_embeddings": 32768, "use_sliding_window": False}
    mimo, qwen = ({**config, "model_type": name} for name in ("mimo", "qwen2"))
    assert shapes_of({**mimo, "num_nextn_predict_layers": 1, "attention_bias": True}) == shapes_of(qwen)


def test_the_text_decoder_of_phi_3_vision_excludes_its_vision_tower_and_projector() -> None:
    """4,146,621,440 weights on the hub: CLIP ViT-L/14-336, two projections, two separators, and Phi-3 mini."""
    config = {**LLAMA_7B, "hidden_size": 3072, "intermediate_size": 8192, "vocab_size": 32064, "sliding_window": 131072}
    model = geometry_from_config({"architectures": ["Phi3VForCausalLM"], **config}, "mine")
    projector = 4096 * 3072 + 3072 + 3072 * 3072 + 3072 + 2 * 4096
    assert model.num_params + 303_507_456 + projector == 4_146_621_440
    assert "text decoder only" in model.source
