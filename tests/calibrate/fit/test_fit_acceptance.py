"""Confidence calibration recovers known curves, and its scores have known values."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.fit.fit_acceptance import (
    accepted_at_lengths,
    area_under_curve,
    bootstrap_ratio,
    calibrate_exits,
)
from perfmodel.acceptance.confidence_curves import (
    NUM_SCALED_KNOTS,
    agreement_at,
    choose_curve,
    expected_calibration_error,
    fit_curve,
    fit_scaling,
)
from perfmodel.acceptance.trace import Trace
from perfmodel.policies.policy import CalibrationCurve
from tests.strategies import TraceSpec, make_trace, traces


@settings(max_examples=60)
@given(traces(), st.integers(1, 24))
def test_a_fitted_curve_rises_around_the_mean_of_the_data(trace: Trace, num_bins: int) -> None:
    confidence, agreement = trace.confidence[:, 0].astype(np.float64), trace.accept_prob[:, 0].astype(np.float64)
    curve = fit_curve(confidence, agreement, num_bins=num_bins)
    assert len(curve.confidence) <= num_bins
    assert agreement.min() - 1e-9 <= curve.agreement[0] <= agreement.mean() + 1e-9
    assert agreement.mean() - 1e-9 <= curve.agreement[-1] <= agreement.max() + 1e-9


def test_binning_agrees_with_isotonic_regression() -> None:
    from scipy.optimize import isotonic_regression

    agreement = np.random.default_rng(3).random(24)
    curve = fit_curve(np.arange(24.0), agreement, num_bins=24)
    assert np.array(curve.agreement) == pytest.approx(np.unique(isotonic_regression(agreement).x))


def test_a_temperature_and_an_offset_are_recovered() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(40_000)
    truth = 1 / (1 + np.exp(-(0.5 * np.log(confidence / (1 - confidence)) + 0.8)))
    curve = fit_scaling(confidence, (rng.random(40_000) < truth).astype(np.float64))
    assert len(curve.confidence) == NUM_SCALED_KNOTS
    inner = (confidence > 0.05) & (confidence < 0.95)  # near 0 and 1 the odds are not linear between knots
    assert agreement_at(curve, confidence[inner]) == pytest.approx(truth[inner], abs=0.02)


@settings(max_examples=60)
@given(traces())
def test_scaling_fits_any_trace(trace: Trace) -> None:
    """Includes exits that are always right, for which full Newton steps overflow; a falling curve would be refused."""
    confidence, agreement = trace.confidence[:, 0].astype(np.float64), trace.accept_prob[:, 0].astype(np.float64)
    curve = fit_scaling(confidence, agreement)
    assert confidence.min() <= curve.confidence[0] <= curve.confidence[-1] <= confidence.max()


def test_an_exit_whose_confidence_rises_with_its_errors_gets_its_mean_agreement() -> None:
    confidence = np.linspace(0, 1, 200)
    curve = fit_scaling(confidence, (confidence < 0.25).astype(np.float64))
    assert curve.agreement == (0.25,)


def test_scaling_is_chosen_for_few_positions_and_bins_if_scaling_does_not_fit() -> None:
    rng = np.random.default_rng(5)

    def chosen(number: int, truth: Callable[[np.ndarray], np.ndarray]) -> CalibrationCurve:
        confidence = rng.random(number)
        agreed = (rng.random(number) < truth(confidence)).astype(np.float64)
        return choose_curve(confidence, agreed, np.arange(number) % 4)[0]

    few = [chosen(80, lambda confidence: confidence) for _ in range(20)]
    assert any(len(curve.confidence) == NUM_SCALED_KNOTS for curve in few)
    steps = [chosen(4000, lambda confidence: np.where(confidence < 0.3, 0.2, 0.6)) for _ in range(5)]
    assert all(len(curve.confidence) < NUM_SCALED_KNOTS for curve in steps)


def test_a_biased_confidence_is_corrected_on_held_out_prompts() -> None:
    """Exits that agree with probability 0.55 + 0.4 c - 0.2 at confidence c: see `make_trace`."""
    trace = make_trace(TraceSpec(num_positions=[250] * 40, max_new_tokens=250))
    for exit_id, calibration in enumerate(calibrate_exits(trace)):
        assert calibration.ece_before_frac > 0.1
        assert calibration.ece_after_frac < 0.03
        truth = (0.55, 0.65, 0.75, 0.85)[exit_id]
        assert calibration.agreement_frac == pytest.approx(truth, abs=0.02)
        assert calibration.curve(0.5) == pytest.approx(truth, abs=0.04)
        assert calibration.curve(0.9) > calibration.curve(0.1) + 0.2


def test_a_trace_of_one_prompt_is_calibrated() -> None:
    (calibration,) = calibrate_exits(make_trace(TraceSpec(num_positions=[50], exit_layers=(3,), agreement=(0.5,))))
    assert calibration.exit_layer == 3


@pytest.mark.parametrize(
    ("confidence", "agreement", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 1.0),
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 0], 0.0),
        ([0.1, 0.1, 0.1, 0.1], [1, 0, 1, 0], 0.5),
        ([0.1, 0.2], [0.5, 0.5], 0.5),
        ([0.1, 0.2], [1, 1], None),
    ],
)
def test_area_under_the_curve_of_known_cases(confidence: list[float], agreement: list[float], expected: float | None) -> None:
    assert area_under_curve(np.array(confidence), np.array(agreement, np.float64)) == expected


def test_the_calibration_error_is_the_bias_of_the_confidence() -> None:
    agreement = np.tile([0.0, 1.0], 500)
    assert expected_calibration_error(np.full(1000, 0.5), agreement, num_bins=1) == pytest.approx(0)
    assert expected_calibration_error(np.full(1000, 0.9), agreement, num_bins=1) == pytest.approx(0.4)


def test_accepted_tokens_grow_with_the_draft_length_and_lie_in_their_intervals() -> None:
    trace = make_trace(TraceSpec(num_positions=[60] * 10, max_new_tokens=60))
    intervals = accepted_at_lengths(trace, 6, (1, 3, 6))
    assert [interval.value for interval in intervals] == sorted(interval.value for interval in intervals)
    assert all(interval.low < interval.value < interval.high for interval in intervals)


def test_prompts_of_one_document_are_resampled_together() -> None:
    trace = make_trace(TraceSpec(num_positions=[60] * 10, max_new_tokens=60))
    prompts = tuple(replace(prompt, name=f"book:{number}") for number, prompt in enumerate(trace.header.prompts))
    one_document = replace(trace, header=replace(trace.header, prompts=prompts))
    (separate,) = accepted_at_lengths(trace, 6, [3])
    (together,) = accepted_at_lengths(one_document, 6, [3])
    assert together.low == together.value == together.high == pytest.approx(separate.value)


def test_a_bootstrap_of_equal_documents_has_no_width() -> None:
    interval = bootstrap_ratio(np.full(8, 6.0), np.full(8, 2.0))
    assert (interval.low, interval.value, interval.high) == (3.0, 3.0, 3.0)
