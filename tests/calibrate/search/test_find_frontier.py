"""The frontier: its policies, their predicted tokens and seconds, and its place in a plan's file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import make_plan
from calibrate.search.find_frontier import find_frontier
from calibrate.search.scenario import Scenario
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.latency.latency_model import MeasuredLatency
from perfmodel.policies.frontier import DRIFTS, FrontierPoint, leading_points
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.replay.replay import replay_batch
from perfmodel.results.plan import PLAN_FILE
from tests.calibrate.factories import SECONDS, draft_profile, make_trace, provenance, target_profile, write_profile

TRACE = make_trace()
SCENARIO = Scenario(TRACE, MeasuredLatency(draft_profile()), MeasuredLatency(target_profile()))


CHOSEN = Policy(exits=TRACE.header.exit_layers[:2], thresholds=(0.6,), tokens=6, stop=ConfidenceFloor(floor=0.5))
FRONTIER = find_frontier(SCENARIO, CHOSEN, [Policy(exits=(layer,), tokens=8) for layer in TRACE.header.exit_layers])


@pytest.mark.parametrize("point", FRONTIER, ids=lambda point: point.policy.label if point.policy else "plain")
def test_without_drift_a_point_has_the_replayed_tokens_and_seconds(point: FrontierPoint) -> None:
    batch = replay_batch(TRACE, [point.policy])
    num_rounds = batch.num_rounds.sum()
    # Half a round is added to both counts of every share.
    assert point.tokens(0.0) == pytest.approx(batch.num_tokens[0] / num_rounds, rel=0.03)
    assert point.seconds(0.0) == pytest.approx(batch.seconds(SCENARIO.draft, SCENARIO.target)[0] / num_rounds, rel=0.03)


def test_the_seconds_of_a_round_grow_with_the_tokens_it_drafts() -> None:
    points = find_frontier(SCENARIO, Policy(exits=(1,), tokens=6), [])
    [alone] = [point for point in points if len(point.round_s) == 7]
    plain_s = SECONDS["verify"] + SECONDS["round"]
    each_s = SECONDS["segment"] + SECONDS["exit"]
    assert alone.round_s[0] == pytest.approx(plain_s)
    assert np.diff(alone.round_s) == pytest.approx(each_s, rel=0.08)  # the last rounds of a text draft less


def test_plain_decoding_and_the_chosen_policy_are_always_on_the_frontier_and_so_is_every_leader() -> None:
    points = find_frontier(SCENARIO, CHOSEN, [])
    assert {None, CHOSEN} <= {point.policy for point in points}
    assert points[0].policy is None
    slow = replace(points[0], policy=Policy(exits=(6,), tokens=1), round_s=(99.0,))
    again = leading_points([*points, slow], always=(None, CHOSEN))
    assert again == points
    for drift in DRIFTS[::10]:
        fastest = max((*points, slow), key=lambda point: point.tokens(drift) / point.seconds(0.0))
        assert fastest in again


def test_policies_without_evidence_or_with_longer_drafts_than_the_search_tries_are_left_out() -> None:
    unpriced, too_long = (Policy(exits=(2,), tokens=cap) for cap in (16, 60))
    policies = {point.policy for point in find_frontier(SCENARIO, None, [unpriced, too_long])}
    assert not policies & {unpriced, too_long}


def test_a_plan_from_a_trace_has_a_frontier_and_its_file_keeps_it(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", TRACE, provenance())
    profiles = tuple(
        write_profile(tmp_path / f"{name}.latency.json", profile)
        for name, profile in (("target", target_profile()), ("draft", draft_profile()))
    )
    plan = make_plan(PlanRequest(trace=tmp_path / "trace.npz", profiles=profiles))
    assert {None, plan.chosen.policy} <= {point.policy for point in plan.frontier}
    PLAN_FILE.write(tmp_path / "plan.json", plan, provenance())
    assert PLAN_FILE.read(tmp_path / "plan.json").record == plan


def test_published_evidence_has_no_frontier() -> None:
    assert make_plan(PlanRequest(target="llama-70b")).frontier == ()
