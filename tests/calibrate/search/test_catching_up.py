"""Catching up at once is planned where a profile says that it pays, shown, kept and compared; no datasheet asks for it."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.planning.compare import compare
from calibrate.planning.make_plan import make_plan
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.errors import UserInputError
from perfmodel.core.files import Stored
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.find_model import find_draft
from perfmodel.passes.device_key import EngineMode
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
from tests.calibrate.planning.test_make_plan import NOTHING_ASKED

TRACE = with_sure_first_exit(make_trace())
SLOW_ROWS = 3
"""Rows from which a segment's pass takes the seconds of as many passes, and half as long again."""


def with_slow_long_passes(profile: LatencyProfile) -> LatencyProfile:
    samples = profile.samples
    seconds = (1.5 * p.rows * p.seconds if p.kind == "segment" and p.rows >= SLOW_ROWS else p.seconds for p in samples)
    return replace(profile, samples=replace(samples, seconds=tuple(seconds)))


def plan_with(folder: Path, draft: LatencyProfile) -> Plan:
    TRACE_FILE.write(folder / "trace.npz", TRACE, provenance())
    profiles = tuple(
        write_profile(folder / f"{name}.latency.json", one) for name, one in (("target", target_profile()), ("draft", draft))
    )
    return make_plan(replace(NOTHING_ASKED, trace=folder / "trace.npz", profiles=profiles))


@pytest.fixture
def at_once(tmp_path: Path) -> Plan:
    return plan_with(tmp_path, with_slow_long_passes(draft_profile()))


@pytest.fixture
def when_asked(tmp_path: Path) -> Plan:
    return plan_with(tmp_path, draft_profile())


def test_a_plan_catches_up_at_once_where_the_profile_says_that_long_passes_are_slow(at_once: Plan) -> None:
    policy, rounds = at_once.chosen.policy, at_once.chosen.rounds
    assert policy is not None
    assert policy.catches_up_at_once
    assert max(one.rows for one in rounds.passes if one.kind == "segment") < SLOW_ROWS
    text = at_once.explain()
    assert "catching up   at once: a token that left early runs through the deeper segments" in text


def test_a_plan_catches_up_when_asked_where_one_pass_is_faster_than_several(when_asked: Plan) -> None:
    policies = [one.policy for one in (when_asked.chosen, *when_asked.runners_up)]
    assert any(policy and len(policy.exits) > 1 for policy in policies)
    assert not any(policy and policy.catches_up_at_once for policy in policies)
    assert "catching up" not in when_asked.explain()


def test_a_plan_that_catches_up_either_way_is_read_back(tmp_path: Path, at_once: Plan, when_asked: Plan) -> None:
    path = tmp_path / "plan.json"
    for plan in (at_once, when_asked):
        PLAN_FILE.write(path, plan, provenance())
        assert PLAN_FILE.read(path).record == plan


def test_reports_are_read_back_alike(tmp_path: Path, at_once: Plan, when_asked: Plan) -> None:
    path = tmp_path / "report.json"
    for plan in (at_once, when_asked):
        report = make_report(plan, "p" * 64, TRACE)
        REPORT_FILE.write(path, report, provenance())
        assert REPORT_FILE.read(path).record == report


def test_a_run_of_it_is_compared_without_an_error_of_its_own(tmp_path: Path, at_once: Plan) -> None:
    path = tmp_path / "plan.json"
    PLAN_FILE.write(path, at_once, provenance())
    stored = PLAN_FILE.read(path)
    report = make_report(at_once, stored.sha256, TRACE)
    residuals = compare(stored, Stored(record=report, provenance=provenance(), sha256="r" * 64), pricing=None)
    assert {part.kind for part in residuals.passes if part.arm == "plan"} == {"segment", "exit", "verify", "round"}
    assert abs(residuals.latency_error_frac) < 0.01


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_no_datasheet_has_tokens_that_are_faster_one_by_one(engine: EngineMode) -> None:
    draft = find_draft("s2d")
    num_priced = 0
    for hardware in KNOWN_HARDWARE:
        try:
            weights = plain_format(hardware.compute_dtype("bf16"))
            setting = PassSetting(model=draft.model, exit_layers=draft.exit_layers, weights=weights)
            latency = RooflineLatency(setting, hardware, engine)
        except UserInputError:  # a device without this dtype or engine
            continue
        num_priced += 1
        for stage, rows in ((1, 2), (1, 12), (2, 2), (2, 12)):
            together, single = (latency.line("segment", stage, one) for one in (rows, 1))
            for cached_tokens in (0, draft.model.max_context_tokens):
                whole_s, one_s = together.at(cached_tokens), single.at(cached_tokens)
                assert whole_s <= rows * one_s + 1e-12
    assert num_priced > 10
