"""Policies: refusals and their messages, stop rules, calibration curves and labels."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.acceptance.confidence_curves import agreement_at
from perfmodel.core.errors import BadPolicy
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    SurvivalFloor,
)
from tests.strategies import curves

CURVE = CalibrationCurve(confidence=(0.2, 0.6), agreement=(0.5, 0.9))
TWO_EXITS = Policy(exits=(2, 4), thresholds=(0.5,), tokens=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": ()}, r"bad policy: exits \(\): expected at least one exit, rising layer counts\."),
        ({"exits": (4, 2)}, r"exits \(4, 2\): expected at least one exit, rising"),
        ({"thresholds": ()}, "0 thresholds for 2 exits: expected one for every exit but the last, which always answers"),
        ({"thresholds": (1.5,)}, "threshold 1.5 of exit 2: expected a number from 0 to 1"),
        ({"thresholds": (float("nan"),)}, "threshold nan of exit 2"),
        ({"tokens": 0}, r"0 tokens per round: expected at least 1 \(plain decoding has no policy: None\)"),
        ({"stop": ConfidenceFloor(floor=-0.1)}, "stop floor -0.1: expected a number from 0 to 1"),
        (
            {"stop": SurvivalFloor(floor=0.1, calibration=(CURVE,))},
            "1 calibration curves for 2 exits: expected one for every active exit",
        ),
        (
            {"exits": (4,), "thresholds": (), "runs_ahead": True},
            "running ahead with exit 4 alone: expected at least two exits: the last one always answers",
        ),
        (
            {"exits": (4,), "thresholds": (), "catches_up_at_once": True},
            "catching up at once with exit 4 alone: expected at least two exits: no token leaves before the last one",
        ),
        (
            {"runs_ahead": True, "catches_up_at_once": True},
            "running ahead and catching up at once: expected at most one of them",
        ),
        ({"tokens": 5, "stop": HeuristicLength(start=6)}, "heuristic start 6: expected 1 to 5, the most tokens of a round"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadPolicy, match=message):
        replace(TWO_EXITS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("confidence", "agreement"),
    [((), ()), ((0.1,), (0.2, 0.3)), ((0.5, 0.5), (0.1, 0.2)), ((0.1, 0.2), (0.5, 0.4)), ((0.1, 0.2), (0.5, 1.1))],
)
def test_a_curve_that_falls_or_leaves_0_to_1_is_refused(confidence: tuple[float, ...], agreement: tuple[float, ...]) -> None:
    with pytest.raises(BadPolicy, match="calibration curve"):
        CalibrationCurve(confidence=confidence, agreement=agreement)


@pytest.mark.parametrize(("confidence", "expected"), [(0.0, 0.5), (0.2, 0.5), (0.4, 0.7), (0.6, 0.9), (1.0, 0.9)])
def test_a_curve_is_linear_between_its_knots_and_flat_outside(confidence: float, expected: float) -> None:
    assert CURVE(confidence) == pytest.approx(expected)


@given(curves(), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_a_curve_gives_the_same_bits_for_many_confidences_as_for_each_alone(
    curve: CalibrationCurve, confidences: list[float]
) -> None:
    together = agreement_at(curve, np.array(confidences, np.float64))
    assert together.tolist() == [curve(confidence) for confidence in confidences]


def test_labels_name_exits_thresholds_and_lengths() -> None:
    assert TWO_EXITS.label == "exits 2/4 at .50, 4 tokens"
    assert replace(TWO_EXITS, runs_ahead=True).label == "exits 2/4 at .50, running ahead, 4 tokens"
    assert replace(TWO_EXITS, catches_up_at_once=True).label == "exits 2/4 at .50, catching up at once, 4 tokens"
    single = Policy(exits=(6,), tokens=8)
    assert replace(single, stop=ConfidenceFloor(floor=0.2)).label == "exit 6, up to 8 tokens, stop below 0.20"
    dropping = ConfidenceFloor(floor=0.2, keeps_token=False)
    assert replace(single, stop=dropping).label == "exit 6, up to 8 tokens, drop below 0.20"
    survival = SurvivalFloor(floor=0.35, calibration=(CURVE,))
    assert replace(single, stop=survival).label == "exit 6, up to 8 tokens, stop at survival 0.35"
    assert replace(single, stop=HeuristicLength(start=5)).label == "exit 6, +2/-1 from 5, at most 8"


def test_a_heuristic_length_adds_two_tokens_after_full_acceptance_and_removes_one_otherwise() -> None:
    policy = Policy(exits=(6,), tokens=8, stop=HeuristicLength(start=5))
    assert policy.first_cap == 5
    assert policy.next_cap(5, num_drafted=5, num_accepted=5) == 7
    assert policy.next_cap(7, num_drafted=7, num_accepted=7) == 8
    assert policy.next_cap(5, num_drafted=5, num_accepted=4) == 4
    assert policy.next_cap(1, num_drafted=1, num_accepted=0) == 1
    assert policy.next_cap(3, num_drafted=0, num_accepted=0) == 3


def test_other_policies_draft_up_to_the_same_number_of_tokens_in_every_round() -> None:
    for stop in (None, ConfidenceFloor(floor=0.5), SurvivalFloor(floor=0.5, calibration=(CURVE,) * 2)):
        policy = replace(TWO_EXITS, stop=stop)
        assert policy.first_cap == policy.next_cap(4, num_drafted=4, num_accepted=0) == 4


def test_a_confidence_floor_stops_below_its_floor_and_not_at_it() -> None:
    policy = Policy(exits=(6,), tokens=8, stop=ConfidenceFloor(floor=0.5))
    assert policy.stops(confidence=0.49, survival=1.0)
    assert not policy.stops(confidence=0.5, survival=0.0)
    assert not policy.drops(confidence=0.49)


def test_a_floor_that_does_not_keep_the_token_drops_it_below_the_floor_and_not_at_it() -> None:
    policy = Policy(exits=(6,), tokens=8, stop=ConfidenceFloor(floor=0.5, keeps_token=False))
    assert policy.drops(confidence=0.49)
    assert not policy.drops(confidence=0.5)


def test_a_survival_floor_multiplies_the_calibrated_confidences_of_the_exits_where_tokens_left() -> None:
    other = CalibrationCurve(confidence=(0.0, 1.0), agreement=(0.0, 1.0))
    policy = replace(TWO_EXITS, stop=SurvivalFloor(floor=0.3, calibration=(CURVE, other)))
    survival = policy.next_survival(1.0, active_index=0, confidence=0.4)
    assert survival == pytest.approx(0.7)
    assert not policy.stops(confidence=0.0, survival=survival)
    survival = policy.next_survival(survival, active_index=1, confidence=0.4)
    assert survival == pytest.approx(0.28)
    assert policy.stops(confidence=1.0, survival=survival)


def test_a_policy_takes_lists_and_is_still_hashable() -> None:
    given = Policy(exits=[6, 12], thresholds=[0.5], tokens=4)  # type: ignore[arg-type]
    assert {given} == {Policy(exits=(6, 12), thresholds=(0.5,), tokens=4)}
