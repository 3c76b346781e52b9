"""Catching up at once is planned where a profile shows a gain; it is printed, stored and compared."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.compare import compare
from calibrate.planning.make_plan import make_plan
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.errors import UserInputError
from perfmodel.core.files import Stored
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.find_model import find_draft
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.results.plan import PLAN_FILE, Plan
from perfmodel.results.report import REPORT_FILE
from tests.calibrate.factories import (
    draft_profile,
    make_report,
    make_trace,
    provenance,
    target_profile,
    with_sure_first_exit,
    write_profile,
)

TRACE = with_sure_first_exit(make_trace())
SLOW_ROWS = 3
"""Rows from which a segment pass takes 1.5 times as long as one-row passes for its tokens."""


def with_slow_long_passes(profile: LatencyProfile) -> LatencyProfile:
    samples = profile.samples
    seconds = (1.5 * p.rows * p.seconds if p.kind == "segment" and p.rows >= SLOW_ROWS else p.seconds for p in samples)
    return replace(profile, samples=replace(samples, seconds=tuple(seconds)))


def plan_with(folder: Path, draft: LatencyProfile) -> Plan:
    TRACE_FILE.write(folder / "trace.npz", TRACE, provenance())
    profiles = tuple(
        write_profile(folder / f"{name}.latency.json", profile)
        for name, profile in (("target", target_profile()), ("draft", draft))
    )
    return make_plan(PlanRequest(trace=folder / "trace.npz", profiles=profiles))


@pytest.fixture
def at_once(tmp_path: Path) -> Plan:
    return plan_with(tmp_path, with_slow_long_passes(draft_profile()))


@pytest.fixture
def when_needed(tmp_path: Path) -> Plan:
    return plan_with(tmp_path, draft_profile())


def test_a_plan_catches_up_at_once_where_the_profile_shows_slow_long_passes(at_once: Plan) -> None:
    policy, rounds = at_once.chosen.policy, at_once.chosen.rounds
    assert policy is not None
    assert policy.catches_up_at_once
    assert max(count.rows for count in rounds.passes if count.kind == "segment") < SLOW_ROWS
    text = at_once.explain()
    assert "catching up   at once: a token that left early runs through the deeper segments" in text


def test_a_plan_catches_up_when_needed_where_one_pass_is_faster_than_several(when_needed: Plan) -> None:
    policies = [candidate.policy for candidate in (when_needed.chosen, *when_needed.runners_up)]
    assert any(policy and len(policy.exits) > 1 for policy in policies)
    assert not any(policy and policy.catches_up_at_once for policy in policies)
    assert "catching up" not in when_needed.explain()


def test_a_plan_that_catches_up_either_way_is_read_back(tmp_path: Path, at_once: Plan, when_needed: Plan) -> None:
    path = tmp_path / "plan.json"
    for plan in (at_once, when_needed):
        PLAN_FILE.write(path, plan, provenance())
        assert PLAN_FILE.read(path).record == plan


def test_reports_are_read_back_alike(tmp_path: Path, at_once: Plan, when_needed: Plan) -> None:
    path = tmp_path / "report.json"
    for plan in (at_once, when_needed):
        report = make_report(plan, "p" * 64, TRACE)
        REPORT_FILE.write(path, report, provenance())
        assert REPORT_FILE.read(path).record == report


def test_a_run_that_catches_up_at_once_is_compared_without_an_extra_error(tmp_path: Path, at_once: Plan) -> None:
    path = tmp_path / "plan.json"
    PLAN_FILE.write(path, at_once, provenance())
    stored = PLAN_FILE.read(path)
    report = make_report(at_once, stored.sha256, TRACE)
    residuals = compare(stored, Stored(record=report, provenance=provenance(), sha256="r" * 64))
    assert {part.kind for part in residuals.passes if part.arm == "plan"} == {"segment", "exit", "verify", "round"}
    assert abs(residuals.latency_error_frac) < 0.01


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_no_datasheet_prices_a_wide_pass_above_one_row_passes(mode: LaunchMode) -> None:
    draft = find_draft("s2d")
    num_priced = 0
    for hardware in KNOWN_HARDWARE:
        try:
            weights = plain_format(hardware.compute_dtype("bf16"))
            setting = PassSetting(model=draft.model, exit_layers=draft.exit_layers, weights=weights)
            latency = RooflineLatency(setting, hardware, mode)
        except UserInputError:  # a device without this dtype or mode
            continue
        num_priced += 1
        for stage, rows in ((1, 2), (1, 12), (2, 2), (2, 12)):
            together, single = (latency.line("segment", stage, width) for width in (rows, 1))
            for cached_tokens in (0, draft.model.max_context_tokens):
                wide_s, single_s = together.at(cached_tokens), single.at(cached_tokens)
                assert wide_s <= rows * single_s + 1e-12
    assert num_priced > 10
