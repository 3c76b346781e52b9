"""Depth for width: the latency law has the findings of "Decoding Speculative Decoding" (arXiv 2402.01528)."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.planning.draft_geometries import PARAMS_TOLERANCE
from calibrate.planning.draft_shapes import (
    DraftSetting,
    draft_lengths,
    draft_shapes,
    draft_token_s,
    plain_token_s,
    priced_lengths,
    shapes_of_size,
)
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.flops_bytes import PassSetting, kv_bytes_per_token
from perfmodel.passes.passes import PassKind
from perfmodel.quantisation.weight_format import plain_format

NUM_PARAMS = 350_000_000
SETTING = DraftSetting(
    target=find_model("llama-2-70b"),
    hardware=find_hardware("a100-80gb"),
    num_devices=2,
    dtype="fp16",
    mode="eager",
    context_tokens=768,
)


def draft_of(model: ModelGeometry) -> DraftGeometry:
    return DraftGeometry(model=model, exit_layers=(model.num_layers,), kind="separate")


DEEP, WIDE = find_model("noft-1.3b"), find_model("noft-wide-1.3b")


def test_the_wide_draft_keeps_37_percent_less_cache_per_token() -> None:
    assert (DEEP.num_layers, DEEP.hidden_size, DEEP.intermediate_size, DEEP.num_heads) == (24, 2048, 5504, 16)
    assert (WIDE.num_layers, WIDE.hidden_size, WIDE.intermediate_size, WIDE.num_heads) == (12, 2560, 9280, 20)
    assert kv_bytes_per_token(WIDE, plain_format("fp16")) / kv_bytes_per_token(DEEP, plain_format("fp16")) == pytest.approx(
        0.625
    )


@pytest.mark.parametrize(("mode", "low", "high"), [("eager", 1.9, 2.05), ("graph", 1.15, 1.35)])
def test_half_the_layers_halve_a_latency_of_launches_and_save_only_the_overhead_of_one_of_bytes(
    mode: LaunchMode, low: float, high: float
) -> None:
    deep_s, wide_s = (draft_token_s(model, replace(SETTING, mode=mode)) for model in (DEEP, WIDE))
    assert low < deep_s / wide_s < high


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_latency_is_linear_in_depth_at_a_fixed_size(mode: LaunchMode) -> None:
    frontier = shapes_of_size(replace(SETTING, mode=mode), NUM_PARAMS).frontier
    depths = np.array([shape.geometry.num_layers for shape in frontier], float)
    seconds = np.array([shape.token_s for shape in frontier])
    deep = depths >= 6  # a shallower draft is so wide that its head counts
    slope, start = np.polyfit(depths[deep], seconds[deep], 1)
    assert slope > 0
    assert np.abs((start + slope * depths[deep]) / seconds[deep] - 1).max() < 0.02


def test_every_shape_has_the_requested_size_and_the_targets_vocabulary() -> None:
    shapes = shapes_of_size(SETTING, NUM_PARAMS).shapes
    assert len({shape.geometry.num_layers for shape in shapes}) >= 12
    for shape in shapes:
        assert shape.geometry.num_params == pytest.approx(NUM_PARAMS, rel=PARAMS_TOLERANCE)
        assert shape.geometry.vocab_size == SETTING.target.vocab_size
        assert shape.geometry.num_heads * shape.geometry.head_dim == shape.geometry.hidden_size


def test_break_evens_are_ratios_of_rounds() -> None:
    shapes = shapes_of_size(SETTING, NUM_PARAMS).shapes
    assert [shape.token_s for shape in shapes] == sorted(shape.token_s for shape in shapes)
    assert shapes[0].over_fastest == 1.0
    for shape in shapes:
        assert shape.over_fastest == pytest.approx(shape.break_even_tokens / shapes[0].break_even_tokens)
        assert shape.break_even_tokens > 1


def test_the_command_prints_the_frontier(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["design", "--target", "llama-2-70b", "--params", "350e6", "--device", "a100-80gb"]) == 0
    text = capsys.readouterr().out
    assert "2 x A100-80GB-SXM, bf16, graph" in text
    assert "Choose the shallowest shape" in " ".join(text.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--params", "1000"], "no draft with llama-2-7b's 32000 tokens"),
        (["--params", "0"], "--params 0: expected a number of weights"),
        (["--params", "1e9", "--draft-tokens", "0"], "--draft-tokens 0: expected at least 1"),
        (["--params", "1e9", "--device", "a1000"], "did you mean"),
        (["--draft", "no-such-draft"], "unknown target 'no-such-draft'"),
        (["--draft", "llama-160m", "--params", "1e9"], "not allowed with"),
        ([], "one of the arguments --params --draft is required"),
    ],
)
def test_a_wrong_call_gets_one_clear_error(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["design", "--target", "llama-2-7b", *flags]) == 2
    assert message in capsys.readouterr().err


LAUNCH_BOUND = replace(SETTING, target=find_model("smollm2-1.7b"), num_devices=1, mode="eager")
"""24 layers, each as long as its launches: a draft of 30 layers takes 30 / 24 of the target's step for every token."""


