import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.fit.validate import published_format
from perfmodel.core.errors import BadFile, OutOfDomain
from perfmodel.core.provenance import make_provenance
from perfmodel.core.stats import winsorized
from perfmodel.core.units import Seconds
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Hardware
from perfmodel.hardware.kernel_efficiency import WIDEST_ERROR_FRAC
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.latency.latency_model import FittedLatency, LatencyModel, MeasuredLatency, RooflineLatency, chance_longer
from perfmodel.latency.roofline_law import roofline_law
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import DeviceKey, LaunchMode
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.latency_law import FIT_FILE, UNTESTED_ERROR_FRAC, FitDomain, LatencyFit, Law
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PassKind, PassSample, PassSamples
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import WeightFormat, plain_format

A100 = find_hardware("a100")
BF16 = plain_format("bf16")
LLAMA_7B, LLAMA_70B = find_model("llama-2-7b"), find_model("llama-2-70b")
DEVICE = DeviceKey(device="made up", num_devices=1, num_threads=1, dtype="fp32", mode="eager")
KINDS: tuple[PassKind, ...] = ("segment", "exit", "verify", "round")

Row = tuple[PassKind, int, int, int, float]
"""Kind, stage, rows, cached tokens, seconds."""


def pass_s(latency: LatencyModel, kind: PassKind, rows: int, cached_tokens: float = 0, stage: int = 0) -> Seconds:
    return latency.line(kind, stage, rows).at(cached_tokens)


def roofline(
    model: ModelGeometry,
    weights: WeightFormat = BF16,
    hardware: Hardware = A100,
    mode: LaunchMode = "graph",
    *,
    exits: tuple[int, ...] = (),
    num_devices: int = 1,
    context_tokens: int | None = None,
) -> RooflineLatency:
    setting = PassSetting(
        model=model, exit_layers=exits, weights=weights, num_devices=num_devices, context_tokens=context_tokens
    )
    return RooflineLatency(setting, hardware, mode)


def step_s(latency: RooflineLatency, cached_tokens: float = 100) -> float:
    return pass_s(latency, "verify", 1, cached_tokens) + pass_s(latency, "round", 0)


def samples_of(rows: list[Row]) -> PassSamples:
    return PassSamples.from_passes(PassSample(*shape, 1, seconds) for *shape, seconds in rows)


def profile_of(samples: PassSamples) -> LatencyProfile:
    return LatencyProfile(
        model=LLAMA_7B,
        model_sha256="0",
        exit_layers=(),
        beside=None,
        device=DEVICE,
        rule="greedy",
        processing=(),
        samples=samples,
    )


def measured(rows: list[Row]) -> MeasuredLatency:
    return MeasuredLatency(profile_of(samples_of(rows)))


@pytest.mark.parametrize(
    ("model", "num_devices", "weights", "published_s"),
    [
        (LLAMA_7B, 1, "bf16", 1 / 104.9),
        (LLAMA_70B, 2, "bf16", 1 / 21.32),
        (LLAMA_70B, 4, "bf16", 1 / 38.01),
        (LLAMA_70B, 8, "bf16", 1 / 62.50),
        (LLAMA_70B, 1, "gpt-fast int8", 1 / 19.13),
        (LLAMA_70B, 1, "gpt-fast int4", 1 / 25.25),
    ],
)
def test_gpt_fast_on_a100_is_priced_within_7_percent(model, num_devices: int, weights: str, published_s: float) -> None:
    """README of meta-pytorch/gpt-fast; none of these points gave the A100's row a number."""
    stored = published_format(weights, model)
    assert step_s(roofline(model, weights=stored, num_devices=num_devices)) == pytest.approx(published_s, rel=0.07)


def test_in_eager_mode_a_small_model_costs_its_launches_and_a_large_one_its_bytes() -> None:
    launches_s = 32 * A100.launch_costs("eager").host_layer_s
    assert step_s(roofline(LLAMA_7B, mode="eager"), 500) == pytest.approx(launches_s + 520e-6)
    eager, graph = (roofline(LLAMA_70B, mode=mode) for mode in ("eager", "graph"))
    assert pass_s(eager, "verify", 1) == pytest.approx(pass_s(graph, "verify", 1), rel=1e-3)


