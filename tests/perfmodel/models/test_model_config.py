"""config.json files of covered architectures, and configs that are refused."""

from dataclasses import replace
from typing import Any

import pytest

from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.models.architectures import UNSUPPORTED_FEATURES, find_architecture
from perfmodel.models.find_model import find_model
from perfmodel.models.known_architectures import ARCHITECTURES
from perfmodel.models.model_config import geometry_from_config

LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
}


LLAMA_1 = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
}


def small(class_name: str, model_type: str, **overrides: object) -> dict[str, Any]:
    """A config with four layers: hidden 64, MLP 256, 4 heads of 16, 2 kv heads, vocabulary 100."""
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 100,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        **overrides,
    }


ONE_IN_FOUR = ["sliding_attention", *["full_attention"] * 3]


@pytest.mark.parametrize(
    ("config", "windowed_layers"),
    [
        (small("MistralForCausalLM", "mistral", sliding_window=4096), 4),
        (small("MistralForCausalLM", "mistral"), 4),
        (small("MistralForCausalLM", "mistral", sliding_window=8192), 0),
        (small("Phi3ForCausalLM", "phi3", sliding_window=2047), 4),
        (small("Qwen2ForCausalLM", "qwen2", use_sliding_window=True, sliding_window=512, max_window_layers=3), 1),
        (small("Qwen2ForCausalLM", "qwen2", use_sliding_window=True, sliding_window=512, max_window_layers=9), 0),
        (small("Gemma2ForCausalLM", "gemma2"), 2),
        (small("Gemma2ForCausalLM", "gemma2", num_hidden_layers=5), 3),
        (small("Gemma3ForCausalLM", "gemma3_text", num_hidden_layers=13, sliding_window=512), 11),
        (small("Gemma3ForCausalLM", "gemma3_text", sliding_window=512, _sliding_window_pattern=2), 2),
        (small("Gemma3ForCausalLM", "gemma3_text", sliding_window=512, layer_types=ONE_IN_FOUR), 1),
    ],
)  # fmt: skip
def test_windowed_layers_follow_the_layout_of_the_architecture(config: dict[str, Any], windowed_layers: int) -> None:
    model = geometry_from_config(config, "mine")
    assert model.windowed_layers == windowed_layers
    assert (model.window_tokens is None) == (windowed_layers == 0)


def test_a_config_gives_the_geometry_of_the_known_model() -> None:
    known, read = find_model("llama-3.1-8b"), geometry_from_config(LLAMA_CONFIG, "mine")
    assert read.num_params == known.num_params
    assert read.kv_values_per_token == known.kv_values_per_token
    assert (read.name, read.source, read.max_context_tokens) == ("mine", "config.json of mine", 131072)


def test_a_missing_size_is_a_default_and_named_in_the_source() -> None:
    read = geometry_from_config({"model_type": "llama", "vocab_size": 32064}, "mine")
    assert replace(read, source="") == replace(geometry_from_config({**LLAMA_1, "vocab_size": 32064}, "mine"), source="")
    assert read.source.startswith("config.json of mine, with transformers' defaults of llama: hidden_size 4096, ")


def test_missing_keys_of_an_old_config_have_the_values_of_transformers() -> None:
    missing = {"num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings", "rope_scaling"}
    read = geometry_from_config({key: value for key, value in LLAMA_CONFIG.items() if key not in missing}, "old")
    assert (read.num_kv_heads, read.head_dim, read.tied_embeddings, read.max_context_tokens) == (32, 128, False, 2048)


