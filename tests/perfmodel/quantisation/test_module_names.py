"""Module lists match as in the libraries whose rules they follow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.quantizers.quantizers_utils import should_convert_module

from perfmodel.quantisation.module_names import glob_matcher, layer_names, regex_matcher, transformers_matcher

PARTS = ("model", "layers", "0", "1", "11", "mlp", "gate", "gate_proj", "self_attn", "q_proj", "lm_head", "language_model")
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join)
PATTERNS = NAMES | st.sampled_from(
    ("model.layers.*.self_attn", "layers.1", "re", "gate", r"model\.layers\.(0|11)\.", "mlp.gate")
)


@given(NAMES, st.lists(PATTERNS, max_size=4))
def test_a_module_is_skipped_if_transformers_skips_it(name: str, patterns: list[str]) -> None:
    assert transformers_matcher(patterns)([name]) != should_convert_module(name, patterns)


@pytest.mark.parametrize(
    ("patterns", "name", "is_matched"),
    [
        (["lm_head"], "lm_head", True),
        (["*lm_head"], "lm_head", True),
        (["model.layers.1*"], "model.layers.11.mlp.up_proj", True),
        (["model.layers.1"], "model.layers.11.mlp.up_proj", False),
        (["model.layers.1"], "model.layers.1.mlp.up_proj", True),
        (["model.layers.?.self_attn*"], "model.layers.3.self_attn.q_proj", True),
        ([], "lm_head", False),
    ],
)
def test_a_glob_matches_a_module_or_a_listed_parent(patterns: list[str], name: str, is_matched: bool) -> None:
    assert glob_matcher(patterns)([name]) == is_matched


@pytest.mark.parametrize(
    ("patterns", "name", "is_matched"),
    [
        (["re:.*self_attn.*"], "model.layers.3.self_attn.q_proj", True),
        (["re:self_attn"], "model.layers.3.self_attn.q_proj", False),
        (["model.layers.3.self_attn.q_proj"], "model.layers.3.self_attn.q_proj", True),
        (["Linear", "re:("], "model.layers.3.self_attn.q_proj", False),
    ],
)
def test_a_regex_after_re_matches_from_the_start(patterns: list[str], name: str, is_matched: bool) -> None:
    """An invalid regex is matched literally and raises nothing."""
    assert regex_matcher(patterns)([name]) == is_matched


def test_a_module_matches_by_its_names_in_multimodal_and_fused_checkpoints() -> None:
    names = layer_names(7, "up_proj")
    for listed in ("model.layers.7.mlp.up_proj", "model.language_model.layers.7", "model.layers.7.mlp.gate_up_proj"):
        assert transformers_matcher([listed])(names)
        assert not transformers_matcher([listed])(layer_names(8, "up_proj"))
