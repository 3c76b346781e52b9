from dataclasses import replace

from calibrate.text.fit_text import fit_text
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.latency_law import FitDomain, LatencyFit, Law

NOTHING = Law(**dict.fromkeys(Law.__dataclass_fields__, 0.0))
FIT = LatencyFit(
    device=DeviceKey(device="made up", num_devices=1, num_threads=1, dtype="fp32", engine="eager"),
    models=("law-1x64", "law-2x64"),
    source="s2d-profile on this device",
    pads_rows=False,
    law=replace(NOTHING, layer_s=60e-6, weight_byte_s=1e-10, flop_s=2e-11),
    standard_error=replace(NOTHING, layer_s=2e-6, weight_byte_s=1e-11, flop_s=1e-12),
    domain=FitDomain(min_layer_weight_bytes=2e5, max_layer_weight_bytes=2e6, max_layers=2, max_rows=16, max_cached_tokens=320),
    num_samples=1000,
    residual_frac=0.031,
    held_out_error_frac=0.043,
    held_out_90_frac=0.087,
)


def lines(fit: LatencyFit) -> list[list[str]]:
    return [line.split("  ") for line in fit_text(fit).splitlines()]


def test_a_fit_says_what_it_found_how_surely_and_where_it_holds() -> None:
    text = fit_text(FIT)
    assert "device    1 x made up, 1 thread, fp32, eager" in text
    assert "covered   layers of 200 kB to 2.00 MB, up to 2 of them, 16 rows and 320 cached tokens" in text
    assert "mean error on a model left out of the fit:  4.3 %" in text
    assert "nine in ten of those passes were off by less than 8.7 %" in text


def test_a_coefficient_per_byte_is_shown_as_a_rate_with_its_error() -> None:
    rows = {line[0]: [cell.strip() for cell in line if cell.strip()][1:] for line in lines(FIT)}
    assert rows["floor of a layer"] == ["60.0 µs", "2.00 µs"]
    assert rows["reading weights"] == ["10.0 GB/s", "1.00 GB/s"]
    assert rows["matrix products"] == ["50.0 GFLOP/s", "2.50 GFLOP/s"]


def test_what_the_solver_leaves_of_zero_is_not_shown_as_a_number() -> None:
    law = replace(FIT.law, pass_s=1e-30, flop_s=1e-36)
    text = fit_text(replace(FIT, law=law, standard_error=replace(FIT.standard_error, pass_s=1e-6)))
    rows = {
        line[0]: [cell.strip() for cell in line if cell.strip()][1:] for line in (row.split("  ") for row in text.splitlines())
    }
    assert rows["starting a pass"] == rows["matrix products"] == ["not determined"]


def test_terms_that_no_pass_showed_are_left_out() -> None:
    assert "an all-reduce" not in fit_text(FIT)


def test_a_fit_to_one_model_says_that_its_error_is_assumed() -> None:
    alone = replace(FIT, held_out_error_frac=None, held_out_90_frac=None)
    assert "one model alone tells nothing of others: ± 20.0 % assumed. Profile other shapes: s2d-profile law" in fit_text(alone)
