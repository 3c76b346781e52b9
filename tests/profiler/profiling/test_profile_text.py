"""Tables and warnings of a profile."""

from dataclasses import replace

import pytest

from perfmodel.passes.kernels import STANDARD_KERNELS, KernelTrial
from perfmodel.passes.passes import PassSample, PassSamples
from perfmodel.policies.policy import CalibrationCurve
from profiler.latency.pass_log import PassLog
from profiler.profiling.profile_text import acceptance_text, kernels_text, latency_warnings, off_path_text
from s2d.loading.sidecar import Calibration
from tests.calibrate.factories import DRAFT, TARGET
from tests.strategies import TraceSpec, make_trace

TRACE = make_trace(TraceSpec(num_positions=[250] * 20, max_new_tokens=250))
FLAT = CalibrationCurve(confidence=(0.5,), agreement=(0.5,))


def calibration(kind: str) -> Calibration:
    """Exits agree with probability 0.55 + 0.4 c - 0.2 at confidence c, and 0.1 more with each exit: see `make_trace`."""
    agreements = [0.35 + 0.1 * exit_id for exit_id in range(len(TRACE.header.exit_layers))]
    curves = tuple(CalibrationCurve(confidence=(0.0, 1.0), agreement=(low, min(1.0, low + 0.4))) for low in agreements)
    return Calibration(confidence=kind, curves=curves, targets=("any",), num_positions=100)


def test_the_calibration_of_the_draft_is_compared_with_the_trace() -> None:
    header, _, *lines = acceptance_text(TRACE, calibration("max-prob")).splitlines()
    assert header.endswith("ECE, uncalibrated  ECE, calibrated")
    for line in lines:
        *_, uncalibrated, _, calibrated, _ = line.split()
        assert float(uncalibrated) > 8.0
        assert float(calibrated) < 5.0


def test_a_wrong_calibration_has_a_large_error() -> None:
    (wrong,) = (Calibration(confidence="max-prob", curves=(FLAT,) * 4, targets=("any",), num_positions=1),)
    last = acceptance_text(TRACE, wrong).splitlines()[-1]
    assert float(last.split()[-2]) > 20.0


def test_no_error_is_shown_without_a_calibration_of_this_confidence() -> None:
    plain = acceptance_text(TRACE, None)
    assert "ECE" not in plain
    assert acceptance_text(TRACE, calibration("margin")) == plain


def test_off_path_tokens_are_counted_and_too_few_are_reported() -> None:
    assert off_path_text(TRACE) == []
    many, few = (make_trace(TraceSpec(num_positions=[250], num_off_path=number)) for number in (4000, 40))
    [enough] = off_path_text(many)
    assert enough.startswith("4000 tokens off the target's path, ")
    assert enough.endswith("of them drafted by the deepest exit")
    [too_few] = off_path_text(few)
    assert too_few.endswith("too few, 100 are needed, so plans use the confidences of the text itself")


def test_measured_kernels_are_shown_with_their_gain() -> None:
    fused = replace(STANDARD_KERNELS, norm="fused")
    seconds = {"draft_head_s": 0.0, "target_head_s": 0.0}
    trials = [
        KernelTrial(kernels=STANDARD_KERNELS, draft_layer_s=2e-5, target_layer_s=2e-5, **seconds),
        KernelTrial(kernels=fused, draft_layer_s=1e-5, target_layer_s=1e-5, **seconds),
    ]
    assert kernels_text(fused, (), DRAFT, TARGET) == "kernels  input-major,products,fused"
    assert kernels_text(STANDARD_KERNELS, trials, DRAFT, TARGET) == "kernels  input-major,products,two-step, the fastest of 2"
    gain = "a round takes 50.0 % less than with input-major,products,two-step"
    assert kernels_text(fused, trials, DRAFT, TARGET) == f"kernels  input-major,products,fused, the fastest of 2: {gain}"


@pytest.mark.parametrize("pause_s", [10.0, 36_000.0, 1e300])
def test_a_pause_is_warned_about_and_hides_no_other_warning(pause_s: float) -> None:
    unsteady = (4e-3, 5e-3, 6e-3) * 20
    log = PassLog()
    log.add(PassSamples.from_passes(PassSample("verify", 0, 1, 9, 1, seconds) for seconds in (*unsteady, pause_s)))
    scatter, paused = latency_warnings(log, unseen=())
    assert scatter.startswith("verify of 1 row: interquartile range 40.0 % of the median, 61 samples")
    assert paused.startswith("1 verify pass of ")
    assert paused.endswith("was left out: was the process stopped, or the machine suspended?")
