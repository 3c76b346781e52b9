"""Configs of model folders: the shapes read from them, and the models refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from perfmodel.core.errors import BadFile, UserInputError
from perfmodel.models.find_model import find_model
from perfmodel.models.model_config import geometry_from_config
from s2d.loading.load_model import load_model
from s2d.loading.read_config import read_config, read_geometry
from s2d.training.train_sorted import load_trainable
from tests.s2d.loading.test_families import SPECS
from tests.stubs import TinySpec, tiny_llama


@pytest.mark.parametrize("unused", [{"use_sliding_window": False, "sliding_window": 8}, {"sliding_window": 8}])
def test_an_unused_window_does_not_limit_the_context(tmp_path: Path, unused: dict[str, object]) -> None:
    tiny_llama(TinySpec(family="qwen2")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | unused))
    assert read_geometry(tmp_path).full_attention_tokens == 160


@pytest.mark.parametrize("name", SPECS)
def test_the_runtime_reads_the_shapes_that_a_plan_reads(tmp_path: Path, name: str) -> None:
    model = tiny_llama(SPECS[name])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    geometry = read_geometry(tmp_path)
    assert geometry == geometry_from_config(config, tmp_path.name, "its config.json")
    assert geometry.num_params == model.num_parameters()


LLAMA_2 = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
QWEN_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
PUBLISHED: dict[str, dict[str, object]] = {
    "vicuna-7b": {
        **LLAMA_2,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
        "vocab_size": 32000,
    },
    "mistral-7b-v0.1": {
        **LLAMA_2,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 8,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 32000,
    },
    "qwen2.5-7b": {
        **QWEN_7B,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_key_value_heads": 4,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_give_the_shapes_of_the_table_of_known_models(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    geometry = read_geometry(tmp_path)
    assert replace(geometry, name="", source="") == replace(find_model(name), name="", source="")
    assert read_config(tmp_path).rope_parameters["rope_type"] == {"v": "linear", "m": "default", "q": "yarn"}[name[0]]


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "mixtral": (
        {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8},
        r"'MixtralForCausalLM' is not supported because of a mixture of experts \(num_local_experts = 8\)",
    ),
    "deepseek": (
        {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "kv_lora_rank": 512, "auto_map": {"a": "b"}},
        "'DeepseekV3ForCausalLM' is not supported because of a mixture of experts.*multi-head latent attention",
    ),
    "mamba": (
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 16},
        "'MambaForCausalLM' is not supported because of a state-space",
    ),
    "gemma": ({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}, r"'Gemma2ForCausalLM' \(model_type 'gemma2'\)"),
    "phi": ({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}, "'Phi3ForCausalLM'"),
    "gpt-2": ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "'GPT2LMHeadModel'"),
    "opt": ({"architectures": ["OPTForCausalLM"], "model_type": "opt"}, "'OPTForCausalLM'"),
    "an unnamed kind": ({"architectures": None, "model_type": "brand-new"}, "'brand-new'"),
    "of no type": ({"architectures": None, "model_type": None}, "names neither architectures nor model_type"),
    "experts in a llama": (
        {"num_experts": 4},
        r"'LlamaForCausalLM' is not supported because of .* experts \(num_experts = 4\)",
    ),
    "a llama of another type": ({"model_type": "mistral"}, r"'LlamaForCausalLM' \(model_type 'mistral'\) is not supported"),
    "an EAGLE-3 head": ({"draft_vocab_size": 32000}, r"is an EAGLE-3 head \(draft_vocab_size = 32000\), which reads"),
    "kv heads that do not share": ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of the 2 heads"),
    "layer types that are none": ({"layer_types": 3}, "layer_types is 3, expected a list"),
    "a type that is none": ({"model_type": []}, r"model_type is \[\], expected a name"),
    "a huge size": ({"num_hidden_layers": 10**30}, "num_hidden_layers is 10{30}, expected a count from 1"),
    "a classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "'LlamaForSequenceClassification'"),
    "code of its own": (
        {"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}},
        r"'LlamaForCausalLM' brings its own code \(auto_map\), which s2d never runs",
    ),
    "quantised": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        r"stored quantised \(gptq, by quantization_config of its config",
    ),
    "quantised by MLX": ({"quantization": {"bits": 4, "group_size": 64}}, r"stored quantised \(mlx, by quantization of its"),
    "quantised by nobody": (
        {"quantization_config": {"bits": 4}},
        r"stored quantised \(an unnamed method, by quantization_config",
    ),
    "quantised in a text": ({"quantization_config": "int8"}, "declares quantised weights in an unknown way"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu', expected 'silu'"),
    "other positions": (
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
        "rotary positions .*'longrope'.*expected one of the types default, linear, dynamic, yarn, llama3",
    ),
    "positions without a factor": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "transformers accepts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_models_are_refused_by_name(tmp_path: Path, name: str) -> None:
    tiny_llama(TinySpec()).save_pretrained(tmp_path)
    change, message = REFUSED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserInputError, match=message) as caught:
        load_model(tmp_path, "fp32")
    assert str(path) in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}',
            r"\(modelopt, by hf_quant_config.json next to",
        ),
        ("{", "hf_quant_config.json': this is not a readable config"),
    ],
)
def test_quantisation_in_a_file_beside_the_config_is_refused_before_weights(tmp_path: Path, text: str, message: str) -> None:
    """The folder has no weights."""
    tiny_llama(TinySpec()).save_pretrained(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    (tmp_path / "hf_quant_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadFile, match=message):
        load_model(tmp_path, "fp32")


def test_code_in_a_model_folder_never_runs(tmp_path: Path) -> None:
    tiny_llama(TinySpec()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('this ran')")
    for load in (lambda: load_model(tmp_path, "fp32"), lambda: load_trainable(str(tmp_path))):
        with pytest.raises(BadFile, match="never runs"):
            load()


def test_weights_with_other_shapes_than_the_config_are_refused(tmp_path: Path) -> None:
    tiny_llama(TinySpec(family="qwen3")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 40}))
    with pytest.raises(
        UserInputError, match=r"'model.embed_tokens.weight' .* has shape \[23, 32\], expected \[40, 32\] from config"
    ):
        load_model(tmp_path, "fp32")


def test_a_missing_shard_and_a_damaged_index_are_named(tmp_path: Path) -> None:
    tiny_llama(TinySpec(family="qwen2")).save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(BadFile, match=r"model-00002-of-\d+\.safetensors': there is no such file"):
        load_model(tmp_path, "fp32")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadFile, match="not a readable index"):
        load_model(tmp_path, "fp32")
