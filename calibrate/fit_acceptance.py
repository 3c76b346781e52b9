"""AcceptanceTrace -> how far an exit's confidence tells whether the target agrees.

A weak draft agrees with its target far more often than its own largest probability says, so a confidence becomes a
probability only through a curve fitted to a trace: isotonic over bins of equal mass, with as many bins as serve prompts
that the curve has not seen.

Shapes: P positions, E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.interval import INTERVAL_FRAC, Interval
from perfmodel.policy import CalibrationCurve, ExitPolicy, FixedLength
from perfmodel.replay import replay
from perfmodel.tape import agreement_at
from perfmodel.trace import AcceptanceTrace
from perfmodel.units import Frac, Tokens

Floats = NDArray[np.float64]

NUM_BINS = (3, 6, 12, 24)
"""Bins to choose from; a curve has at most as many knots."""
NUM_FOLDS = 4
NUM_ECE_BINS = 15
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


def calibrate_exits(trace: AcceptanceTrace) -> tuple[ExitCalibration, ...]:
    """A calibration of every exit of the traced draft."""
    fold = _folds(trace)
    return tuple(
        _calibrate(layer, trace.confidence[:, e].astype(np.float64), trace.accept_prob[:, e].astype(np.float64), fold)
        for e, layer in enumerate(trace.header.draft.exit_layers)
    )


def _calibrate(exit_layer: int, confidence: Floats, agreement: Floats, fold: NDArray[np.int64]) -> ExitCalibration:
    unseen = {bins: _out_of_sample(confidence, agreement, fold, bins) for bins in NUM_BINS}
    best = min(NUM_BINS, key=lambda bins: float(np.mean((unseen[bins] - agreement) ** 2)))
    return ExitCalibration(
        exit_layer=exit_layer,
        curve=fit_curve(confidence, agreement, num_bins=best),
        ece_before_frac=expected_calibration_error(confidence, agreement),
        ece_after_frac=expected_calibration_error(unseen[best], agreement),
        auc=area_under_curve(confidence, agreement),
        agreement_frac=float(agreement.mean()),
    )


def _folds(trace: AcceptanceTrace) -> NDArray[np.int64]:
    """The fold of each position: whole prompts, or stretches of the text where there is one prompt only. [P]."""
    prompts = trace.header.prompts
    if len(prompts) == 1:
        return np.arange(prompts[0].num_positions) * NUM_FOLDS // prompts[0].num_positions
    return np.repeat(np.arange(len(prompts)) % NUM_FOLDS, [prompt.num_positions for prompt in prompts])


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


def accepted_at_lengths(trace: AcceptanceTrace, exit_layer: int, lengths: Sequence[Tokens]) -> tuple[Interval, ...]:
    """Mean accepted tokens per round of one exit alone, at fixed draft lengths, with bootstrap intervals over prompts."""
    found = []
    for length in lengths:
        rule = FixedLength(draft_cap=length)
        policy = ExitPolicy(exit_layers=(exit_layer,), thresholds=(), confidence=trace.header.confidence, length=rule)
        rounds = replay(trace, policy)
        accepted, number = (np.array([getattr(one, name) for one in rounds]) for name in ("num_accepted", "num_rounds"))
        found.append(bootstrap_ratio(accepted, number))
    return tuple(found)


def bootstrap_ratio(above: Floats, below: Floats) -> Interval:
    """A ratio of totals over prompts, and its central interval over prompts drawn with replacement."""
    drawn = np.random.default_rng(SEED).integers(0, len(above), (NUM_RESAMPLES, len(above)))
    ratios = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - INTERVAL_FRAC) / 2, (1 + INTERVAL_FRAC) / 2])
    return Interval(value=float(above.sum() / below.sum()), low=float(low), high=float(high))