def test_verifying_64_rows_on_a100_costs_about_as_much_as_1_row_and_256_rows_twice_as_much() -> None:
    """Vidur's kernel tables, all operators but attention: 1.05, 1.32 and 1.92; the law has no tiles beyond 64 rows."""
    latency = roofline(LLAMA_7B)
    one_s = pass_s(latency, "verify", 1)
    assert pass_s(latency, "verify", 64) / one_s == pytest.approx(1.05, abs=0.03)
    assert pass_s(latency, "verify", 128) / one_s == pytest.approx(1.32, abs=0.05)
    assert pass_s(latency, "verify", 256) / one_s == pytest.approx(1.92, rel=0.11)


@given(
    st.sampled_from(KNOWN_HARDWARE),
    st.sampled_from(["eager", "graph"]),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 512),
    st.integers(0, 4096),
)
def test_a_pass_is_never_faster_than_its_bytes_or_its_flop(hardware, mode, num_devices, rows, cached) -> None:
    num_devices, dtype = min(num_devices, hardware.max_devices), hardware.default_dtype
    setting = PassSetting(model=LLAMA_7B, weights=dtype_format(dtype, LLAMA_7B), num_devices=num_devices)
    work = setting.work("verify", 0, rows)
    seconds = pass_s(RooflineLatency(setting, hardware, mode), "verify", rows, cached)
    moved_bytes = work.weight_bytes + cached * work.kv_bytes_per_cached_token
    assert seconds >= moved_bytes / hardware.memory_bytes_per_s
    assert seconds >= work.flops / hardware.peak_flops_per_s[dtype]
    assert seconds >= work.num_layers * hardware.costs.layer_floor_s


@pytest.mark.parametrize("published_tokens_per_s", [191.0, 211.0])
def test_4_bit_on_a_4090_is_priced_within_its_error(published_tokens_per_s: float) -> None:
    """Llama-2-7B by mlc-ai/llm-perf-bench#1 and by exllamav2's README: two engines, a row scaled from the H100."""
    rtx_4090 = find_hardware("4090")
    predicted_s = step_s(roofline(LLAMA_7B, dtype_format("int4", LLAMA_7B), rtx_4090))
    assert predicted_s * published_tokens_per_s == pytest.approx(1, abs=rtx_4090.error_frac)


def test_a_bridge_joins_two_devices_and_more_use_the_slower_bus() -> None:
    pair, four = (roofline_law(find_hardware("h100-nvl"), plain_format("bf16"), "graph", num_devices) for num_devices in (2, 4))
    assert (pair.link_byte_s, four.link_byte_s) == (1 / 300e9, 1 / 64e9)
    assert pair.all_reduce_s < four.all_reduce_s


@given(st.floats(1.0, 10.0), st.integers(1, 64), st.integers(0, 2048))
def test_more_bandwidth_is_never_slower(factor: float, rows: int, cached: int) -> None:
    faster = replace(A100, memory_bytes_per_s=A100.memory_bytes_per_s * factor)
    now, then = roofline(LLAMA_7B, hardware=A100), roofline(LLAMA_7B, hardware=faster)
    assert pass_s(then, "verify", rows, cached) <= pass_s(now, "verify", rows, cached)


@given(st.sampled_from(KINDS), st.integers(1, 32), st.floats(0, 4000))
def test_seconds_are_linear_in_the_cached_tokens(kind: PassKind, rows: int, cached: float) -> None:
    draft = find_draft("s2d")
    latency = roofline(draft.model, exits=draft.exit_layers)
    base_s, per_token_s = latency.line(kind, 0, rows)
    assert pass_s(latency, kind, rows, cached) == pytest.approx(base_s + per_token_s * cached)
    assert base_s > 0
    assert per_token_s >= 0


def test_checking_every_exit_costs_more_than_the_last_exit_alone() -> None:
    draft = find_draft("s2d")
    latency = roofline(draft.model, exits=draft.exit_layers)
    segments_s = sum(pass_s(latency, "segment", 1, stage=stage) for stage in range(3))
    exit_s = pass_s(latency, "exit", 1)
    in_bytes = 13.9 / 12.65  # layer-equivalents by bytes alone: a layer's floor makes the heads a little cheaper
    assert (segments_s + 3 * exit_s) / (segments_s + exit_s) == pytest.approx(in_bytes, rel=0.01)


