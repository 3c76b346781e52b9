"""Plans and designs for drafts whose LM head covers only the most frequent tokens."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.planning.draft_shapes import PARAMS_TOLERANCE, draft_shapes, draft_token_s
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
from tests.calibrate.planning.test_draft_shapes import REQUEST as DESIGN
from tests.calibrate.planning.test_make_plan import ANY_DEVICE, NOTHING_ASKED

TOKENS = 8192
ASKED = replace(NOTHING_ASKED, target="llama-70b", device=replace(ANY_DEVICE, device="a100-80gb"))
LLAMA_3 = replace(DESIGN, target=find_model("llama-3.1-70b"), num_params=1_300_000_000, engine="graph")


@pytest.fixture(scope="module")
def whole() -> Plan:
    return make_plan(ASKED)


@pytest.fixture(scope="module")
def reduced() -> Plan:
    return make_plan(replace(ASKED, draft_vocab=TOKENS))


def test_the_plan_carries_the_head_and_says_what_it_assumes_of_acceptance(whole: Plan, reduced: Plan) -> None:
    assert reduced.draft == replace(whole.draft, model=replace(whole.draft.model, head_vocab_size=TOKENS))
    assert reduced.target == whole.target
    assert reduced.evidence[:-1] == whole.evidence[:-1]
    said = "; assumed to be that of the whole vocabulary, though a head of 8192 tokens cannot say the rest"
    assert reduced.evidence[-1].description == whole.evidence[-1].description + said
    assert reduced.evidence[-1].sha256 == whole.evidence[-1].sha256
    shown = " ".join(str(reduced).split())
    assert "2.59 billion weights, exits at 6/9/12, a head of 8192 of 32000 tokens; split over all devices device" in shown
    assert "a head of" not in str(whole)


def test_every_single_exit_becomes_faster_and_plain_decoding_stays(whole: Plan, reduced: Plan) -> None:
    before, after = ({one.name: one.speedup for one in plan.runners_up} for plan in (whole, reduced))
    assert all(after[f"exit {layer}"].speedup.value > before[f"exit {layer}"].speedup.value for layer in (6, 9, 12))
    assert after["plain decoding"] == before["plain decoding"]
    assert reduced.chosen.speedup.speedup.value > whole.chosen.speedup.speedup.value


def test_the_draft_weighs_less_by_the_rows_it_lacks(whole: Plan, reduced: Plan) -> None:
    saved = 2 * (32000 - TOKENS) * 4096
    assert reduced.memory == replace(whole.memory, draft_weight_bytes=whole.memory.draft_weight_bytes - saved)


def test_all_tokens_are_no_other_question(whole: Plan) -> None:
    assert make_plan(replace(ASKED, draft_vocab=32000)) == whole


def test_a_plan_file_keeps_the_head(reduced: Plan, tmp_path: Path) -> None:
    PLAN_FILE.write(tmp_path / "plan.json", reduced, provenance())
    assert PLAN_FILE.read(tmp_path / "plan.json").record == reduced


def test_the_draft_of_a_trace_with_weights_is_another_once_its_head_is_reduced(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    asked = replace(NOTHING_ASKED, trace=tmp_path / "trace.npz", device=replace(ANY_DEVICE, device="h100"))
    plan = make_plan(replace(asked, draft_vocab=512))
    assert plan.draft.model.head_vocab_size == 512
    assert (plan.target_sha256, plan.draft_sha256) == (TARGET_SHA256, None)
    assert TRACE_FILE.read(tmp_path / "trace.npz").record.header.draft.model.head_vocab_size is None


def test_a_self_draft_has_its_targets_head(tmp_path: Path) -> None:
    trace = make_trace()
    own = DraftGeometry(kind="self", model=TARGET, exit_layers=(2, 4, 6, 8))
    trace = replace(trace, header=trace.header.with_draft(own, TARGET_SHA256))
    TRACE_FILE.write(tmp_path / "trace.npz", trace, provenance())
    with pytest.raises(UserInputError, match=r"--draft-vocab 512: a self-draft answers through the head of its target"):
        make_plan(replace(NOTHING_ASKED, trace=tmp_path / "trace.npz", draft_vocab=512))


def test_profiles_of_a_whole_head_are_refused_but_a_fit_prices_the_reduced_one(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    target = write_profile(tmp_path / "target.latency.json", target_profile())
    draft = write_profile(tmp_path / "draft.latency.json", draft_profile())
    fit = tmp_path / "cpu.fit.json"
    FIT_FILE.write(fit, made_up_fit(), provenance())
    asked = replace(NOTHING_ASKED, trace=tmp_path / "trace.npz", profiles=(target, draft), draft_vocab=512)
    with pytest.raises(UserInputError, match=r"--draft-vocab 512: profiles hold exit checks of a head that says every token"):
        make_plan(asked)
    with pytest.raises(Mismatch, match=r"for ref-draft with exits 1/2/4/6, not for .* 1/2/4/6, a head of 512 of 2048 tokens"):
        make_plan(replace(asked, fit=fit))
    plan = make_plan(replace(asked, fit=fit, profiles=(target,)))
    assert plan.draft.model.head_vocab_size == 512
    assert [part.level for part in plan.evidence] == ["fitted", "measured", "traced"]
    assert plan.next_command.startswith("s2d-plan --trace ")  # of the whole head: s2d-run would refuse this plan


def made_up_fit() -> LatencyFit:
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
def test_a_head_of_tokens_that_are_not_there_gets_one_clear_error(
    question: list[str], tokens: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_plan([*question, "--draft-vocab", tokens]) == 2
    captured = capsys.readouterr()
    assert f"--draft-vocab {tokens}: expected from 1 to 32000 tokens, the vocabulary of " in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_the_label_of_a_whole_draft_tells_of_no_head() -> None:
    assert draft_label(find_draft("s2d")).endswith("exits at 6/9/12")


def test_one_shape_saves_the_time_of_the_rows_its_head_lacks() -> None:
    shape = find_model("noft-1.3b")
    saved_s = [draft_token_s(shape, DESIGN) - draft_token_s(replace(shape, head_vocab_size=n), DESIGN) for n in (24000, 8000)]
    assert saved_s[0] > 0
    assert saved_s[1] == pytest.approx(3 * saved_s[0])


def test_designs_of_one_size_keep_it_and_the_fastest_breaks_even_sooner() -> None:
    whole, reduced = draft_shapes(LLAMA_3), draft_shapes(replace(LLAMA_3, draft_vocab=32000))
    for one in reduced.shapes:
        assert one.geometry.num_params == pytest.approx(LLAMA_3.num_params, rel=PARAMS_TOLERANCE)
        assert (one.geometry.vocab_size, one.geometry.head_vocab_size) == (128256, 32000)
    before, after = ({shape.geometry.num_layers: shape for shape in shapes.frontier} for shapes in (whole, reduced))
    for depth in (1, 2, 4, 8, 12):
        assert after[depth].break_even_tokens < before[depth].break_even_tokens
        assert after[depth].geometry.layer_params > before[depth].geometry.layer_params


def test_the_same_layers_with_a_reduced_head_are_a_smaller_draft_that_breaks_even_sooner() -> None:
    whole = next(one for one in draft_shapes(LLAMA_3).shapes if one.geometry.num_layers == 8)
    smaller = replace(whole.geometry, head_vocab_size=32000)
    found = draft_shapes(replace(LLAMA_3, num_params=smaller.num_params, draft_vocab=32000)).shapes
    fastest = min(one.break_even_tokens for one in found if one.geometry.num_layers == 8)
    assert fastest < 0.98 * whole.break_even_tokens


def test_the_design_s_text_tells_the_head(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["design", "--target", "llama-3.1-70b", "--params", "1.3e9", "--device", "a100-80gb"]
    assert main_plan(question) == 0
    assert "\nhead" not in capsys.readouterr().out
    assert main_plan([*question, "--draft-vocab", "32000"]) == 0
    text = capsys.readouterr().out
    assert "\nhead    32000 of 128256 tokens\n" in text
    assert "The weights saved in the head went into the layers" in " ".join(text.split())
