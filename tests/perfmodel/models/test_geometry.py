"""Shapes of models and drafts: weights, windows, names, exits, and the devices that can share a model."""

from dataclasses import replace

import pytest

from perfmodel.core.errors import BadPolicy, UnknownName, UserInputError
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry, check_degree, tensor_parallel_degrees
from perfmodel.models.known_models import KNOWN_MODELS


def test_a_known_model_has_the_weights_of_its_checkpoint() -> None:
    checkpoints = {
        "llama-2-7b": 6_738_415_616,
        "llama-2-13b": 13_015_864_320,
        "llama-2-70b": 68_976_648_192,
        "llama-3.1-8b": 8_030_261_248,
        "llama-3.1-70b": 70_553_706_496,
    }
    assert {name: find_model(name).num_params for name in checkpoints} == checkpoints


def test_the_weights_of_a_layer_are_the_sum_over_its_matrices() -> None:
    wrong = [
        model.name
        for model in KNOWN_MODELS
        if model.layer_matrix_params != sum(rows * columns for rows, columns in model.layer_matrices.values())
    ]
    assert not wrong


def test_the_kv_cache_of_a_70b_takes_320_kib_per_token_in_16_bits() -> None:
    assert 2 * find_model("llama-2-70b").kv_values_per_token == 320 * 1024


def test_a_model_is_found_by_alias_by_repository_and_in_any_case() -> None:
    expected = find_model("llama-2-70b")
    assert find_model("llama-70b") == expected
    assert find_model("meta-llama/Llama-2-70b-chat-hf") == expected
    assert find_model("LLAMA-2-70B") == expected


def test_an_unknown_target_gets_near_misses_and_an_alternative() -> None:
    with pytest.raises(UnknownName) as caught:
        find_model("llama-2-71b")
    message = str(caught.value)
    assert message.startswith("unknown target 'llama-2-71b': did you mean 'llama-2-70b', ")
    assert "docs/reference/models.md lists all " in message
    assert message.endswith("Or give a config: --target path/to/config.json, or org/name on the Hugging Face hub.")


def test_a_misspelt_alias_gets_near_misses() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'tinyllama-1\.1b'"):
        find_model("tinylama")
    with pytest.raises(UnknownName, match=r"did you mean .*'qwen3-32b'"):
        find_model("qwen-3-32b")


def test_the_s2d_draft_is_12_vicuna_layers_in_three_segments() -> None:
    draft = find_draft("s2d")
    assert draft.segment_layers == (6, 3, 3)
    assert draft.model.num_params == pytest.approx(2.69e9, rel=1e-3)
    assert draft.model.layer_params == find_model("vicuna-7b").layer_params


def test_an_unknown_draft_gets_the_list_of_known_drafts() -> None:
    with pytest.raises(UnknownName, match="unknown draft 'eagle': expected 's2d-vicuna-12' or 'ref-draft'"):
        find_draft("eagle")


def test_a_self_draft_cannot_exit_at_the_last_layer() -> None:
    with pytest.raises(BadPolicy, match="exits below the target's 32 layers"):
        DraftGeometry(kind="self", model=find_model("llama-2-7b"), exit_layers=(8, 32))


def test_a_windowed_layer_attends_to_at_most_its_window() -> None:
    half_windowed = find_model("gemma-2-2b")
    assert half_windowed.mean_attended_tokens(4096) == 4096
    assert half_windowed.mean_attended_tokens(8192) == (8192 + 4096) / 2
    assert find_model("mistral-7b-v0.1").mean_attended_tokens(32768) == 4096
    assert find_model("llama-2-7b").mean_attended_tokens(4000) == 4000


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("llama-2-70b", (1, 2, 4, 8)),
        ("llama-2-13b", (1, 2, 4, 8)),  # 5 devices could share 40 KV heads, but not 13824 MLP units
        ("phi-4", (1, 2, 5, 10)),
        ("gemma-2b", (1,)),
    ],
)
def test_devices_that_divide_kv_heads_and_mlp_can_share_a_model(name: str, degrees: tuple[int, ...]) -> None:
    model = find_model(name)
    assert tensor_parallel_degrees(model) == degrees
    assert all(model.num_heads % degree == 0 for degree in degrees)
    for degree in degrees:
        check_degree(model, degree, noun="devices", fix="Not shown")


@pytest.mark.parametrize("degree", [-1, 0, 3, 16])
def test_other_numbers_of_devices_are_refused_with_the_numbers_that_work(degree: int) -> None:
    message = (
        f"model llama-2-70b has 8 KV heads, which {degree} devices cannot share evenly: expected 1, 2, 4 or 8. Take fewer."
    )
    with pytest.raises(UserInputError) as caught:
        check_degree(find_model("llama-2-70b"), degree, noun="devices", fix="Take fewer")
    assert str(caught.value) == message


def test_the_mlp_is_named_if_only_the_kv_heads_can_be_shared() -> None:
    narrow = replace(find_model("llama-2-70b"), intermediate_size=28671)
    with pytest.raises(UserInputError, match=r"28671 MLP units, which 2 devices .*: expected 1[.] Take one[.]"):
        check_degree(narrow, 2, noun="devices", fix="Take one")
