"""What an exit's confidence is worth: isotonic curves from confidence to agreement, and how far what was said is off.

Isotonic over bins of equal mass, with as many bins as serve texts that the curve has not seen. Measuring and deciding both
fit such curves: a draft brings its own (`s2d/fit_confidence.py`), a trace gives others (`calibrate/fit_acceptance.py`).

Shapes: P positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perfmodel.policy import CalibrationCurve
from perfmodel.units import Frac

Floats = NDArray[np.float64]

NUM_BINS = (3, 6, 12, 24)
"""Bins to choose from; a curve has at most as many knots."""
NUM_ECE_BINS = 15


def choose_curve(confidence: Floats, agreement: Floats, fold: NDArray[np.int64]) -> tuple[CalibrationCurve, Floats]:
    """The curve of as many bins as serve unseen folds best, and what such curves say of the folds they have not seen.

    Args:
        confidence: of each position. [P].
        agreement: as for `fit_curve`. [P].
        fold: the fold of each position. [P].

    Returns:
        The curve, fitted to all positions, and an agreement said out of sample per position, [P].
    """
    unseen = {bins: _out_of_sample(confidence, agreement, fold, bins) for bins in NUM_BINS}
    best = min(NUM_BINS, key=lambda bins: float(np.mean((unseen[bins] - agreement) ** 2)))
    return fit_curve(confidence, agreement, num_bins=best), unseen[best]


def _out_of_sample(confidence: Floats, agreement: Floats, fold: NDArray[np.int64], num_bins: int) -> Floats:
    """What a curve fitted to the other folds says of each position. [P]."""
    said = confidence.copy()
    for number in np.unique(fold).tolist():
        here = fold == number
        if not here.all():
            said[here] = agreement_at(fit_curve(confidence[~here], agreement[~here], num_bins=num_bins), confidence[here])
    return said


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
