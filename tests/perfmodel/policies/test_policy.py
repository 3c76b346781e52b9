"""Policies: what is refused and how it is said, curves, and labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.acceptance.confidence_curves import agreement_at
from perfmodel.core.errors import BadPolicy
from perfmodel.policies.policy import (
    CalibrationCurve,
    ExitPolicy,
    FixedLength,
    FloorStop,
    HeuristicLength,
    LengthRule,
    SurvivalStop,
)
from tests.strategies import curves

CURVE = CalibrationCurve(confidence=(0.2, 0.6), agreement=(0.5, 0.9))
FIXED = FixedLength(draft_cap=4)


def policy(
    layers: tuple[int, ...] = (2, 4),
    thresholds: tuple[float, ...] = (0.5,),
    length: LengthRule = FIXED,
    *,
    runs_ahead: bool = False,
    catches_up_at_once: bool = False,
) -> ExitPolicy:
    return ExitPolicy(
        exit_layers=layers,
        thresholds=thresholds,
        confidence="max-prob",
        length=length,
        runs_ahead=runs_ahead,
        catches_up_at_once=catches_up_at_once,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, r"bad policy: exits \(\): expected at least one exit, rising layer counts\."),
        ({"layers": (4, 2)}, r"exits \(4, 2\): expected at least one exit, rising"),
        ({"thresholds": ()}, "0 thresholds for 2 exits: expected one for every exit but the last, which always answers"),
        ({"thresholds": (1.5,)}, "threshold 1.5 of exit 2: expected a number from 0 to 1"),
        ({"thresholds": (float("nan"),)}, "threshold nan of exit 2"),
        ({"length": FixedLength(draft_cap=0)}, r"draft cap 0: expected at least 1 \(not to speculate is to have no policy\)"),
        ({"length": FloorStop(draft_cap=2, floor=-0.1)}, "stop floor -0.1: expected a number from 0 to 1"),
        (
            {"length": SurvivalStop(draft_cap=2, floor=0.1, calibration=(CURVE,))},
            "1 calibration curves for 2 exits: expected one for every looked-at exit",
        ),
        (
            {"layers": (4,), "thresholds": (), "runs_ahead": True},
            "running ahead of exit 4 alone: expected two exits at least: the last one always answers",
        ),
        (
            {"layers": (4,), "thresholds": (), "catches_up_at_once": True},
            "catching up at once with exit 4 alone: expected two exits at least: no token leaves before the last",
        ),
        (
            {"runs_ahead": True, "catches_up_at_once": True},
            "running ahead and catching up at once: expected one of them at most",
        ),
        ({"length": HeuristicLength(start=6, draft_cap=5)}, "heuristic start 6: expected from 1 to its cap of 5"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadPolicy, match=message):
        policy(**changes)  # type: ignore[arg-type]


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
def test_a_curve_says_the_same_to_the_last_bit_of_many_as_of_one(curve: CalibrationCurve, confidences: list[float]) -> None:
    together = agreement_at(curve, np.array(confidences, np.float64))
    assert together.tolist() == [curve(confidence) for confidence in confidences]


def test_labels_name_exits_gates_and_lengths() -> None:
    assert policy().label == "exits 2/4 at .50, 4 tokens"
    assert policy(runs_ahead=True).label == "exits 2/4 at .50, running ahead, 4 tokens"
    assert policy(catches_up_at_once=True).label == "exits 2/4 at .50, catching up at once, 4 tokens"
    assert policy((6,), (), FloorStop(draft_cap=8, floor=0.2)).label == "exit 6, up to 8 tokens, stop below 0.20"
    rule = SurvivalStop(draft_cap=8, floor=0.35, calibration=(CURVE,))
    assert policy((6,), (), rule).label == "exit 6, up to 8 tokens, stop at survival 0.35"
    assert policy((6,), (), HeuristicLength(start=5, draft_cap=9)).label == "exit 6, +2/-1 from 5, at most 9"
