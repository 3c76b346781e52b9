"""Fit each exit's probability of agreement with the target to its confidence in a trace.

A weak draft agrees with its target far more often than its highest probability suggests. A curve fitted to a trace converts
confidence to probability (`perfmodel/acceptance/confidence_curves.py`).

Shapes: P positions, E exits, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.confidence_curves import choose_curve, expected_calibration_error
from perfmodel.acceptance.splits import document_name
from perfmodel.acceptance.trace import Trace
from perfmodel.core.stats import INTERVAL_FRAC, Interval, resample_counts
from perfmodel.core.units import Floats, Frac, Tokens
from perfmodel.policies.policy import CalibrationCurve, Policy
from perfmodel.replay.replay import replay_prompts

NUM_FOLDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCalibration:
    """The curve of one exit, and the quality of its confidence before and after calibration."""

    exit_layer: int
    curve: CalibrationCurve
    ece_before_frac: Frac
    """Expected calibration error of the uncalibrated confidence, over bins of equal mass."""
    ece_after_frac: Frac
    """The same for calibrated confidence, with curves evaluated on prompts that they were not fitted to."""
    auc: float | None
    """Probability that an agreed position has higher confidence than a rejected one; None unless there are both."""
    agreement_frac: Frac


def calibrate_exits(trace: Trace) -> tuple[ExitCalibration, ...]:
    """The calibration of every exit of the traced draft."""
    folds = _folds(trace)
    return tuple(
        _calibrate(layer, trace.confidence[:, e].astype(np.float64), trace.accept_prob[:, e].astype(np.float64), folds)
        for e, layer in enumerate(trace.header.exit_layers)
    )


def _calibrate(exit_layer: int, confidence: Floats, agreement: Floats, folds: NDArray[np.int64]) -> ExitCalibration:
    curve, held_out = choose_curve(confidence, agreement, folds)
    return ExitCalibration(
        exit_layer=exit_layer,
        curve=curve,
        ece_before_frac=expected_calibration_error(confidence, agreement),
        ece_after_frac=expected_calibration_error(held_out, agreement),
        auc=area_under_curve(confidence, agreement),
        agreement_frac=float(agreement.mean()),
    )


def _folds(trace: Trace) -> NDArray[np.int64]:
    """The cross-validation fold of each position: by prompt, or by stretches of the text if there is only one prompt. [P]."""
    prompts = trace.header.prompts
    if len(prompts) == 1:
        return np.arange(prompts[0].num_positions) * NUM_FOLDS // prompts[0].num_positions
    return np.repeat(np.arange(len(prompts)) % NUM_FOLDS, [prompt.num_positions for prompt in prompts])


def area_under_curve(confidence: Floats, agreement: Floats) -> float | None:
    """Probability that an agreed position has higher confidence than a rejected one; ties count half.

    A position with agreement probability a counts as a agreed positions and 1 - a rejected ones.
    """
    _, level = np.unique(confidence, return_inverse=True)
    agreed, rejected = np.bincount(level, agreement), np.bincount(level, 1 - agreement)
    if agreed.sum() == 0 or rejected.sum() == 0:
        return None
    below = np.cumsum(rejected) - rejected / 2
    return float((agreed * below).sum() / (agreed.sum() * rejected.sum()))


def accepted_at_lengths(trace: Trace, exit_layer: int, lengths: Sequence[Tokens]) -> tuple[Interval, ...]:
    """Mean accepted tokens per round of a single exit at fixed draft lengths, with bootstrap intervals over documents."""
    names = [document_name(prompt.name) for prompt in trace.header.prompts]
    _, document_ids = np.unique(names, return_inverse=True)
    intervals = []
    for length in lengths:
        policy = Policy(exits=(exit_layer,), tokens=length, confidence=trace.header.confidence)
        rounds = replay_prompts(trace, policy)
        accepted = np.bincount(document_ids, [prompt.num_accepted for prompt in rounds]).astype(np.float64)
        counts = np.bincount(document_ids, [prompt.num_rounds for prompt in rounds]).astype(np.float64)
        intervals.append(bootstrap_ratio(accepted, counts))
    return tuple(intervals)


def bootstrap_ratio(numerators: Floats, denominators: Floats) -> Interval:
    """The ratio of totals over documents, with its central interval over resampled documents."""
    draws = resample_counts(len(numerators))  # [R, documents]
    ratios = (draws @ numerators) / (draws @ denominators)  # [R]
    low, high = np.quantile(ratios, [(1 - INTERVAL_FRAC) / 2, (1 + INTERVAL_FRAC) / 2])
    return Interval(value=float(numerators.sum() / denominators.sum()), low=float(low), high=float(high))
