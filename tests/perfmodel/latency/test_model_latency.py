"""The public `latency` function prices the passes of a model from a datasheet, a fit or a profile."""

from dataclasses import replace
from pathlib import Path

import pytest

from perfmodel.core.errors import BadFile, BadPolicy, OutOfDomain, UnknownName, UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.latency_model import FittedLatency, MeasuredLatency, RooflineLatency
from perfmodel.latency.model_latency import latency
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.latency_law import FIT_FILE
from perfmodel.passes.latency_profile import PROFILE_FILE
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import plain_format
from tests.calibrate.factories import SECONDS, draft_profile, target_profile
from tests.perfmodel.latency.test_latency_model import FIT

LLAMA_7B = find_model("llama-2-7b")
DRAFT = find_draft("s2d-vicuna-12")


def test_a_known_model_is_priced_by_the_roofline_of_its_device() -> None:
    cost = latency("llama-2-7b", device="a100-80gb")
    setting = PassSetting(model=LLAMA_7B, weights=plain_format("bf16"), context_tokens=768)
    roofline = RooflineLatency(setting, find_hardware("a100"), "graph")
    assert cost.verify(rows=6, context=768) == roofline.line("verify", 0, 6).at(768)
    assert cost.bookkeeping(drafted=5) == roofline.line("round", 0, 5).base_s
    assert cost.plain(context=768) == cost.verify(rows=1, context=768) + cost.bookkeeping(drafted=0)
    assert cost.prefill(tokens=512) == roofline.line("target_prefill", 0, 512).base_s
    assert (cost.level, cost.error_frac) == ("roofline", 0.08)


def test_device_dtype_mode_degree_and_batch_are_those_of_the_caller() -> None:
    cost = latency(LLAMA_7B, device=find_hardware("h100"), dtype="int4", mode="eager", num_devices=2, batch=4)
    setting = PassSetting(model=LLAMA_7B, weights=dtype_format("int4", LLAMA_7B), num_devices=2, batch=4, context_tokens=100)
    roofline = RooflineLatency(setting, find_hardware("h100"), "eager")
    assert cost.verify(rows=3, context=100) == roofline.line("verify", 0, 3).at(100)
    assert cost.error_frac == pytest.approx(roofline.step_error_frac)
    assert cost.device.label == "2 x H100-SXM, int4, eager"


def test_a_known_draft_has_its_exits_and_other_exits_may_be_given() -> None:
    cost = latency("s2d-vicuna-12", device="a100")
    setting = PassSetting(model=DRAFT.model, exit_layers=DRAFT.exit_layers, weights=plain_format("bf16"))
    roofline = RooflineLatency(setting, find_hardware("a100"), "graph")
    assert cost.segment(stage=2, rows=3, context=50) == roofline.line("segment", 2, 3).at(50)
    assert cost.exit_check(stage=1) == roofline.line("exit", 1, 1).base_s
    assert cost.prefill(tokens=40, stage=1) == roofline.line("draft_prefill", 1, 40).base_s
    assert latency("s2d-vicuna-12", device="a100", exits=(4, 12)).exits == (4, 12)
    with pytest.raises(BadPolicy, match=r"exits \[9, 6\] of 's2d-vicuna-12': expected layers from 1 to 12, rising"):
        latency("s2d-vicuna-12", device="a100", exits=(9, 6))


def test_a_draft_verifies_nothing_and_a_self_draft_above_its_last_exit() -> None:
    with pytest.raises(
        UserInputError, match="'s2d-vicuna-12' has its last exit at its last layer: it drafts, and verifies nothing"
    ):
        latency("s2d-vicuna-12", device="a100").verify(rows=5, context=0)
    whole, above = latency("llama-2-7b", device="a100"), latency("llama-2-7b", device="a100", exits=(8,))
    assert above.verify(rows=5, context=0) < 0.8 * whole.verify(rows=5, context=0)


def test_a_model_with_windows_is_priced_at_each_context() -> None:
    gemma = latency("gemma-2-9b", device="h100")
    steps = [gemma.plain(context=context) for context in (0, 4096, 8192)]
    assert steps[2] - steps[1] == pytest.approx((steps[1] - steps[0]) / 2)  # half of its layers see 4,096 tokens