def test_a_measured_pass_costs_its_mean_and_more_per_cached_token() -> None:
    rows: list[Row] = [("verify", 0, 1, cached, 1e-3 + 1e-6 * cached) for cached in range(0, 400, 4)]
    latency = measured(rows)
    assert latency.line("verify", 0, 1) == pytest.approx((1e-3, 1e-6), rel=0.02)
    assert pass_s(latency, "verify", 1, 200) == pytest.approx(1.2e-3, rel=0.01)


def test_a_measured_slope_is_never_negative() -> None:
    latency = measured([("verify", 0, 1, cached, 1e-3 - 1e-6 * cached) for cached in range(0, 400, 4)])
    base_s, per_token_s = latency.line("verify", 0, 1)
    assert per_token_s == 0
    assert base_s == pytest.approx(1e-3 - 1e-6 * 198, rel=0.01)


def test_rows_between_two_measured_numbers_are_interpolated() -> None:
    rows: list[Row] = [("verify", 0, width, 50, width * 1e-3) for width in (1, 2, 4, 8) for _ in range(20)]
    latency = measured(rows)
    assert pass_s(latency, "verify", 3, 50) == pytest.approx(3e-3)
    assert pass_s(latency, "verify", 6, 50) == pytest.approx(6e-3)


def test_one_row_beyond_the_widest_pass_is_extrapolated_and_more_is_refused() -> None:
    latency = measured([("verify", 0, width, 50, width * 1e-3) for width in (2, 3) for _ in range(20)])
    assert pass_s(latency, "verify", 4, 50) == pytest.approx(4e-3)
    with pytest.raises(OutOfDomain) as caught:
        pass_s(latency, "verify", 5, 50)
    message = "rows of a verify pass (stage 0) of 'llama-2-7b' = 5 is outside the evidence, which covers 0 to 3. Profile again"
    assert str(caught.value).startswith(message)


def test_a_pass_of_a_kind_or_stage_that_was_not_measured_is_refused() -> None:
    latency = measured([("segment", 0, 1, 50, 1e-3)] * 20)
    for kind, stage in (("segment", 1), ("exit", 0), ("round", 0)):
        with pytest.raises(OutOfDomain):
            latency.line(kind, stage, 1)


def test_rare_widths_share_a_knot_and_frequent_ones_have_their_own() -> None:
    common: list[Row] = [("segment", 0, width, 50, width * 1e-3) for width in (1, 2) for _ in range(100)]
    rare: list[Row] = [("segment", 0, width, 50, 0.01 + (-1) ** width * 1e-3) for width in (10, 11, 12, 13) for _ in range(4)]
    latency = measured(common + rare)
    assert pass_s(latency, "segment", 1, 50) == pytest.approx(1e-3)
    assert pass_s(latency, "segment", 2, 50) == pytest.approx(2e-3)
    assert pass_s(latency, "segment", 11, 50) == pytest.approx(0.01, rel=0.05)


def test_one_preempted_pass_does_not_change_the_mean() -> None:
    assert pass_s(measured([("exit", 0, 1, 0, 1e-4)] * 99 + [("exit", 0, 1, 0, 1.0)]), "exit", 1) == 1e-4


def test_clamping_moves_the_extremes_and_keeps_the_count() -> None:
    assert winsorized([5.0, *[1.0] * 98, 0.1]) == [1.0] * 100
    assert winsorized([1.0, 9.0]) == [1.0, 9.0]


def test_a_steady_device_has_no_error_and_a_drifting_one_has() -> None:
    steady = measured([("verify", 0, 1, 50, 1e-3)] * 240)
    drifting = measured([("verify", 0, 1, 50, 1e-3 * (1 + i / 240)) for i in range(240)])
    assert steady.error_frac == 0
    assert 0.03 < drifting.error_frac < 0.1


LAW = roofline_law(A100, plain_format("fp32"), "graph", num_devices=1)
NO_ERROR = Law(**dict.fromkeys(Law.__dataclass_fields__, 0.0))
FIT = LatencyFit(
    device=DEVICE,
    models=("llama-2-7b",),
    source="made for this test",
    pads_rows=False,
    law=LAW,
    standard_error=NO_ERROR,
    domain=FitDomain(min_layer_weight_bytes=6e8, max_layer_weight_bytes=9e8, max_layers=32, max_rows=8, max_cached_tokens=500),
    num_samples=100,
    residual_frac=0.02,
    held_out_error_frac=0.05,
    held_out_90_frac=0.16449,
)


