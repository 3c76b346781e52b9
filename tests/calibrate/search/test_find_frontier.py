"""The policies a run may move along: who is on the frontier, what each is said to give, and the file that keeps it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

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
from tests.calibrate.planning.test_make_plan import NOTHING_ASKED

TRACE = make_trace()
SCENARIO = Scenario(TRACE, MeasuredLatency(draft_profile()), MeasuredLatency(target_profile()))


CHOSEN = Policy(exits=TRACE.header.exit_layers[:2], thresholds=(0.6,), tokens=6, stop=ConfidenceFloor(floor=0.5))
FRONTIER = find_frontier(SCENARIO, CHOSEN, [Policy(exits=(layer,), tokens=8) for layer in TRACE.header.exit_layers])


@pytest.mark.parametrize("point", FRONTIER, ids=lambda one: one.policy.label if one.policy else "plain")
def test_without_drift_a_policy_gives_what_was_replayed(point: FrontierPoint) -> None:
    batch = replay_batch(TRACE, [point.policy])
    num_rounds = batch.num_rounds.sum()
    # Half a round was added on both sides of every share.
    assert point.tokens(0.0) == pytest.approx(batch.num_tokens[0] / num_rounds, rel=0.03)
    assert point.seconds(0.0) == pytest.approx(batch.seconds(SCENARIO.draft, SCENARIO.target)[0] / num_rounds, rel=0.03)


def test_a_round_is_priced_by_the_tokens_it_drafts() -> None:
    [alone] = [one for one in find_frontier(SCENARIO, Policy(exits=(1,), tokens=6), []) if len(one.round_s) == 7]
    plain_s = SECONDS["verify"] + SECONDS["round"]
    each_s = SECONDS["segment"] + SECONDS["exit"]
    assert alone.round_s[0] == pytest.approx(plain_s)
    assert np.diff(alone.round_s) == pytest.approx(each_s, rel=0.08)  # a text's last rounds draft less


def test_plain_and_chosen_are_on_the_frontier_whoever_leads_and_nobody_leads_who_is_not() -> None:
    points = find_frontier(SCENARIO, CHOSEN, [])
    assert {None, CHOSEN} <= {one.policy for one in points}
    assert points[0].policy is None
    slow = replace(points[0], policy=Policy(exits=(6,), tokens=1), round_s=(99.0,))
    again = leading_points([*points, slow], always=(None, CHOSEN))
    assert again == points
    for drift in DRIFTS[::10]:
        fastest = max((*points, slow), key=lambda one: one.tokens(drift) / one.seconds(0.0))
        assert fastest in again


def test_policies_without_a_price_or_beyond_what_was_searched_are_left_out() -> None:
    unpriced, too_long = (Policy(exits=(2,), tokens=cap) for cap in (16, 60))
    found = {one.policy for one in find_frontier(SCENARIO, None, [unpriced, too_long])}
    assert not found & {unpriced, too_long}


def test_a_plan_from_a_trace_has_a_frontier_and_its_file_keeps_it(tmp_path: Path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", TRACE, provenance())
    profiles = tuple(
        write_profile(tmp_path / f"{name}.latency.json", one)
        for name, one in (("target", target_profile()), ("draft", draft_profile()))
    )
    plan = make_plan(replace(NOTHING_ASKED, trace=tmp_path / "trace.npz", profiles=profiles))
    assert {None, plan.chosen.policy} <= {one.policy for one in plan.frontier}
    PLAN_FILE.write(tmp_path / "plan.json", plan, provenance())
    assert PLAN_FILE.read(tmp_path / "plan.json").record == plan


def test_published_evidence_has_no_frontier() -> None:
    assert make_plan(replace(NOTHING_ASKED, target="llama-70b")).frontier == ()
