from dataclasses import replace

from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.latency_law import FitDomain, LatencyFit, Law

NOTHING = Law(**dict.fromkeys(Law.__dataclass_fields__, 0.0))
FIT = LatencyFit(
    device=DeviceKey(device="made up", num_devices=1, num_threads=1, dtype="fp32", mode="eager"),
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


EXPECTED = """\
device    1 x made up, 1 thread, fp32, eager
passes    1000 of 2 models, s2d-profile on this device
models    law-1x64, law-2x64
covered   layers of 200 kB to 2.00 MB, up to 2 layers, 16 rows and 320 cached tokens
error     3.1 % on the fitted passes (mean)
held out  4.3 % on a model left out of the fit (mean); 90 % of its passes within 8.7 %

term                         fitted  standard error
---------------------  ------------  --------------
one layer, fixed part       60.0 µs         2.00 µs
reading weights           10.0 GB/s       1.00 GB/s
matrix products        50.0 GFLOP/s    2.50 GFLOP/s"""


def rows(text: str) -> dict[str, list[str]]:
    cells = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines())
    return {first: others for first, *others in filter(None, cells)}


def test_a_fit_prints_its_domain_its_errors_and_its_main_rates() -> None:
    assert str(FIT) == EXPECTED
    assert FIT.explain() == EXPECTED  # no other term was fitted


def test_explain_adds_the_other_terms() -> None:
    fit = replace(FIT, law=replace(FIT.law, pass_s=1e-5), standard_error=replace(FIT.standard_error, pass_s=1e-6))
    assert "starting a pass" not in rows(str(fit))
    assert rows(fit.explain())["starting a pass"] == ["10.0 µs", "1.00 µs"]


def test_a_numerical_remainder_of_zero_is_not_shown_as_a_number() -> None:
    law = replace(FIT.law, pass_s=1e-30, flop_s=1e-36)
    shown = rows(replace(FIT, law=law, standard_error=replace(FIT.standard_error, pass_s=1e-6)).explain())
    assert shown["starting a pass"] == shown["matrix products"] == ["not determined"]


def test_terms_that_no_pass_showed_are_left_out() -> None:
    assert "an all-reduce" not in FIT.explain()


def test_a_long_list_of_models_is_cut_in_the_summary() -> None:
    fit = replace(FIT, models=tuple(f"law-{depth}x64" for depth in range(1, 9)))
    assert "models    law-1x64, law-2x64, law-3x64 and 5 more\n" in str(fit)
    assert "law-8x64" in fit.explain()


def test_a_fit_to_one_model_has_an_assumed_error() -> None:
    text = str(replace(FIT, held_out_error_frac=None, held_out_90_frac=None))
    assert "because one model was fitted: ± 20.0 % is assumed." in " ".join(text.split())
    assert text.endswith(" other shapes:\n\n  s2d-profile law")
