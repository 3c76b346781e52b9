"""A portfolio: each part's own policy beside one for all, in sample and held out, and refusals."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.make_plan import make_plan
from calibrate.planning.make_portfolio import by_category, by_target, with_own_profiles
from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.errors import Mismatch, UnknownName, UserInputError
from perfmodel.core.units import format_speedup
from perfmodel.models.find_model import find_model
from perfmodel.results.portfolio import CHOICES, PORTFOLIO_FILE, Portfolio
from tests.calibrate.factories import (
    DRAFT,
    DRAFT_SHA256,
    TARGET,
    make_profile,
    make_trace,
    provenance,
    unfolded,
    write_profile,
)

OTHER, OTHER_SHA256 = find_model("ref-target-32"), "9" * 64


def other_target_trace(trace: Trace) -> Trace:
    return replace(trace, header=replace(trace.header, target_model=OTHER, target_sha256=OTHER_SHA256))


def in_categories(trace: Trace) -> Trace:
    prompts = tuple(
        replace(prompt, category=("code", "prose")[number % 2]) for number, prompt in enumerate(trace.header.prompts)
    )
    return replace(trace, header=replace(trace.header, prompts=prompts))


@pytest.fixture(scope="module")
def shipped() -> Portfolio:
    return by_target([PlanRequest(target=name) for name in ("vicuna-7b", "llama-70b")])


@pytest.fixture
def measured(tmp_path: Path) -> list[PlanRequest]:
    """Two targets of one draft, each folder as `s2d-profile` leaves it, and all profiles given to both."""
    requests, profiles = [], []
    for target, sha256, seed in ((TARGET, "a" * 64, 0), (OTHER, OTHER_SHA256, 1)):
        folder = tmp_path / target.name
        folder.mkdir()
        trace = make_trace(seed)
        TRACE_FILE.write(folder / "trace.npz", trace if target == TARGET else other_target_trace(trace), provenance())
        profiles.append(write_profile(folder / "target.latency.json", make_profile(target, (), sha256, DRAFT.model.name)))
        draft = make_profile(DRAFT.model, DRAFT.exit_layers, DRAFT_SHA256, target.name)
        profiles.append(write_profile(folder / "draft.latency.json", draft))
        requests.append(PlanRequest(trace=folder / "trace.npz"))
    return [replace(request, profiles=tuple(profiles)) for request in requests]


def test_each_target_has_the_policy_of_its_own_plan(shipped: Portfolio) -> None:
    for part in shipped.parts:
        plan = make_plan(PlanRequest(target=part.target))
        assert part.own.policy == plan.chosen.policy
        assert part.own.speedup == plan.chosen.speedup
        singles = [candidate for candidate in plan.runners_up if candidate.name.startswith("exit ")]
        assert part.single.policy == max(singles, key=lambda candidate: candidate.speedup.tokens_per_s).policy


def test_a_policy_for_each_part_is_no_slower_than_one_for_all_on_the_prompts_of_the_search(shipped: Portfolio) -> None:
    assert shipped.mean_speedup("own") >= max(shipped.mean_speedup(choice) for choice in CHOICES) * 0.999
    assert shipped.worst_speedup("robust") >= shipped.worst_speedup("common") * 0.999
    assert shipped.mean_speedup("common") >= shipped.mean_speedup("robust") * 0.999


def test_the_mean_is_geometric_and_the_worst_is_the_smallest(shipped: Portfolio) -> None:
    speedups = [part.common.speedup.speedup.value for part in shipped.parts]
    assert shipped.mean_speedup("common") == pytest.approx(math.sqrt(math.prod(speedups)))
    assert shipped.worst_speedup("common") == min(speedups)


def test_the_memory_of_a_nested_draft_is_compared_with_a_draft_for_every_single_exit(shipped: Portfolio) -> None:
    exits = {part.single.policy.exits[0] for part in shipped.parts if part.single.policy}
    model = shipped.draft.model
    assert exits == {6, 9}
    assert shipped.nested_draft_bytes == 2 * model.num_params
    assert shipped.single_drafts_bytes == sum(2 * (model.num_params - (12 - layer) * model.layer_params) for layer in exits)


def test_a_portfolio_is_read_back_as_it_was_written(shipped: Portfolio, tmp_path: Path) -> None:
    PORTFOLIO_FILE.write(tmp_path / "portfolio.json", shipped, provenance())
    stored = PORTFOLIO_FILE.read(tmp_path / "portfolio.json")
    assert stored.record == shipped
    assert PORTFOLIO_FILE.text(stored.record, stored.provenance) == (tmp_path / "portfolio.json").read_text(encoding="utf-8")


def test_every_target_is_priced_by_its_own_profiles(measured: list[PlanRequest]) -> None:
    own = with_own_profiles(measured)
    for request in own:
        assert request.trace is not None
        assert {path.parent for path in request.profiles} == {request.trace.parent}
    portfolio = by_target(own)
    assert [part.name for part in portfolio.parts] == [TARGET.name, OTHER.name]
    assert {evidence.level for part in portfolio.parts for evidence in part.evidence} == {"measured", "traced"}


def test_one_profile_of_the_draft_serves_all_targets(measured: list[PlanRequest]) -> None:
    without_second = [replace(request, profiles=request.profiles[:3]) for request in measured]
    first, second = with_own_profiles(without_second)
    assert first.profiles == measured[0].profiles[:2]
    assert set(second.profiles) == set(measured[0].profiles[1:3])


def test_a_profile_that_no_pair_uses_is_named(measured: list[PlanRequest], tmp_path: Path) -> None:
    stray = write_profile(tmp_path / "stray.json", make_profile(find_model("vicuna-7b"), (), "7" * 64, None))
    with pytest.raises(UserInputError, match=r"'stray\.json' is of none of the traced models"):
        with_own_profiles([replace(request, profiles=(*request.profiles, stray)) for request in measured])


def test_categories_split_the_prompts_and_keep_the_target(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", in_categories(make_trace()), provenance())
    request = PlanRequest(trace=tmp_path / "trace.npz", device=DeviceRequest(device="a100"))
    portfolio = by_category(request)
    assert [(part.name, part.num_prompts) for part in portfolio.parts] == [("code", 3), ("prose", 3)]
    for part in portfolio.parts:
        alone = make_plan(replace(request, category=part.name))
        assert alone.chosen.policy == part.own.policy
        assert "only" in alone.evidence[-1].description
    with pytest.raises(UnknownName, match=r"unknown category 'poems': expected 'code' or 'prose'"):
        make_plan(replace(request, category="poems"))


def test_prompts_of_one_category_are_not_split(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    with pytest.raises(UserInputError, match="all 6 prompts are of category 'code'"):
        by_category(PlanRequest(trace=tmp_path / "trace.npz"))


def test_targets_of_different_drafts_are_refused(tmp_path: Path) -> None:
    trace = other_target_trace(make_trace())
    other_draft = replace(trace, header=replace(trace.header, draft_sha256="0" * 64))
    TRACE_FILE.write(tmp_path / "one.npz", make_trace(), provenance())
    TRACE_FILE.write(tmp_path / "two.npz", other_draft, provenance())
    requests = [PlanRequest(trace=tmp_path / f"{name}.npz") for name in ("one", "two")]
    with pytest.raises(Mismatch, match="Give traces of one draft at all targets"):
        by_target(requests)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "vicuna-7b"], "only target vicuna-7b is given"),
        (["--targets", "vicuna-7b,llama-70b,llama-2-70b"], "target llama-2-70b is given twice"),
        (["--targets", "vicuna-7b,", "--device", "h100"], "unknown target ''"),
        (["--targets", "vicuna-7b,llama-70b", "--target", "vicuna-7b"], "--target names one target, --targets several"),
        (["--targets", "vicuna-7b,llama-70b", "--trace", "x.npz"], "a trace names its target: leave --targets out"),
        (["--targets", "vicuna-7b,llama-70b", "--by-category"], "--by-category splits the prompts of one target"),
        (["--target", "vicuna-7b", "--by-category", "--category", "x"], "--by-category plans for every category"),
        (["--trace", "no-such.npz", "--trace", "nor-this.npz"], "'no-such.npz': no such file."),
    ],
)  # fmt: skip
def test_an_impossible_portfolio_ends_with_2_and_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_plan(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"s2d-plan: {message}")
    assert captured.out == ""


def test_the_text_has_every_choice_and_a_next_command_that_works(
    shipped: Portfolio, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_plan(["--targets=vicuna-7b,llama-70b", "--dtype", "fp16", "--explain"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert any(line.startswith("a policy for each") and format_speedup(shipped.mean_speedup("own")) in line for line in lines)
    assert any(line.startswith("the best worst case") for line in lines)
    assert "no S2D draft is public; train one: s2d-train draft " in unfolded(shown)
    following = shlex.split(lines[-1].removeprefix("next: "))
    assert following == ["s2d-plan", "--dtype", "fp16", "--target", "vicuna-7b", "-o", "plan.json"]


def test_categories_are_planned_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", in_categories(make_trace()), provenance())
    arguments = ["--trace", str(tmp_path / "trace.npz"), "--device", "a100", "--by-category"]
    assert main_plan([*arguments, "-o", str(tmp_path / "portfolio.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("--device a100 --category code -o plan.json")
    assert PORTFOLIO_FILE.read(tmp_path / "portfolio.json").record.of == "categories"
    assert np.isfinite(PORTFOLIO_FILE.read(tmp_path / "portfolio.json").record.mean_speedup("own"))