@pytest.mark.parametrize(("drafted", "by_hand"), [(1, 1 + 30 / 24), (3, 1 + 3 * 30 / 24), (5, 1 + 5 * 30 / 24)])
def test_a_draft_deeper_than_its_target_cannot_pay_if_launches_dominate(drafted: int, by_hand: float) -> None:
    [length] = priced_lengths(draft_of(find_model("smollm2-135m")), LAUNCH_BOUND, [drafted]).lengths
    assert length.break_even_tokens == pytest.approx(by_hand, rel=0.05)
    assert by_hand > drafted + 1
    assert not length.can_pay


@pytest.mark.parametrize("drafted", [1, 3, 5, 12])
def test_a_round_takes_its_drafted_tokens_and_one_verification(drafted: int) -> None:
    setting, draft = replace(SETTING, mode="graph"), find_model("llama-160m")
    passes = PassSetting(model=setting.target, weights=plain_format("fp16"), num_devices=2, context_tokens=768)
    target = RooflineLatency(passes, setting.hardware, "graph")

    def pass_s(kind: PassKind, rows: int) -> float:
        return target.line(kind, 0, rows).at(768)

    plain_s = pass_s("verify", 1) + pass_s("round", 0)
    whole_s = drafted * draft_token_s(draft, setting) + pass_s("verify", drafted + 1) + pass_s("round", drafted)
    [length] = priced_lengths(draft_of(draft), setting, [drafted]).lengths
    assert plain_token_s(setting) == pytest.approx(plain_s)
    assert length.round_s == pytest.approx(whole_s)
    assert length.break_even_tokens == pytest.approx(whole_s / plain_s)
    assert length.can_pay == (whole_s / plain_s < drafted + 1)


def test_a_shape_can_pay_if_a_round_yields_more_than_its_break_even() -> None:
    shapes = shapes_of_size(LAUNCH_BOUND, 300_000_000).shapes
    assert {shape.can_pay for shape in shapes} == {True, False}
    assert all(shape.can_pay == (shape.break_even_tokens < 6) for shape in shapes)


