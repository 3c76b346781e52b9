"""Plans and designs for drafts whose LM head covers only the most frequent tokens."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.draft_geometries import PARAMS_TOLERANCE
from calibrate.planning.draft_shapes import draft_token_s, shapes_of_size
from calibrate.planning.make_plan import make_plan
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.roofline_law import roofline_law
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry
from perfmodel.passes.latency_law import FIT_FILE, FitDomain, LatencyFit, Law
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.results.plan import PLAN_FILE, Plan
from perfmodel.results.plan_text import draft_label
from tests.calibrate.factories import (
    CPU,
    TARGET,
    TARGET_SHA256,
    draft_profile,
    make_trace,
    provenance,
    target_profile,
    write_profile,
)
from tests.calibrate.planning.test_draft_shapes import SETTING

TOKENS = 8192
REQUEST = PlanRequest(target="llama-70b", device=DeviceRequest(device="a100-80gb"))
LLAMA_3, NUM_PARAMS = replace(SETTING, target=find_model("llama-3.1-70b"), mode="graph"), 1_300_000_000


@pytest.fixture(scope="module")
def whole() -> Plan:
    return make_plan(REQUEST)


@pytest.fixture(scope="module")
def reduced() -> Plan:
    return make_plan(replace(REQUEST, draft_vocab=TOKENS))


def test_the_plan_keeps_the_head_and_states_its_assumption_on_acceptance(whole: Plan, reduced: Plan) -> None:
    assert reduced.draft == replace(whole.draft, model=replace(whole.draft.model, head_vocab_size=TOKENS))
    assert reduced.target == whole.target
    assert reduced.evidence[:-1] == whole.evidence[:-1]
    assumption = "; assumed equal to that of the whole vocabulary, although a head of 8192 tokens cannot draft the others"
    assert reduced.evidence[-1].description == whole.evidence[-1].description + assumption
    assert reduced.evidence[-1].sha256 == whole.evidence[-1].sha256
    shown = " ".join(str(reduced).split())
    assert "2.59 billion weights, exits at 6/9/12, a head of 8192 of 32000 tokens; split over all devices device" in shown
    assert "a head of" not in str(whole)


def test_every_single_exit_becomes_faster_and_plain_decoding_stays(whole: Plan, reduced: Plan) -> None:
    before, after = ({candidate.name: candidate.speedup for candidate in plan.runners_up} for plan in (whole, reduced))
    assert all(after[f"exit {layer}"].speedup.value > before[f"exit {layer}"].speedup.value for layer in (6, 9, 12))
    assert after["plain decoding"] == before["plain decoding"]
    assert reduced.chosen.speedup.speedup.value > whole.chosen.speedup.speedup.value


def test_the_draft_needs_less_memory_by_the_rows_that_its_head_lacks(whole: Plan, reduced: Plan) -> None:
    saved = 2 * (32000 - TOKENS) * 4096
    assert reduced.memory == replace(whole.memory, draft_weight_bytes=whole.memory.draft_weight_bytes - saved)


def test_a_head_of_all_tokens_is_the_whole_head(whole: Plan) -> None:
    assert make_plan(replace(REQUEST, draft_vocab=32000)) == whole


def test_a_plan_file_keeps_the_head(reduced: Plan, tmp_path: Path) -> None:
    PLAN_FILE.write(tmp_path / "plan.json", reduced, provenance())
    assert PLAN_FILE.read(tmp_path / "plan.json").record == reduced


def test_a_draft_with_an_assumed_head_has_no_known_weights(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    request = PlanRequest(trace=tmp_path / "trace.npz", device=DeviceRequest(device="h100"))
    plan = make_plan(replace(request, draft_vocab=512))
    assert plan.draft.model.head_vocab_size == 512
    assert (plan.target_sha256, plan.draft_sha256) == (TARGET_SHA256, None)
    assert TRACE_FILE.read(tmp_path / "trace.npz").record.header.draft.model.head_vocab_size is None


def test_a_self_draft_cannot_have_a_reduced_head(tmp_path: Path) -> None:
    trace = make_trace()
    self_draft = DraftGeometry(kind="self", model=TARGET, exit_layers=(2, 4, 6, 8))
    trace = replace(trace, header=trace.header.with_draft(self_draft, TARGET_SHA256))
    TRACE_FILE.write(tmp_path / "trace.npz", trace, provenance())
    with pytest.raises(UserInputError, match=r"--draft-vocab 512: a self-draft uses the head of its target"):
        make_plan(PlanRequest(trace=tmp_path / "trace.npz", draft_vocab=512))


def test_profiles_of_a_whole_head_are_refused_but_a_fit_prices_the_reduced_one(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    target = write_profile(tmp_path / "target.latency.json", target_profile())
    draft = write_profile(tmp_path / "draft.latency.json", draft_profile())
    fit = tmp_path / "cpu.fit.json"
    FIT_FILE.write(fit, make_fit(), provenance())
    with pytest.raises(UserInputError, match=r"--draft-vocab 512: profiles measure the exit checks of the whole head"):
        PlanRequest(trace=tmp_path / "trace.npz", profiles=(target, draft), draft_vocab=512)
    both = PlanRequest(trace=tmp_path / "trace.npz", profiles=(target, draft), draft_vocab=512, fit=fit)
    with pytest.raises(Mismatch, match=r"for ref-draft with exits 1/2/4/6, not for .* 1/2/4/6, a head of 512 of 2048 tokens"):
        make_plan(both)
    plan = make_plan(replace(both, profiles=(target,)))
    assert plan.draft.model.head_vocab_size == 512
    assert [part.level for part in plan.evidence] == ["fitted", "measured", "traced"]
    assert plan.next_command.startswith("s2d-plan --trace ")  # with the whole head, as s2d-run refuses this plan


def make_fit() -> LatencyFit:
    return LatencyFit(
        device=CPU,
        models=("some",),
        source="made for this test",
        pads_rows=False,
        law=roofline_law(find_hardware("a100"), plain_format("fp32"), "graph", num_devices=1),
        standard_error=Law(**dict.fromkeys(Law.__dataclass_fields__, 0.0)),
        domain=FitDomain(
            min_layer_weight_bytes=1.0, max_layer_weight_bytes=1e9, max_layers=32, max_rows=64, max_cached_tokens=4096
        ),
        num_samples=100,
        residual_frac=0.02,
        held_out_error_frac=0.05,
        held_out_90_frac=0.1,
    )


@pytest.mark.parametrize("tokens", ["0", "-5", "32001"])
@pytest.mark.parametrize(
    "question",
    [
        ["--target", "vicuna-7b", "--device", "h100"],
        ["design", "--target", "vicuna-7b", "--params", "350e6", "--device", "h100"],
    ],
)
def test_a_head_of_an_impossible_size_gets_one_clear_error(
    question: list[str], tokens: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_plan([*question, "--draft-vocab", tokens]) == 2
    captured = capsys.readouterr()
    assert f"--draft-vocab {tokens}: expected from 1 to 32000 tokens, the vocabulary of " in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_the_label_of_a_draft_with_a_whole_head_does_not_name_it() -> None:
    assert draft_label(find_draft("s2d")).endswith("exits at 6/9/12")


def test_a_reduced_head_saves_time_in_proportion_to_its_missing_rows() -> None:
    shape = find_model("noft-1.3b")
    saved_s = [draft_token_s(shape, SETTING) - draft_token_s(replace(shape, head_vocab_size=n), SETTING) for n in (24000, 8000)]
    assert saved_s[0] > 0
    assert saved_s[1] == pytest.approx(3 * saved_s[0])


def test_shapes_of_one_size_keep_it_and_the_fastest_breaks_even_sooner() -> None:
    whole, reduced = shapes_of_size(LLAMA_3, NUM_PARAMS), shapes_of_size(LLAMA_3, NUM_PARAMS, 32000)
    for shape in reduced.shapes:
        assert shape.geometry.num_params == pytest.approx(NUM_PARAMS, rel=PARAMS_TOLERANCE)
        assert (shape.geometry.vocab_size, shape.geometry.head_vocab_size) == (128256, 32000)
    before, after = ({shape.geometry.num_layers: shape for shape in shapes.frontier} for shapes in (whole, reduced))
    for depth in (1, 2, 4, 8, 12):
        assert after[depth].break_even_tokens < before[depth].break_even_tokens
        assert after[depth].geometry.layer_params > before[depth].geometry.layer_params


def test_the_same_layers_with_a_reduced_head_break_even_sooner() -> None:
    whole = next(shape for shape in shapes_of_size(LLAMA_3, NUM_PARAMS).shapes if shape.geometry.num_layers == 8)
    smaller = replace(whole.geometry, head_vocab_size=32000)
    shapes = shapes_of_size(LLAMA_3, smaller.num_params, 32000).shapes
    fastest = min(shape.break_even_tokens for shape in shapes if shape.geometry.num_layers == 8)
    assert fastest < 0.98 * whole.break_even_tokens


def test_the_text_of_draft_shapes_names_a_reduced_head(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["design", "--target", "llama-3.1-70b", "--params", "1.3e9", "--device", "a100-80gb"]
    assert main_plan(question) == 0
    assert "\nhead" not in capsys.readouterr().out
    assert main_plan([*question, "--draft-vocab", "32000"]) == 0
    text = capsys.readouterr().out
    assert "\nhead    32000 of 128256 tokens\n" in text
    assert "The weights saved in the head went into the layers" in " ".join(text.split())
