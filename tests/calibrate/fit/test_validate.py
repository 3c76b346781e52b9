"""Predictions of published speeds and speedups."""

import math
import statistics
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.fit import validate as validate_module
from calibrate.fit.validate import POINTS, published_format, published_points, validate
from perfmodel.core.errors import BelowLowerBound, UserInputError
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.models.find_model import find_model
from perfmodel.results.validation import VALIDATION_FILE, DeviceError, PublishedPoint, Validation


@pytest.fixture(scope="module")
def validation() -> Validation:
    return validate()


def held_out_points(validation: Validation, device: DeviceError) -> list[PublishedPoint]:
    """The held-out points behind one line of the summary."""
    key = (device.device, device.mode, "held-out")
    return [point for point in validation.points if (point.device, point.mode, point.role) == key]


def eager_points(validation: Validation, note: str = "") -> list[PublishedPoint]:
    return [point for point in validation.points if point.mode == "eager" and note in point.note]


def host_layer_s(point: PublishedPoint) -> float:
    """Launch seconds per layer, if a step takes nothing else but the cost per round."""
    costs = find_hardware(point.device).launch_costs("eager")
    return (1 / point.published_tokens_per_s - costs.sync_s - costs.round_s) / find_model(point.model).num_layers


def test_launch_costs_are_fitted_to_two_points_and_their_error_to_three(validation: Validation) -> None:
    fitted = [host_layer_s(point) for point in eager_points(validation, "launches per layer")]
    others = [host_layer_s(point) for point in eager_points(validation, "scatter of hosts")]
    costs = find_hardware("a100").launch_costs("eager")
    assert (len(fitted), len(others)) == (2, 1)
    assert costs.host_layer_s == pytest.approx(statistics.geometric_mean(fitted), rel=0.01)
    squares = [math.log(seconds / costs.host_layer_s) ** 2 for seconds in fitted + others]
    assert costs.host_error_frac == pytest.approx(math.sqrt(math.fsum(squares) / (len(squares) - 1)), rel=0.05)


def test_every_published_eager_speed_lies_in_its_interval(validation: Validation) -> None:
    points = eager_points(validation)
    assert len({point.device for point in points}) >= 4
    assert sum(point.role == "held-out" for point in points) >= 3
    assert all(point.is_covered for point in points)
    assert all(abs(point.error_frac) < 0.16 for point in points if point.note != "scatter of hosts")


def test_only_held_out_points_are_counted(validation: Validation) -> None:
    for device in validation.devices:
        held_out = held_out_points(validation, device)
        assert device.num_points == len(held_out)
        assert device.mape_frac == pytest.approx(sum(abs(point.error_frac) for point in held_out) / len(held_out))
    assert all(point.note for point in validation.points if point.role == "used")
    assert all(point.source for point in validation.points)


def test_held_out_points_are_within_7_percent_on_the_a100(validation: Validation) -> None:
    [a100] = [error for error in validation.devices if (error.device, error.mode) == ("A100-80GB-SXM", "graph")]
    assert a100.num_points >= 10
    assert a100.mape_frac <= 0.07


def test_about_90_percent_of_held_out_points_lie_in_their_intervals(validation: Validation) -> None:
    [a100] = [error for error in validation.devices if (error.device, error.mode) == ("A100-80GB-SXM", "graph")]
    assert 0.85 <= a100.covered_frac <= 0.97
    for device in validation.devices:
        held_out = held_out_points(validation, device)
        off = [abs(math.log(point.predicted_tokens_per_s / point.published_tokens_per_s)) for point in held_out]
        within = [size <= point.interval_frac for size, point in zip(off, held_out, strict=True)]
        assert device.covered_frac == sum(within) / len(within)


def test_bytes_over_bandwidth_alone_predict_speeds_that_are_far_too_high(validation: Validation) -> None:
    """About 40 % on these points (reference/planners.md, section 1), and more for llama.cpp with 14B on an A100."""
    for device in (error for error in validation.devices if error.mode == "graph"):
        assert -0.7 < device.bound_mean_error_frac < -0.25
    first = validation.points[0]
    seven_billion_bf16_bytes = 2 * 6.61e9 + 105 * 524_288
    assert first.bound_tokens_per_s == pytest.approx(2.039e12 / seven_billion_bf16_bytes, rel=0.01)


def test_the_speedups_of_s2d_agree_better_with_graphs_than_with_eager_launches(validation: Validation) -> None:
    errors = {
        (explanation.device, explanation.mode): explanation.mean_abs_error_frac for explanation in validation.explanations
    }
    for device in {device for device, _ in errors}:
        assert errors[device, "graph"] < errors[device, "eager"]
    assert min(errors.values()) < 0.05
    assert [explanation.mean_abs_error_frac for explanation in validation.explanations] == sorted(errors.values())


def test_a_prediction_that_is_too_slow_has_a_positive_error(validation: Validation) -> None:
    for point in validation.points:
        assert (point.error_frac > 0) == (point.predicted_tokens_per_s < point.published_tokens_per_s)


def test_the_command_prints_and_writes_the_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], validation: Validation
) -> None:
    path = tmp_path / "validation.json"
    assert main_plan(["validate", "-o", str(path)]) == 0
    assert "explained best by" in capsys.readouterr().out
    assert VALIDATION_FILE.read(path).record == validation


def test_a_published_point_below_the_lower_bound_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama-2-70B at five times the bandwidth of an H200, from a list of records (reference/planners.md, section 6)."""
    points = tmp_path / "points.csv"
    header, first = POINTS.read_text(encoding="utf-8").splitlines()[:2]
    points.write_text(
        f"{header}\n{first}\nllama-2-70b,h200,1,fp16,graph,105,175,held-out,a list of records\n", encoding="utf-8"
    )
    monkeypatch.setattr(validate_module, "POINTS", points)
    with pytest.raises(
        BelowLowerBound, match=r"line 3 of points.csv, llama-2-70b on 1 x H200-SXM: a verify pass of 1 row over"
    ):
        list(published_points())


def test_points_from_which_a_share_was_derived_are_predicted_exactly(validation: Validation) -> None:
    derived = [point for point in validation.points if "share" in point.note]
    assert len(derived) == 4
    for point in derived:
        assert point.error_frac == pytest.approx(0, abs=1e-3)


def test_held_out_models_with_large_vocabularies_lie_in_their_intervals(validation: Validation) -> None:
    """Llama-3-8B Q4_K_M with llama.cpp: 111.74 tokens/s on an RTX 3090, 127.74 on an RTX 4090; a 4-bit head would miss both."""
    held_out = [
        point for point in validation.points if point.role == "held-out" and find_model(point.model).vocab_size > 100_000
    ]
    formats = {(point.weights, point.device) for point in held_out}
    assert {device for weights, device in formats if weights == "q4_k_m"} == {"RTX-3090", "RTX-4090"}
    assert {device for weights, device in formats if weights in ("fp16", "bf16")} == {"RTX-3090", "RTX-4090", "H100-SXM"}
    assert all(point.is_covered for point in held_out)


def test_an_unknown_weight_format_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"weights 'awq': expected a dtype or one of gpt-fast int4, gpt-fast int8"):
        published_format("awq", find_model("llama-3-8b"))
