"""Calibration curves: how often the target agrees, by the confidence of an exit.

A curve is an isotonic regression over bins of equal mass; the number of bins is chosen by cross-validation. With few texts, a
temperature and an offset are used instead if they are clearly better on unseen texts. A calibrated draft stores its own curves
(`s2d/training/calibrate_draft.py`); `calibrate/fit/fit_acceptance.py` fits curves to a trace.

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
"""Numbers of bins to choose from; a curve has at most as many knots."""
NUM_ECE_BINS = 15
NUM_SCALED_KNOTS = 33
_MIN_PROBABILITY = 1e-4
"""Confidences are clipped to this and to 1 minus this: log odds of 0 and 1 are infinite."""
_PRIOR_POSITIONS = 1.0
"""Weight of the prior, temperature 1 and offset 0. It keeps the fit finite for an exit that is always right."""
_NEWTON_STEPS = 30
_MAX_NEWTON_STEP = 0.5
"""Largest change of either number in a step. Full steps overshoot for exits that are nearly always right."""

Fit: TypeAlias = Callable[[Floats, Floats], CalibrationCurve]
"""From confidence and agreement, [P] each."""


def choose_curve(confidence: Floats, agreement: Floats, fold: NDArray[np.int64]) -> tuple[CalibrationCurve, Floats]:
    """The kind of curve that predicts unseen folds best, fitted to all positions.

    Args:
        confidence: by position. [P].
        agreement: as for `fit_curve`. [P].
        fold: number of the fold of each position. [P].

    Returns:
        The curve, and the agreement predicted at each position by a curve fitted to the other folds, [P].
    """
    fits: list[Fit] = [partial(fit_curve, num_bins=bins) for bins in NUM_BINS]
    predictions = [_out_of_sample(confidence, agreement, fold, fit) for fit in fits]
    best = int(np.argmin([np.mean((predicted - agreement) ** 2) for predicted in predictions]))
    scaled = _out_of_sample(confidence, agreement, fold, fit_scaling)
    if _is_clearly_better(scaled, predictions[best], agreement, fold):
        return fit_scaling(confidence, agreement), scaled
    return fits[best](confidence, agreement), predictions[best]


def _is_clearly_better(candidate: Floats, current: Floats, agreement: Floats, fold: NDArray[np.int64]) -> bool:
    """Whether the candidate's Brier score is lower by more than two standard errors over the folds."""
    gain = (current - agreement) ** 2 - (candidate - agreement) ** 2
    gains = [float(gain[fold == number].mean()) for number in np.unique(fold).tolist()]
    return len(gains) > 1 and float(np.mean(gains)) > 2 * float(np.std(gains, ddof=1)) / len(gains) ** 0.5


def _out_of_sample(confidence: Floats, agreement: Floats, fold: NDArray[np.int64], fit: Fit) -> Floats:
    """Agreement at each position, predicted by a curve fitted to the other folds. [P]."""
    predicted = confidence.copy()
    for number in np.unique(fold).tolist():
        is_in_fold = fold == number
        if not is_in_fold.all():
            curve = fit(confidence[~is_in_fold], agreement[~is_in_fold])
            predicted[is_in_fold] = agreement_at(curve, confidence[is_in_fold])
    return predicted


def fit_scaling(confidence: Floats, agreement: Floats) -> CalibrationCurve:
    """Platt scaling: log odds of agreement = log odds of confidence / temperature + offset.

    Platt 1999; arXiv 1706.04599, section 4.2. Knots lie at quantiles of the confidence, with straight lines between them.

    Args:
        confidence: by position. [P].
        agreement: as for `fit_curve`. [P].
    """
    terms = np.stack([_log_odds(confidence), np.ones(len(confidence))], axis=1)
    prior = np.array([1.0, 0.0])
    factors = prior.copy()
    for _ in range(_NEWTON_STEPS):
        predicted = _from_log_odds(terms @ factors)
        gradient = terms.T @ (agreement - predicted) - _PRIOR_POSITIONS * (factors - prior)
        curvature = (terms.T * (predicted * (1 - predicted))) @ terms + _PRIOR_POSITIONS * np.eye(2)
        factors += np.linalg.solve(curvature, gradient).clip(-_MAX_NEWTON_STEP, _MAX_NEWTON_STEP)
    slope, offset = factors.tolist()
    if slope < 0:  # agreement falls with confidence: no rising curve is better than the mean
        return fit_curve(confidence, agreement, num_bins=1)
    knots = np.unique(np.quantile(confidence, np.linspace(0, 1, NUM_SCALED_KNOTS)))
    at_knots = _from_log_odds(slope * _log_odds(knots) + offset)
    return CalibrationCurve(confidence=tuple(knots.tolist()), agreement=tuple(np.maximum.accumulate(at_knots).tolist()))


def _log_odds(confidence: Floats) -> Floats:
    clipped = np.clip(confidence, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def _from_log_odds(odds: Floats) -> Floats:
    probability: Floats = (1 + np.tanh(odds / 2)) / 2
    return probability


def fit_curve(confidence: Floats, agreement: Floats, *, num_bins: int) -> CalibrationCurve:
    """Isotonic regression over bins of equal mass. Neighbours are pooled until confidence rises and agreement never falls.

    Args:
        confidence: by position. [P].
        agreement: 1 where the target agreed, else 0; under the ratio test, the acceptance probability. [P].
        num_bins: maximum number of knots of the curve.
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


def _pool(lower: tuple[int, float, float], upper: tuple[int, float, float]) -> tuple[int, float, float]:
    number = lower[0] + upper[0]
    mean_confidence, mean_agreement = ((lower[i] * lower[0] + upper[i] * upper[0]) / number for i in (1, 2))
    return number, mean_confidence, mean_agreement


def expected_calibration_error(predicted: Floats, agreement: Floats, *, num_bins: int = NUM_ECE_BINS) -> Frac:
    """Mean distance between predicted and observed agreement over bins of equal mass (ECE)."""
    parts = np.array_split(np.argsort(predicted, kind="stable"), min(num_bins, len(predicted)))
    return float(sum(abs(predicted[part].sum() - agreement[part].sum()) for part in parts) / len(predicted))


def agreement_at(curve: CalibrationCurve, confidence: Floats) -> Floats:
    """The curve at many confidences; each value equals `curve(confidence)` bit for bit. [P] -> [P]."""
    x, y = np.array(curve.confidence), np.array(curve.agreement)
    if len(x) == 1:
        return np.full(len(confidence), y[0])
    right = np.searchsorted(x, confidence, side="right")
    inner = np.clip(right, 1, len(x) - 1)
    x0, y0 = x[inner - 1], y[inner - 1]
    line = y0 + (y[inner] - y0) * (confidence - x0) / (x[inner] - x0)
    agreement: Floats = np.where(right == 0, y[0], np.where(right == len(x), y[-1], line))
    return agreement
