"""Held out: no prompt is scored by a policy that was searched on it, and few prompts promise more than they give."""

from dataclasses import replace

import pytest

from calibrate.search.cross_validation import learning_curve, log_speedups, overfitting, split_halves
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from perfmodel.acceptance.splits import half_of
from perfmodel.core.errors import BadPolicy
from perfmodel.policies.policy import Policy
from tests.calibrate.search.test_scenario import scenario


def test_held_out_policies_have_not_seen_the_prompts_they_are_scored_on() -> None:
    one = scenario(0.8, num_documents=12)
    halves = split_halves([one])
    assert halves is not None
    names = [{prompt.name for prompt in half[0].trace.header.prompts} for half in halves]
    assert not names[0] & names[1]
    assert [half_of(name) for name in sorted(names[0])] == ["calibration"] * len(names[0])
    assert sum(map(len, names)) == 12


def test_overfitting_is_the_difference_between_seen_and_unseen_prompts() -> None:
    found = overfitting(scenario(0.6, num_documents=12))
    assert found is not None
    assert found.seen_speedup >= found.unseen_speedup > 0.9
    assert found.lost_frac == pytest.approx(1 - found.unseen_speedup / found.seen_speedup)


def test_prompts_of_one_document_cannot_be_held_out() -> None:
    one = scenario(0.8, num_documents=4)
    renamed = tuple(replace(prompt, name=f"a.py:{number}") for number, prompt in enumerate(one.trace.header.prompts))
    one = replace(one, trace=replace(one.trace, header=replace(one.trace.header, prompts=renamed)))
    assert split_halves([one]) is None
    assert overfitting(one) is None


def test_plain_decoding_is_its_own_measure() -> None:
    one = scenario(0.8)
    with pytest.raises(BadPolicy):
        log_speedups(one, [replace(last_exit(one), confidence="margin")])
    assert log_speedups(one, [None, last_exit(one)])[0] == 0.0


def last_exit(one: Scenario) -> Policy:
    layer = one.trace.header.exit_layers[-1]
    return Policy(exits=(layer,), tokens=2)


def test_more_prompts_promise_less_and_give_more() -> None:
    curve = learning_curve(scenario(0.7, num_documents=24), (1, 1000))
    few, all_of_them = curve
    assert [one.num_prompts for one in curve] == [1, 1000]
    assert few.best_speedup == all_of_them.best_speedup
    assert few.unseen_speedup <= all_of_them.unseen_speedup * 1.005
    assert all_of_them.unseen_speedup <= all_of_them.best_speedup * 1.005
    assert abs(few.seen_speedup / few.unseen_speedup - 1) > abs(all_of_them.seen_speedup / all_of_them.unseen_speedup - 1)


def test_prompts_of_one_half_have_no_learning_curve() -> None:
    one = scenario(0.8, num_documents=1)
    with pytest.raises(ValueError, match="both halves"):
        learning_curve(one, (1,))


def test_the_best_of_every_set_of_exits_is_told_best_first() -> None:
    found = search([scenario(0.7)])
    merits = [one.merit for one in found.by_exits]
    exits = [one.policy.exits for one in found.by_exits if one.policy]
    assert merits == sorted(merits, reverse=True)
    assert len(set(exits)) == len(exits)
    assert merits[0] == max(one.merit for one in found.families)
    assert {(layer,) for layer in (1, 2, 4, 6)} <= set(exits)
