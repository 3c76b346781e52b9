"""Running ahead is planned where a profile shows a gain; it is printed, stored and compared, and no datasheet recommends it."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.fit.fit_latency import profile_observations
from calibrate.inputs.requests import PlanRequest
from calibrate.planning.compare import compare
from calibrate.planning.make_plan import make_plan
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.files import Stored
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.find_model import find_draft
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PassSample, PassSamples
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.results.plan import PLAN_FILE, Plan
from tests.calibrate.factories import (
    SECONDS,
    draft_profile,
    make_report,
    make_trace,
    provenance,
    target_profile,
    write_profile,
)

TRACE = make_trace()
LATER_KEYS = ("runs_ahead", "ahead_s", "catches_up_at_once")
"""Which a plan of version 7 did not have."""
BOTH_S = SECONDS["segment"] + SECONDS["exit"]
HIDDEN_S, NOT_HIDDEN_S = 0.7 * BOTH_S, BOTH_S


def profile_of(ahead_s: float) -> LatencyProfile:
    """The draft's profile, where every pass that runs ahead takes the same time."""
    profile = draft_profile()
    ahead = PassSamples.from_passes(
        PassSample("ahead", stage, rows, cached, 1, ahead_s)
        for stage in range(1, len(profile.exit_layers))
        for rows in range(1, 15)
        for cached in range(0, 120, 4)
    )
    return replace(profile, samples=PassSamples.concat((profile.samples, ahead)))


def plan_with(folder: Path, ahead_s: float) -> Plan:
    TRACE_FILE.write(folder / "trace.npz", TRACE, provenance())
    profiles = tuple(
        write_profile(folder / f"{name}.latency.json", profile)
        for name, profile in (("target", target_profile()), ("draft", profile_of(ahead_s)))
    )
    return make_plan(PlanRequest(trace=folder / "trace.npz", profiles=profiles))


def test_a_plan_runs_ahead_where_the_profile_shows_a_hidden_wait(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, HIDDEN_S)
    policy, cost = plan.chosen.policy, plan.chosen.speedup.round_cost
    assert policy is not None
    assert policy.runs_ahead
    assert cost.ahead_s > cost.exit_s
    assert cost.total_s == pytest.approx(cost.segment_s + cost.exit_s + cost.ahead_s + cost.verify_s + cost.round_s)
    assert any(point.policy and point.policy.runs_ahead for point in plan.frontier)
    text = plan.explain()
    assert "running ahead  the next segment starts before the exit's answer is read" in text
    assert "segments run ahead" in text


def test_a_plan_waits_where_running_ahead_hides_nothing(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, NOT_HIDDEN_S)
    assert not any(candidate.policy and candidate.policy.runs_ahead for candidate in (plan.chosen, *plan.runners_up))
    assert "segments run ahead" not in plan.explain()


def test_a_plan_that_runs_ahead_or_waits_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for ahead_s in (HIDDEN_S, NOT_HIDDEN_S):
        plan = plan_with(tmp_path, ahead_s)
        PLAN_FILE.write(path, plan, provenance())
        assert PLAN_FILE.read(path).record == plan


def test_a_run_that_runs_ahead_is_compared_kind_by_kind(tmp_path: Path) -> None:
    path, plan = tmp_path / "plan.json", plan_with(tmp_path, HIDDEN_S)
    PLAN_FILE.write(path, plan, provenance())
    stored = PLAN_FILE.read(path)
    report = make_report(plan, stored.sha256, TRACE, slower={"ahead": HIDDEN_S / SECONDS["ahead"]})
    residuals = compare(stored, Stored(record=report, provenance=provenance(), sha256="r" * 64))
    assert {part.kind for part in residuals.passes if part.arm == "plan"} == {"segment", "exit", "ahead", "verify", "round"}
    assert abs(residuals.latency_error_frac) < 0.01


def test_no_law_is_fitted_to_passes_that_ran_ahead() -> None:
    assert list(profile_observations(profile_of(HIDDEN_S))) == list(profile_observations(draft_profile()))


def test_a_law_prices_running_ahead_with_its_wait_and_no_datasheet_recommends_it() -> None:
    draft = find_draft("s2d")
    setting = PassSetting(model=draft.model, exit_layers=draft.exit_layers, weights=plain_format("bf16"))
    latency = RooflineLatency(setting, find_hardware("H100-SXM"), "graph")
    for stage in (1, 2):
        (ahead_s, _), (exit_s, _), (segment_s, _) = (
            latency.line(kind, at, 1) for kind, at in (("ahead", stage), ("exit", stage - 1), ("segment", stage))
        )
        assert ahead_s == pytest.approx(exit_s + segment_s, rel=1e-3)