def test_fit_and_roofline_price_by_the_same_law() -> None:
    fitted = FittedLatency(FIT, LLAMA_7B, context_tokens=500)
    priced = roofline(LLAMA_7B, plain_format("fp32"))
    assert pass_s(fitted, "verify", 4, 100) == pass_s(priced, "verify", 4, 100)
    assert (fitted.level, fitted.error_frac) == ("fitted", pytest.approx(0.1))


def test_the_error_of_a_fit_grows_with_the_distance_outside_its_domain() -> None:
    deeper = replace(LLAMA_7B, num_layers=64)
    fitted = FittedLatency(FIT, deeper, context_tokens=1000)
    assert fitted.level == "extrapolated"
    labels = [extrapolation.label for extrapolation in fitted.extrapolations]
    assert labels == ["64 layers (seen: 1 to 32)", "1000 cached tokens (seen: 0 to 500)"]
    assert [extrapolation.doublings for extrapolation in fitted.extrapolations] == [1, 1]
    assert fitted.error_frac == pytest.approx(3 * 0.1)
    assert pass_s(fitted, "verify", 1) > pass_s(FittedLatency(FIT, LLAMA_7B, context_tokens=500), "verify", 1)


def test_the_error_of_an_extrapolation_is_at_most_that_of_an_unmeasured_device() -> None:
    far = replace(LLAMA_7B, num_layers=1 << 12)
    assert FittedLatency(FIT, far, context_tokens=500).error_frac == WIDEST_ERROR_FRAC


def test_a_fit_extrapolates_to_smaller_layers_too() -> None:
    lighter = replace(LLAMA_7B, hidden_size=1024, intermediate_size=2752, num_heads=8, num_kv_heads=8)
    (extrapolation,) = FittedLatency(FIT, lighter, context_tokens=500).extrapolations
    assert extrapolation.label == "a layer of 50.6 MB (seen: 600 MB to 900 MB)"
    assert extrapolation.doublings == pytest.approx(math.log2(6e8 / (4 * lighter.layer_params)))


def test_a_fit_to_one_model_has_an_assumed_error() -> None:
    assert replace(FIT, held_out_error_frac=None, held_out_90_frac=None).error_frac == UNTESTED_ERROR_FRAC


def test_a_fit_refuses_passes_far_wider_than_those_it_has_seen() -> None:
    fitted = FittedLatency(FIT, LLAMA_7B, context_tokens=500)
    with pytest.raises(OutOfDomain, match="rows of a verify pass = 17 is outside the evidence"):
        pass_s(fitted, "verify", 17)


GPU = DeviceKey(device="a made up GPU", num_devices=1, num_threads=None, dtype="bf16", mode="graph")
STEPS_S = {1: 1e-3, 2: 1.1e-3, 4: 2e-3, 8: 4e-3, 16: 5e-3, 32: 9e-3}


def step_rows(kind: PassKind, numbers: dict[int, int]) -> list[Row]:
    """Passes by number of rows and count. Their seconds are a step function; wider passes take 2 ms a row."""
    widths = {rows: next((width for width in STEPS_S if width >= rows), None) for rows in numbers}
    seconds = {rows: 2e-3 * rows if width is None else STEPS_S[width] for rows, width in widths.items()}
    return [(kind, 0, rows, 50, seconds[rows]) for rows, number in numbers.items() for _ in range(number)]


def measured_in_graph_mode(rows: list[Row]) -> MeasuredLatency:
    return MeasuredLatency(replace(profile_of(samples_of(rows)), device=GPU))


@pytest.mark.parametrize("kind", ["segment", "ahead", "verify"])
def test_padded_widths_are_neither_merged_nor_interpolated_with_each_other(kind: PassKind) -> None:
    numbers = {
        1: 90,
        2: 90,
        3: 90,
        4: 2,
        5: 1,
        7: 90,
        9: 3,
        16: 2,
        18: 1,
        40: 90,
    }  # without padding, rare widths merge with wider ones
    latency = measured_in_graph_mode(step_rows(kind, numbers))
    expected = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8, 9: 16, 10: 16, 16: 16, 17: 32, 32: 32}
    for rows, width in expected.items():
        assert pass_s(latency, kind, rows, 50) == pytest.approx(STEPS_S[width])
    assert [pass_s(latency, kind, rows, 50) for rows in (33, 40)] == pytest.approx([80e-3] * 2)