def test_a_profile_prices_what_was_measured(tmp_path: Path) -> None:
    for profile in (target_profile(), draft_profile()):
        PROFILE_FILE.write(tmp_path / "any.latency.json", profile, make_provenance(argv=("test",)))
        for model in (profile, tmp_path / "any.latency.json", str(tmp_path / "any.latency.json")):
            cost = latency(model)
            assert (cost.level, cost.error_frac) == ("measured", MeasuredLatency(profile).error_frac)
            assert (cost.device, cost.exits) == (profile.device, profile.exit_layers)
    assert latency(target_profile()).verify(rows=4, context=10) == pytest.approx(SECONDS["verify"])
    assert latency(draft_profile()).segment(context=10) == pytest.approx(SECONDS["segment"])
    with pytest.raises(OutOfDomain, match="rows of a verify pass"):
        latency(draft_profile()).plain(context=10)


def test_a_fit_prices_other_models_on_its_device(tmp_path: Path) -> None:
    FIT_FILE.write(tmp_path / "fit.json", FIT, make_provenance(argv=("test",)))
    for fit in (FIT, tmp_path / "fit.json", str(tmp_path / "fit.json")):
        cost = latency("llama-2-7b", fit=fit)
        fitted = FittedLatency(FIT, LLAMA_7B, context_tokens=200)
        assert cost.verify(rows=4, context=200) == fitted.line("verify", 0, 4).at(200)
        assert (cost.level, cost.error_frac, cost.device) == ("fitted", FIT.error_frac, FIT.device)
    assert latency("llama-2-70b", fit=FIT).level == "extrapolated"


def test_arguments_that_the_evidence_fixes_are_refused() -> None:
    with pytest.raises(
        UserInputError, match=r"a latency profile has its own device and setting: leave out device=, num_devices=\."
    ):
        latency(target_profile(), device="a100", num_devices=2)
    with pytest.raises(UserInputError, match=r"a fit has its own device and setting: leave out dtype=, batch=\."):
        latency("llama-2-7b", fit=FIT, dtype="bf16", batch=2)


def test_wrong_arguments_are_refused_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no device for 'llama-2-7b': expected device='a100-80gb'"):
        latency("llama-2-7b")
    with pytest.raises(UserInputError, match="T4 does not compute in bf16"):
        latency("llama-2-7b", device="t4", dtype="bf16")
    with pytest.raises(UserInputError, match="32 KV heads, which 3 devices cannot share evenly: expected 1, 2, 4 or 8"):
        latency("llama-2-7b", device="a100", num_devices=3)
    with pytest.raises(OutOfDomain, match="num_devices of GH200-96GB = 4"):
        latency("llama-2-7b", device="gh200", num_devices=4)
    with pytest.raises(UnknownName, match="unknown target 'llama-7b0'"):
        latency("llama-7b0", device="a100")
    with pytest.raises(UnknownName, match="unknown device 'b100'"):
        latency("llama-2-7b", device="b100")
    with pytest.raises(BadFile, match="no such file"):
        latency(tmp_path / "missing.latency.json")
    cost = latency("llama-2-7b", device="a100")
    for rows, context in ((0, 0), (1, -1)):
        with pytest.raises(UserInputError, match="expected at least 1 row and 0 cached tokens"):
            cost.verify(rows=rows, context=context)


def test_a_latency_prints_its_model_device_evidence_and_a_few_prices() -> None:
    assert str(latency("llama-2-7b", device="a100-80gb")).splitlines() == [
        "model   llama-2-7b, 32 layers, weights of 13.5 GB",
        "device  1 x A100-80GB-SXM, bf16, graph",
        "level   roofline: A100-80GB-SXM datasheet, published kernel times, ± 8.0 % (one standard deviation)",
        "",
        "pass                    0 cached tokens  1000 cached tokens",
        "----------------------  ---------------  ------------------",
        "step of plain decoding          10.1 ms             10.4 ms",
        "verify, 5 rows                  10.0 ms             10.4 ms",
    ]
    draft = str(latency(replace(draft_profile()))).splitlines()
    assert "level   measured: " in draft[2]
    assert [line.split("  ")[0] for line in draft[6:]] == [
        *(f"segment {stage + 1}, 1 row" for stage in range(len(draft_profile().exit_layers))),
        "exit check",
    ]
    assert "llama-2-7b, 32 layers" in latency("llama-2-7b", device="a100")._repr_html_()