def test_the_minimal_config_of_gemma_3_gives_its_text_decoder() -> None:
    """google/gemma-3-4b-it has only these keys; the other values are defaults in transformers."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {**text, "model_type": "gemma3_text"},
        "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
    }
    assert geometry_from_config(config, "x").num_params == find_model("gemma-3-4b").num_params
    assert geometry_from_config(config, "x").windowed_layers == 29


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": None}, "hidden_size is null, expected a count from 1 to 10^9. Correct its config.json."),
    ({"hidden_size": -4096}, "hidden_size is -4096, expected a count"),
    ({"hidden_size": 10**30}, "hidden_size is 1000000000000000000000000000000, expected a count"),
    ({"vocab_size": "32000"}, "vocab_size is '32000', expected a count"),
    ({"vocab_size": "9" * 20_000}, "99', expected a count"),
    ({"num_hidden_layers": True}, "num_hidden_layers is true, expected a count"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected a count from 1 to 1000"),
    ({"num_hidden_layers": 32.0}, "num_hidden_layers is 32.0, expected a count"),
    ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of the 32 heads"),
    ({"num_key_value_heads": 64}, "num_key_value_heads is 64, expected a divisor of the 32 heads"),
    ({"attention_bias": "yes"}, "attention_bias is 'yes', expected true or false"),
    ({"tie_word_embeddings": [1]}, "tie_word_embeddings is [1], expected true or false"),
    ({"use_sliding_window": True}, "use_sliding_window is true, but its family is not known to have windows"),
    ({"layer_types": 3}, "layer_types is 3, expected a list with one name per layer"),
    ({"layer_types": [3]}, "layer_types is [3], expected a list with one name per layer"),
    ({"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries, expected 32"),
    ({"architectures": 3}, "architectures is 3, expected a list of class names"),
    ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM', expected a list of class names"),
    ({"model_type": ["llama"]}, "model_type is ['llama'], expected a name"),
    ({"architectures": None, "model_type": None}, "names neither architectures nor model_type"),
    ({"architectures": ["X" * 5000]}, "XX': docs/reference/models.md lists all"),
    ({"num_experts": [0] * 5000}, "num_experts = [0, 0"),
]


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(UserInputError) as caught:
        geometry_from_config(config, "mine")
    return str(caught.value)


def test_an_impossible_value_is_refused_in_one_short_sentence_with_its_key() -> None:
    wrong = []
    for change, expected in WRONG:
        message = refusal(LLAMA_CONFIG | change)
        if expected not in message or len(message) > 300:
            wrong.append(f"{expected}: got {message}")
    assert not wrong, "\n".join(wrong)


def test_a_missing_key_without_a_default_is_named() -> None:
    config = {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "num_attention_heads": 32}
    expected = (
        "model 'mine': its config leaves out hidden_size, for which baichuan has no default. Give the complete config.json"
    )
    message = refusal(config)
    assert message.startswith(expected)
    assert "Correct" not in message


REFUSED = [
    ("MixtralForCausalLM", "mixtral", {"num_local_experts": 8}, "a mixture of experts (num_local_experts = 8)"),
    ("Qwen3MoeForCausalLM", "qwen3_moe", {"num_experts": 128}, "a mixture of experts (num_experts = 128)"),
    ("GptOssForCausalLM", "gpt_oss", {}, "a mixture of experts: the weights"),
    ("DeepseekV3ForCausalLM", "deepseek_v3", {"kv_lora_rank": 512}, "multi-head latent attention (kv_lora_rank = 512)"),
    ("MiniCPM3ForCausalLM", "minicpm3", {}, "multi-head latent attention: the cache holds compressed vectors"),
    ("MambaForCausalLM", "mamba", {"state_size": 16}, "recurrent model, or a hybrid with one (state_size = 16)"),
    ("JambaForCausalLM", "jamba", {}, "a mixture of experts"),
    ("RwkvForCausalLM", "rwkv", {"rescale_every": 6}, "a state-space or recurrent model"),
    ("Zamba2ForCausalLM", "zamba2", {}, "a state-space or recurrent model"),
    ("NemotronHForCausalLM", "nemotron_h", {"hybrid_override_pattern": "M-M*"}, "a state-space or recurrent model"),
    ("Qwen3NextForCausalLM", "qwen3_next", {"full_attention_interval": 4}, "linear attention (full_attention_interval = 4)"),
    ("T5ForConditionalGeneration", "t5", {"is_encoder_decoder": True}, "an encoder-decoder (is_encoder_decoder = true)"),
    ("BartForConditionalGeneration", "bart", {}, "an encoder-decoder"),
    ("MllamaForCausalLM", "mllama", {"cross_attention_layers": [3]}, "cross-attention layers (cross_attention_layers = [3])"),
    ("Phi3SmallForCausalLM", "phi3small", {"blocksparse_block_size": 64}, "block-sparse attention"),
    ("DeciLMForCausalLM", "nemotron-nas", {"block_configs": [{}] * 99}, "layers of different shapes (block_configs = [{}, "),
    ("Gemma3nForCausalLM", "gemma3n_text", {"num_kv_shared_layers": 10}, "layers that share keys and values"),
]  # fmt: skip


def test_an_unsupported_model_is_refused_with_its_feature() -> None:
    wrong = []
    for class_name, model_type, overrides, feature in REFUSED:
        message = refusal(small(class_name, model_type, **overrides))
        if (
            not message.startswith(f"model 'mine': the latency law does not cover {class_name!r}, which has ")
            or feature not in message
            or not message.endswith("Give a dense decoder of a family in docs/reference/models.md.")
            or len(message) > 420
        ):
            wrong.append(f"{feature}: got {message}")
    assert not wrong, "\n".join(wrong)


def test_a_characteristic_key_is_refused_with_any_name_unless_it_is_0() -> None:
    keys = [key for feature in UNSUPPORTED_FEATURES for key in feature.keys]
    for class_name in ("BrandNewForCausalLM", "LlamaForCausalLM"):
        assert not [key for key in keys if f"{key} = 3" not in refusal(small(class_name, "llama", **{key: 3}))]
    unset = small("LlamaForCausalLM", "llama", **dict.fromkeys(keys, 0))
    assert geometry_from_config(unset, "mine").num_layers == 4


def test_no_covered_architecture_is_refused_by_its_name() -> None:
    for row in ARCHITECTURES:
        assert find_architecture({"architectures": [row.class_name], "model_type": row.model_type}, "x") is row
        assert find_architecture({"model_type": row.model_type}, "x") is row


def test_an_unsupported_layer_type_is_refused() -> None:
    config = small("Qwen3ForCausalLM", "qwen3", layer_types=["full_attention", "linear_attention"] * 2)
    with pytest.raises(UserInputError, match="layers of type 'linear_attention': only full and sliding-window"):
        geometry_from_config(config, "mine")


def test_an_unknown_name_is_refused_even_with_the_keys_of_a_llama() -> None:
    with pytest.raises(UnknownName) as caught:
        geometry_from_config(small("Qwen9ForCausalLM", "qwen9"), "mine")
    message = str(caught.value)
    assert message.startswith("unknown architecture 'Qwen9ForCausalLM': did you mean 'Qwen")
    assert f"docs/reference/models.md lists all {len(ARCHITECTURES)}." in message
    assert message.endswith("sizes alone do not show what the layers of 'mine' compute.")
    with pytest.raises(UnknownName):
        geometry_from_config(LLAMA_CONFIG | {"architectures": ["LlamaForSequenceClassification"]}, "mine")


def test_a_config_without_architectures_is_found_by_its_model_type() -> None:
    config = {key: value for key, value in LLAMA_CONFIG.items() if key != "architectures"}
    assert geometry_from_config(config, "mine").num_layers == 32
    with pytest.raises(UnknownName, match="architecture 'falcon'"):
        geometry_from_config(config | {"model_type": "falcon"}, "mine")


def test_a_mixture_of_experts_is_recognised_in_the_text_config() -> None:
    text = small("", "llama4_text", num_local_experts=16) | {"architectures": None}
    with pytest.raises(UserInputError, match=r"'llama4_text', which has a mixture of experts \(num_local_experts = 16\)"):
        geometry_from_config({"architectures": ["Llama4ForConditionalGeneration"], "text_config": text}, "scout")