def test_an_unmeasured_padded_width_is_interpolated_and_one_beyond_all_extrapolated() -> None:
    latency = measured_in_graph_mode(step_rows("segment", {1: 90, 2: 90, 5: 90}))
    for rows in (3, 4):
        assert STEPS_S[2] < pass_s(latency, "segment", rows, 50) < STEPS_S[8]
    deep = measured_in_graph_mode(step_rows("segment", {4: 90, 8: 90}))
    assert pass_s(deep, "segment", 9, 50) == pytest.approx(8e-3)  # of 16 rows, by the line through 4 and 8
    with pytest.raises(OutOfDomain):
        pass_s(deep, "segment", 11, 50)


def test_bookkeeping_passes_are_not_padded() -> None:
    rounds: list[Row] = [("round", 0, rows, 0, 1e-5 * (1 + rows)) for rows in (0, 2, 3, 6) for _ in range(90)]
    latency = measured_in_graph_mode(rounds)
    for rows in range(7):
        assert pass_s(latency, "round", rows) == pytest.approx(1e-5 * (1 + rows))


def test_a_fit_is_unchanged_after_writing_and_reading(tmp_path: Path) -> None:
    FIT_FILE.write(tmp_path / "fit.json", FIT, make_provenance(argv=("test",)))
    assert FIT_FILE.read(tmp_path / "fit.json").record == FIT


def test_a_fit_file_with_a_negative_coefficient_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    FIT_FILE.write(path, FIT, make_provenance(argv=("test",)))
    envelope = json.loads(path.read_text("utf-8"))
    envelope["body"]["law"]["flop_s"] = -1e-9
    path.write_text(json.dumps(envelope), encoding="utf-8")
    with pytest.raises(BadFile, match=r"body\.law: flop_s is -1e-09, expected a finite number that is not negative"):
        FIT_FILE.read(path)


def test_every_coefficient_is_checked_by_its_name() -> None:
    for term in Law.__dataclass_fields__:
        for value in (-1e-9, -1e308, math.inf):
            with pytest.raises(ValueError, match=re.escape(f"{term} is {value:g}, expected a finite number")):
                replace(LAW, **{term: value})


def priced(model: str, mode: LaunchMode, device: str = "a100") -> RooflineLatency:
    return roofline(find_model(model), hardware=find_hardware(device), mode=mode, context_tokens=500)


def test_a_launch_bound_step_has_the_hosts_error_and_a_kernel_bound_step_the_devices() -> None:
    host_frac, device_frac = A100.launch_costs("eager").host_error_frac, A100.error_frac
    assert priced("llama-2-7b", "graph").step_error_frac == device_frac
    assert priced("vicuna-68m", "eager").step_error_frac == pytest.approx(host_frac, rel=0.01)
    between = priced("llama-2-13b", "eager").step_error_frac
    assert device_frac < between < host_frac
    on_slower_memory = priced("llama-2-7b", "eager", "a10").step_error_frac
    assert on_slower_memory < priced("llama-2-7b", "eager").step_error_frac


def test_the_chance_that_a_time_is_longer_follows_a_lognormal_ratio() -> None:
    assert chance_longer(0.0, 1.0, 0.4) == 0.0
    assert chance_longer(1.0, 1.0, 0.4) == 0.5
    assert chance_longer(2.0, 1.0, 0.4) == pytest.approx(0.958, abs=0.001)  # ln 2 is 1.73 standard deviations
    assert chance_longer(1.0, 2.0, 0.4) == pytest.approx(1 - 0.958, abs=0.001)


def test_a_measured_or_fitted_host_has_no_additional_error() -> None:
    assert measured([("verify", 0, 1, 100, 1e-3)] * 20).host_error_frac == 0.0
    assert FittedLatency(FIT, LLAMA_7B, context_tokens=500).host_error_frac == 0.0
    assert priced("llama-2-7b", "graph").host_error_frac == 0.0
