"""Depth for width: what "Decoding Speculative Decoding" (arXiv 2402.01528) found, told by the law."""

from dataclasses import replace

import numpy as np
import pytest

from calibrate.cli import main_plan
from calibrate.design import PARAMS_TOLERANCE, DesignRequest, designs, draft_token_s
from perfmodel.geometry import find_model
from perfmodel.hardware import find_hardware
from perfmodel.profile import EngineMode
from perfmodel.weight_format import plain_format
from perfmodel.work import kv_bytes_per_token

REQUEST = DesignRequest(
    target=find_model("llama-2-70b"),
    num_params=350_000_000,
    draft_vocab=None,
    hardware=find_hardware("a100-80gb"),
    num_devices=2,
    dtype="fp16",
    engine="eager",
    context_tokens=768,
    draft_tokens=5,
)
DEEP, WIDE = find_model("noft-1.3b"), find_model("noft-wide-1.3b")


def test_the_wide_draft_keeps_37_percent_less_cache_per_token() -> None:
    assert (DEEP.num_layers, DEEP.hidden_size, DEEP.intermediate_size, DEEP.num_heads) == (24, 2048, 5504, 16)
    assert (WIDE.num_layers, WIDE.hidden_size, WIDE.intermediate_size, WIDE.num_heads) == (12, 2560, 9280, 20)
    assert kv_bytes_per_token(WIDE, plain_format("fp16")) / kv_bytes_per_token(DEEP, plain_format("fp16")) == pytest.approx(
        0.625
    )


@pytest.mark.parametrize(("engine", "low", "high"), [("eager", 1.9, 2.05), ("graph", 1.15, 1.35)])
def test_half_the_layers_halve_the_latency_where_launches_bound_it_and_only_save_floors_where_bytes_do(
    engine: EngineMode, low: float, high: float
) -> None:
    deep_s, wide_s = (draft_token_s(model, replace(REQUEST, engine=engine)) for model in (DEEP, WIDE))
    assert low < deep_s / wide_s < high


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_latency_is_linear_in_depth_at_a_fixed_size(engine: EngineMode) -> None:
    frontier = [one for one in designs(replace(REQUEST, engine=engine)) if one.is_frontier]
    depths = np.array([one.geometry.num_layers for one in frontier], float)
    seconds = np.array([one.token_s for one in frontier])
    deep = depths >= 6  # a shallower one is so wide that its head counts
    slope, start = np.polyfit(depths[deep], seconds[deep], 1)
    assert slope > 0
    assert np.abs((start + slope * depths[deep]) / seconds[deep] - 1).max() < 0.02


def test_every_design_has_the_size_asked_for_and_the_target_s_vocabulary() -> None:
    found = designs(REQUEST)
    assert len({one.geometry.num_layers for one in found}) >= 12
    for one in found:
        assert one.geometry.num_params == pytest.approx(REQUEST.num_params, rel=PARAMS_TOLERANCE)
        assert one.geometry.vocab_size == REQUEST.target.vocab_size
        assert one.geometry.num_heads * one.geometry.head_dim == one.geometry.hidden_size


def test_break_evens_are_ratios_of_rounds() -> None:
    found = designs(REQUEST)
    assert [one.token_s for one in found] == sorted(one.token_s for one in found)
    assert found[0].over_fastest == 1.0
    for one in found:
        assert one.over_fastest == pytest.approx(one.break_even_tokens / found[0].break_even_tokens)
        assert one.break_even_tokens > 1


def test_the_command_prints_the_frontier(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["design", "--target", "llama-2-70b", "--params", "350e6", "--device", "a100-80gb"]) == 0
    text = capsys.readouterr().out
    assert "2 x A100-80GB-SXM, bf16, graph" in text
    assert "Choose the shallowest shape" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--params", "1000"], "no draft with llama-2-7b's 32000 tokens"),
        (["--params", "0"], "--params 0: expected a number of weights"),
        (["--params", "1e9", "--draft-tokens", "0"], "--draft-tokens 0: expected at least 1"),
        (["--params", "1e9", "--device", "a1000"], "did you mean"),
    ],
)
def test_a_wrong_call_gets_one_clear_error(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["design", "--target", "llama-2-7b", *flags]) == 2
    assert message in capsys.readouterr().err