SMOL = ("--target", "smollm2-1.7b", "--mode", "eager", "--device", "a100-80gb")


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (
            ("--params", "300e6"),
            ("impossible (at most 6)", "32 layers and more cannot pay with 5 drafted tokens: a round yields"),
        ),
        (("--params", "300e6", "--draft-tokens", "1"), ("impossible (at most 2)", "cannot pay with 1 drafted token:")),
        (("--params", "1.6e9", "--draft-tokens", "12"), ("impossible (at most 13)",)),
        (
            ("--draft", "smollm2-135m"),
            ("impossible (at most 6)", "impossible (at most 13)", "This draft cannot pay at 1, 2, 3"),
        ),
        (("--draft", "smollm2-135m", "--draft-tokens", "5"), ("impossible (at most 6)", "cannot pay at 5 drafted tokens")),
        (("--draft", "llama-68m"), ("2 layers", "the draft's vocabulary has 32000 tokens, the target's 49152")),
        (("--draft", "s2d-vicuna-12"), ("12 layers", "per token on one device")),
    ],
)
def test_an_impossible_break_even_is_shown_as_impossible(
    flags: tuple[str, ...], shown: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_plan(["design", *SMOL, *flags]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(part in text for part in shown), text
    assert re.search(r"plain [\d.]+ tokens/s, [\d.]+ ms per token", text)


def test_notes_name_what_keeps_a_draft_from_running_with_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    def notes(target: str, *flags: str) -> list[str]:
        assert main_plan(["design", "--target", target, *flags]) == 0
        return re.findall(r"note +(.*?)(?= note |$)", " ".join(capsys.readouterr().out.partition("\n\n")[0].split()))

    assert notes("llama-3.1-8b", "--draft", "llama-3.2-1b", "--device", "rtx4090") == []
    assert notes("llama-3.1-8b", "--draft", "llama-3.1-70b", "--device", "rtx4090") == [
        "the draft is not smaller than its target",
        "the draft and its share of the target take 158 GB, and one RTX-4090 holds 24.0 GB. Give more --num-devices, a larger "
        "--device or a smaller --dtype",
    ]
    assert notes("llama-3.1-8b", "--draft", "qwen3-0.6b", "--context-tokens", "40960") == [
        "the draft's vocabulary has 151936 tokens, the target's 128256. A draft needs the target's tokenizer; only unused rows "
        "may differ",
        "the draft's context ends at 40960 tokens",
    ]
    assert main_plan(["design", "--target", "llama-3.1-8b", "--draft", "llama-3.2-1b", "--draft-tokens", "131000"]) == 2
    assert capsys.readouterr().err == (
        "s2d-plan: --context-tokens 768 and 131000 drafted tokens: expected at most the 131072 tokens of context of "
        "llama-3.1-8b. Give fewer.\n"
    )


def test_a_quantised_draft_is_priced_as_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    seconds = {}
    for name, more in (("plain", {}), ("awq", {"quantization_config": {"quant_method": "awq", "bits": 4}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **more}), encoding="utf-8")
        assert main_plan(["design", "--target", "llama-3.1-70b", "--draft", str(tmp_path / name), "--device", "h100"]) == 0
        text = capsys.readouterr().out
        assert ("weights AWQ int4, groups of 128, 4.16 bits; head 16 bits" in " ".join(text.split())) == (name == "awq")
        seconds[name] = float(re.findall(r"([\d.]+) ms per token on one device", " ".join(text.split()))[0])
    assert seconds["awq"] < 0.85 * seconds["plain"]


def test_the_advice_for_a_size_that_cannot_pay_names_no_shape() -> None:
    shapes = shapes_of_size(LAUNCH_BOUND, 300_000_000)
    cannot_pay = replace(shapes, shapes=tuple(shape for shape in shapes.shapes if shape.is_frontier and not shape.can_pay))
    text = " ".join(str(cannot_pay).split())
    assert (
        "No shape of this size can pay with 5 drafted tokens: a round yields at most 6 tokens. Give a smaller --params." in text
    )


def test_the_public_functions_answer_as_the_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    device = ["--device", "h100", "--dtype", "fp16"]
    shapes = draft_shapes("llama-2-70b", params=1.3e9, device="h100", dtype="fp16")
    assert main_plan(["design", "--target", "llama-2-70b", "--params", "1.3e9", *device]) == 0
    assert capsys.readouterr().out == f"{shapes}\n"
    assert draft_shapes(find_model("llama-2-70b"), params=1.3e9, device="h100", dtype="fp16") == shapes
    lengths = draft_lengths("llama-2-70b", draft="llama-160m", lengths=[4], device="h100", dtype="fp16")
    assert main_plan(["design", "--target", "llama-2-70b", "--draft", "llama-160m", "--draft-tokens", "4", *device]) == 0
    assert capsys.readouterr().out == f"{lengths}\n"
