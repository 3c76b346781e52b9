"""Trace -> how far an exit's confidence tells whether the target agrees.

A weak draft agrees with its target far more often than its own largest probability says, so a confidence becomes a
probability only through a curve fitted to a trace (`perfmodel/acceptance/confidence_curves.py`).

Shapes: P positions, E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.confidence_curves import choose_curve, expected_calibration_error
from perfmodel.acceptance.trace import Trace
from perfmodel.core.stats import INTERVAL_FRAC, Interval
from perfmodel.core.units import Floats, Frac, Tokens
from perfmodel.policies.policy import CalibrationCurve, Policy
from perfmodel.replay.replay import replay_prompts

NUM_FOLDS = 4
NUM_RESAMPLES = 1000
SEED = 20260701


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCalibration:
    """One exit's curve, and how well its confidence did before and after."""

    exit_layer: int
    curve: CalibrationCurve
    ece_before_frac: Frac
    """Expected calibration error of the bare confidence, over bins of equal mass."""
    ece_after_frac: Frac
    """The same of curves that are judged on prompts they were not fitted to."""
    auc: float | None
    """Chance that an agreed position has more confidence than a refused one; None when there are not both."""
    agreement_frac: Frac


def calibrate_exits(trace: Trace) -> tuple[ExitCalibration, ...]:
    """A calibration of every exit of the traced draft."""
    fold = _folds(trace)
    return tuple(
        _calibrate(layer, trace.confidence[:, e].astype(np.float64), trace.accept_prob[:, e].astype(np.float64), fold)
        for e, layer in enumerate(trace.header.exit_layers)
    )


def _calibrate(exit_layer: int, confidence: Floats, agreement: Floats, fold: NDArray[np.int64]) -> ExitCalibration:
    curve, unseen = choose_curve(confidence, agreement, fold)
    return ExitCalibration(
        exit_layer=exit_layer,
        curve=curve,
        ece_before_frac=expected_calibration_error(confidence, agreement),
        ece_after_frac=expected_calibration_error(unseen, agreement),
        auc=area_under_curve(confidence, agreement),
        agreement_frac=float(agreement.mean()),
    )


def _folds(trace: Trace) -> NDArray[np.int64]:
    """The fold of each position: whole prompts, or stretches of the text where there is one prompt only. [P]."""
    prompts = trace.header.prompts
    if len(prompts) == 1:
        return np.arange(prompts[0].num_positions) * NUM_FOLDS // prompts[0].num_positions
    return np.repeat(np.arange(len(prompts)) % NUM_FOLDS, [prompt.num_positions for prompt in prompts])


def area_under_curve(confidence: Floats, agreement: Floats) -> float | None:
    """Chance that an agreed position has more confidence than a refused one, ties counted half.

    A position that agrees with probability a counts as a of one and 1 - a of the other.
    """
    _, level = np.unique(confidence, return_inverse=True)
    agreed, refused = np.bincount(level, agreement), np.bincount(level, 1 - agreement)
    if agreed.sum() == 0 or refused.sum() == 0:
        return None
    below = np.cumsum(refused) - refused / 2
    return float((agreed * below).sum() / (agreed.sum() * refused.sum()))


def accepted_at_lengths(trace: Trace, exit_layer: int, lengths: Sequence[Tokens]) -> tuple[Interval, ...]:
    """Mean accepted tokens per round of one exit alone, at fixed draft lengths, with bootstrap intervals over prompts."""
    found = []
    for length in lengths:
        policy = Policy(exits=(exit_layer,), tokens=length, confidence=trace.header.confidence)
        rounds = replay_prompts(trace, policy)
        accepted, number = (np.array([getattr(one, name) for one in rounds]) for name in ("num_accepted", "num_rounds"))
        found.append(bootstrap_ratio(accepted, number))
    return tuple(found)


def bootstrap_ratio(above: Floats, below: Floats) -> Interval:
    """A ratio of totals over prompts, and its central interval over prompts drawn with replacement."""
    drawn = np.random.default_rng(SEED).integers(0, len(above), (NUM_RESAMPLES, len(above)))
    ratios = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - INTERVAL_FRAC) / 2, (1 + INTERVAL_FRAC) / 2])
    return Interval(value=float(above.sum() / below.sum()), low=float(low), high=float(high))
