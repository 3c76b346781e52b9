"""Published speeds, predicted."""

from pathlib import Path

import pytest

from calibrate.cli import main_plan
from calibrate.validate import validate
from perfmodel.artifact import read_record
from perfmodel.validation import VALIDATION_SCHEMA, VALIDATION_VERSION, Validation


@pytest.fixture(scope="module")
def validation() -> Validation:
    return validate()


def test_points_that_proved_nothing_are_not_counted(validation: Validation) -> None:
    for device in validation.devices:
        held_out = [one for one in validation.points if one.device == device.device and one.role == "held-out"]
        assert device.num_points == len(held_out)
        assert device.mape_frac == pytest.approx(sum(abs(one.error_frac) for one in held_out) / len(held_out))
    assert all(one.note for one in validation.points if one.role == "used")
    assert all(one.source for one in validation.points)


def test_held_out_points_are_within_7_percent_on_the_a100(validation: Validation) -> None:
    [a100] = [one for one in validation.devices if one.device == "A100-80GB-SXM"]
    assert a100.num_points >= 10
    assert a100.mape_frac <= 0.07


def test_s2d_s_table_is_explained_by_bytes_better_than_by_launches(validation: Validation) -> None:
    errors = {(one.device, one.engine): one.mean_abs_error_frac for one in validation.explanations}
    for device in {device for device, _ in errors}:
        assert errors[device, "graph"] < errors[device, "eager"]
    assert min(errors.values()) < 0.05
    assert [one.mean_abs_error_frac for one in validation.explanations] == sorted(errors.values())


def test_a_slower_prediction_has_a_positive_error_of_time(validation: Validation) -> None:
    for point in validation.points:
        assert (point.error_frac > 0) == (point.predicted_tokens_per_s < point.published_tokens_per_s)


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str], validation: Validation) -> None:
    path = tmp_path / "validation.json"
    assert main_plan(["validate", "-o", str(path)]) == 0
    assert "Best explained by" in capsys.readouterr().out
    assert read_record(path, Validation, schema=VALIDATION_SCHEMA, version=VALIDATION_VERSION).record == validation
