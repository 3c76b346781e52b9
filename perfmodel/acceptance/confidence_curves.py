"""What an exit's confidence is worth: curves from confidence to agreement, and how far what was said is off.

Isotonic over bins of equal mass, with as many bins as serve texts that the curve has not seen; or, of few texts, two numbers, a
temperature and an offset, where these clearly serve unseen texts better. Measuring and deciding both fit such curves: a
draft brings its own (`s2d/training/calibrate_draft.py`), a trace gives others (`calibrate/fit/fit_acceptance.py`).

Shapes: P positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.core.units import Floats, Frac
from perfmodel.policies.policy import CalibrationCurve

NUM_BINS = (3, 6, 12, 24)
"""Bins to choose from; a curve has at most as many knots."""
NUM_ECE_BINS = 15
NUM_SCALED_KNOTS = 33
_LEAST_ODDS = 1e-4
"""Confidences are kept so far from 0 and 1, where log odds have no end."""
_PRIOR_POSITIONS = 1.0
"""Weight of temperature 1 and no offset, so that texts where an exit is always right have a curve too."""
_NEWTON_STEPS = 30
_LONGEST_STEP = 0.5
"""Of Newton's, in both numbers: whole ones overshoot where exits are nearly always right."""

Fit: TypeAlias = Callable[[Floats, Floats], CalibrationCurve]
"""From confidence and agreement, [P] each."""


def choose_curve(confidence: Floats, agreement: Floats, fold: NDArray[np.int64]) -> tuple[CalibrationCurve, Floats]:
    """The curve that serves unseen folds best, and what such curves say of the folds they have not seen.

    Args:
        confidence: of each position. [P].
        agreement: as for `fit_curve`. [P].
        fold: the fold of each position. [P].

    Returns:
        The curve, fitted to all positions, and an agreement said out of sample per position, [P].
    """

    def unseen(fit: Fit) -> Floats:
        return _out_of_sample(confidence, agreement, fold, fit)

    isotonic: list[Fit] = [partial(fit_curve, num_bins=bins) for bins in NUM_BINS]
    said, fit = min(((unseen(fit), fit) for fit in isotonic), key=lambda one: float(np.mean((one[0] - agreement) ** 2)))
    scaled = unseen(fit_scaling)
    if _is_clearly_better(scaled, said, agreement, fold):
        said, fit = scaled, fit_scaling
    return fit(confidence, agreement), said


def _is_clearly_better(one: Floats, other: Floats, agreement: Floats, fold: NDArray[np.int64]) -> bool:
    """Whether one Brier score is below another by more than two standard errors over the folds."""
    gain = (other - agreement) ** 2 - (one - agreement) ** 2
    gains = [float(gain[fold == number].mean()) for number in np.unique(fold).tolist()]
    return len(gains) > 1 and float(np.mean(gains)) > 2 * float(np.std(gains, ddof=1)) / len(gains) ** 0.5


def _out_of_sample(confidence: Floats, agreement: Floats, fold: NDArray[np.int64], fit: Fit) -> Floats:
    """What a curve fitted to the other folds says of each position. [P]."""
    said = confidence.copy()
    for number in np.unique(fold).tolist():
        here = fold == number
        if not here.all():
            said[here] = agreement_at(fit(confidence[~here], agreement[~here]), confidence[here])
    return said


def fit_scaling(confidence: Floats, agreement: Floats) -> CalibrationCurve:
    """Log odds of agreement as those of the confidence over a temperature, and an offset (Platt 1999; arXiv 1706.04599, 4.2).

    Knots lie at quantiles of the confidence, with straight lines between.

    Args:
        confidence: of each position. [P].
        agreement: as for `fit_curve`. [P].
    """
    terms = np.stack([_log_odds(confidence), np.ones(len(confidence))], axis=1)
    prior = np.array([1.0, 0.0])
    factors = prior.copy()
    for _ in range(_NEWTON_STEPS):
        said = _from_log_odds(terms @ factors)
        gradient = terms.T @ (agreement - said) - _PRIOR_POSITIONS * (factors - prior)
        curvature = (terms.T * (said * (1 - said))) @ terms + _PRIOR_POSITIONS * np.eye(2)
        factors += np.linalg.solve(curvature, gradient).clip(-_LONGEST_STEP, _LONGEST_STEP)
    slope, offset = factors.tolist()
    if slope < 0:  # the surer, the more often wrong: no rising curve says more than the mean
        return fit_curve(confidence, agreement, num_bins=1)
    knots = np.unique(np.quantile(confidence, np.linspace(0, 1, NUM_SCALED_KNOTS)))
    said = _from_log_odds(slope * _log_odds(knots) + offset)
    return CalibrationCurve(confidence=tuple(knots.tolist()), agreement=tuple(np.maximum.accumulate(said).tolist()))


def _log_odds(confidence: Floats) -> Floats:
    kept = np.clip(confidence, _LEAST_ODDS, 1 - _LEAST_ODDS)
    odds: Floats = np.log(kept / (1 - kept))
    return odds


def _from_log_odds(odds: Floats) -> Floats:
    probability: Floats = (1 + np.tanh(odds / 2)) / 2
    return probability


def fit_curve(confidence: Floats, agreement: Floats, *, num_bins: int) -> CalibrationCurve:
    """Isotonic regression over bins of equal mass: neighbours that fall, or do not rise in confidence, are pooled.

    Args:
        confidence: of each position. [P].
        agreement: 1 where the target agreed, else 0; under the ratio test its acceptance probability. [P].
        num_bins: at most this many knots.
    """
    order = np.argsort(confidence, kind="stable")
    pooled: list[tuple[int, float, float]] = []  # positions, mean confidence, mean agreement
    for part in np.array_split(order, min(num_bins, len(order))):
        block = (len(part), float(confidence[part].mean()), float(agreement[part].mean()))
        while pooled and (block[1] <= pooled[-1][1] or block[2] < pooled[-1][2]):
            block = _pool(pooled.pop(), block)
        pooled.append(block)
    return CalibrationCurve(
        confidence=tuple(mean for _, mean, _ in pooled), agreement=tuple(min(1.0, agreed) for _, _, agreed in pooled)
    )


def _pool(one: tuple[int, float, float], other: tuple[int, float, float]) -> tuple[int, float, float]:
    number = one[0] + other[0]
    mean_confidence, mean_agreement = ((one[i] * one[0] + other[i] * other[0]) / number for i in (1, 2))
    return number, mean_confidence, mean_agreement


def expected_calibration_error(said: Floats, agreement: Floats, *, num_bins: int = NUM_ECE_BINS) -> Frac:
    """Mean distance between said and seen agreement over bins of equal mass (ECE)."""
    parts = np.array_split(np.argsort(said, kind="stable"), min(num_bins, len(said)))
    return float(sum(abs(said[part].sum() - agreement[part].sum()) for part in parts) / len(said))


def agreement_at(curve: CalibrationCurve, confidence: Floats) -> Floats:
    """The curve at many confidences, equal to the last bit to what it says of each alone."""
    x, y = np.array(curve.confidence), np.array(curve.agreement)
    if len(x) == 1:
        return np.full(len(confidence), y[0])
    right = np.searchsorted(x, confidence, side="right")
    inner = np.clip(right, 1, len(x) - 1)
    x0, y0 = x[inner - 1], y[inner - 1]
    line = y0 + (y[inner] - y0) * (confidence - x0) / (x[inner] - x0)
    found: Floats = np.where(right == 0, y[0], np.where(right == len(x), y[-1], line))
    return found
