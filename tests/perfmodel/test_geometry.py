import pytest

from perfmodel.errors import BadPolicy, UnknownName, UserInputError
from perfmodel.geometry import (
    ALIASES,
    KNOWN_DRAFTS,
    KNOWN_MODELS,
    DraftGeometry,
    find_draft,
    find_model,
    geometry_from_config,
)

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


@pytest.mark.parametrize(
    ("name", "num_params"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_a_known_model_has_as_many_weights_as_its_checkpoint(name: str, num_params: int) -> None:
    assert find_model(name).num_params == num_params


def test_a_70b_cache_takes_320_kib_per_token_in_16_bit() -> None:
    assert 2 * find_model("llama-2-70b").kv_values_per_token == 320 * 1024


def test_a_name_is_found_by_alias_repository_and_any_case() -> None:
    expected = find_model("llama-2-70b")
    assert find_model("llama-70b") == expected
    assert find_model("meta-llama/Llama-2-70b-chat-hf") == expected
    assert find_model("LLAMA-2-70B") == expected


def test_every_alias_leads_to_something_known() -> None:
    known = {model.name for model in KNOWN_MODELS} | {draft.model.name for draft in KNOWN_DRAFTS}
    assert set(ALIASES.values()) <= known
    assert not set(ALIASES) & known


def test_every_known_model_names_its_source() -> None:
    assert all(model.source for model in (*KNOWN_MODELS, *(draft.model for draft in KNOWN_DRAFTS)))


def test_an_unknown_target_is_answered_with_near_misses_and_a_way_out() -> None:
    with pytest.raises(UnknownName) as caught:
        find_model("llama-2-71b")
    message = str(caught.value)
    assert message.startswith("unknown target 'llama-2-71b': known are llama-2-7b, llama-2-13b")
    assert "Did you mean 'llama-2-7" in message
    assert message.endswith("Or give a config: --target path/to/config.json.")


def test_the_s2d_draft_is_12_vicuna_layers_in_three_segments() -> None:
    draft = find_draft("s2d")
    assert draft.segment_layers == (6, 3, 3)
    assert draft.model.num_params == pytest.approx(2.69e9, rel=1e-3)
    assert draft.model.layer_params == find_model("vicuna-7b").layer_params


def test_an_unknown_draft_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="unknown draft 'eagle': known are s2d-vicuna-12, ref-draft"):
        find_draft("eagle")


def test_a_self_draft_may_not_exit_at_its_last_layer() -> None:
    with pytest.raises(BadPolicy, match="exits below the target's 32 layers"):
        DraftGeometry(kind="self", model=find_model("llama-2-7b"), exit_layers=(8, 32))


def test_a_config_gives_the_geometry_of_the_table() -> None:
    known, read = find_model("llama-3.1-8b"), geometry_from_config(LLAMA_CONFIG, "mine")
    assert read.num_params == known.num_params
    assert read.kv_values_per_token == known.kv_values_per_token
    assert (read.name, read.max_context_tokens) == ("mine", 131072)


def test_what_an_old_config_leaves_out_has_the_meaning_of_transformers() -> None:
    left_out = {"num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings", "rope_scaling"}
    read = geometry_from_config({key: value for key, value in LLAMA_CONFIG.items() if key not in left_out}, "old")
    assert (read.num_kv_heads, read.head_dim, read.tied_embeddings, read.max_context_tokens) == (32, 128, False, 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "architecture 'Qwen2ForCausalLM', expected 'LlamaForCausalLM'"),
        ({"attention_bias": True}, "attention_bias is true, expected false"),
        ({"hidden_size": None}, "hidden_size is None, expected a count of at least 1"),
        ({"vocab_size": "32000"}, "vocab_size is '32000', expected a count"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected a count"),
    ],
)
def test_a_config_of_something_else_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        geometry_from_config(LLAMA_CONFIG | change, "mine")


def test_a_config_without_architectures_goes_by_its_model_type() -> None:
    config = {key: value for key, value in LLAMA_CONFIG.items() if key != "architectures"}
    assert geometry_from_config(config, "mine").num_layers == 32
    with pytest.raises(UserInputError, match="architecture 'mistral'"):
        geometry_from_config(config | {"model_type": "mistral"}, "mine")
