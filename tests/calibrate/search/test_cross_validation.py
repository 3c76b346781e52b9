"""Cross-validation: no prompt scores a policy that was searched on it, and few prompts overstate the speedup."""

from dataclasses import replace

import pytest

from calibrate.search.cross_validation import learning_curve, log_speedups, overfitting, split_halves
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from perfmodel.acceptance.splits import prompt_half
from perfmodel.core.errors import BadPolicy
from perfmodel.policies.policy import Policy
from tests.calibrate.search.test_scenario import make_scenario


def test_the_halves_share_no_prompt_and_leave_none_out() -> None:
    scenario = make_scenario(0.8, num_documents=12)
    halves = split_halves([scenario])
    assert halves is not None
    names = [{prompt.name for prompt in half[0].trace.header.prompts} for half in halves]
    assert not names[0] & names[1]
    assert [prompt_half(name) for name in sorted(names[0])] == ["calibration"] * len(names[0])
    assert sum(map(len, names)) == 12


def test_overfitting_is_the_difference_between_seen_and_unseen_prompts() -> None:
    result = overfitting(make_scenario(0.6, num_documents=12))
    assert result is not None
    assert result.seen_speedup >= result.unseen_speedup > 0.9
    assert result.lost_frac == pytest.approx(1 - result.unseen_speedup / result.seen_speedup)


def test_prompts_of_one_document_cannot_be_held_out() -> None:
    scenario = make_scenario(0.8, num_documents=4)
    renamed = tuple(replace(prompt, name=f"a.py:{number}") for number, prompt in enumerate(scenario.trace.header.prompts))
    scenario = replace(scenario, trace=replace(scenario.trace, header=replace(scenario.trace.header, prompts=renamed)))
    assert split_halves([scenario]) is None
    assert overfitting(scenario) is None


def test_the_log_speedup_of_plain_decoding_is_0() -> None:
    scenario = make_scenario(0.8)
    with pytest.raises(BadPolicy):
        log_speedups(scenario, [replace(last_exit(scenario), confidence="margin")])
    assert log_speedups(scenario, [None, last_exit(scenario)])[0] == 0.0


def last_exit(scenario: Scenario) -> Policy:
    layer = scenario.trace.header.exit_layers[-1]
    return Policy(exits=(layer,), tokens=2)


def test_with_more_prompts_the_seen_speedup_is_less_overstated_and_the_unseen_one_grows() -> None:
    curve = learning_curve(make_scenario(0.7, num_documents=24), (1, 1000))
    few, all_of_them = curve
    assert [point.num_prompts for point in curve] == [1, 1000]
    assert few.best_speedup == all_of_them.best_speedup
    assert few.unseen_speedup <= all_of_them.unseen_speedup * 1.005
    assert all_of_them.unseen_speedup <= all_of_them.best_speedup * 1.005
    assert abs(few.seen_speedup / few.unseen_speedup - 1) > abs(all_of_them.seen_speedup / all_of_them.unseen_speedup - 1)


def test_a_learning_curve_needs_prompts_in_both_halves() -> None:
    scenario = make_scenario(0.8, num_documents=1)
    with pytest.raises(ValueError, match="both halves"):
        learning_curve(scenario, (1,))


def test_the_result_lists_the_best_policy_of_every_set_of_exits_fastest_first() -> None:
    result = search([make_scenario(0.7)])
    merits = [scored.merit for scored in result.by_exits]
    exits = [scored.policy.exits for scored in result.by_exits if scored.policy]
    assert merits == sorted(merits, reverse=True)
    assert len(set(exits)) == len(exits)
    assert merits[0] == max(scored.merit for scored in result.families)
    assert {(layer,) for layer in (1, 2, 4, 6)} <= set(exits)
