"""Times below the hardware lower bound are refused, measured or predicted."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from perfmodel.core.errors import BelowLowerBound
from perfmodel.core.units import GB, MIB, TERA
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import WEIGHT_ONLY_DTYPES, Hardware
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.latency.latency_model import FittedLatency, RooflineLatency
from perfmodel.latency.lower_bound import (
    CLOCK_SLACK,
    MAX_CACHE_BYTES,
    MEMORY_SLACK,
    check_profile,
    known_accelerator,
    pass_lower_bound,
    work_lower_bound,
)
from perfmodel.latency.roofline_law import roofline_law
from perfmodel.models.dtypes import Dtype, WeightKernels
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.passes.device_key import DeviceKey, LaunchMode
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.latency_law import FitDomain, LatencyFit
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PassKind, PassSamples, PassShape
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import plain_format

A100, H100 = find_hardware("a100"), find_hardware("h100")
LLAMA_7B, LLAMA_70B, DRAFT = find_model("llama-2-7b"), find_model("llama-2-70b"), find_draft("s2d-vicuna-12")
ON_A100 = DeviceKey(device="NVIDIA A100-SXM4-80GB", num_devices=1, num_threads=None, dtype="bf16", mode="graph")
VERIFY = PassShape(kind="verify", stage=0, rows=1, cached_tokens=100)
WEIGHT_BYTES_7B = 2 * (LLAMA_7B.num_params - LLAMA_7B.vocab_size * LLAMA_7B.hidden_size - LLAMA_7B.hidden_size)
BOUND_7B_S = (WEIGHT_BYTES_7B + 100 * 2**19 - 288 * MIB) / (2039 * GB)


def setting_of(model: ModelGeometry = LLAMA_7B, dtype: Dtype = "bf16", *, num_devices: int = 1) -> PassSetting:
    return PassSetting(model=model, weights=dtype_format(dtype, model), num_devices=num_devices)


def profile_of(
    seconds: tuple[float, ...], shape: PassShape = VERIFY, *, device: DeviceKey = ON_A100, model: ModelGeometry = LLAMA_7B
) -> LatencyProfile:
    """Passes of one shape."""
    number = len(seconds)
    samples = PassSamples(
        kind=(shape.kind,) * number,
        stage=(shape.stage,) * number,
        rows=(shape.rows,) * number,
        cached_tokens=tuple(round(shape.cached_tokens) + i for i in range(number)),
        place=(1,) * number,
        seconds=seconds,
    )
    return LatencyProfile(
        model=model, model_sha256="0", exit_layers=(), beside=None, device=device, rule="greedy", processing=(), samples=samples
    )


def test_a_step_of_llama_2_7b_reads_13_2_gb_less_what_caches_may_keep() -> None:
    limit = pass_lower_bound(setting_of(), VERIFY, A100)
    assert limit.read_bytes - 100 * 2**19 == pytest.approx(13.2 * GB, rel=2e-3)
    assert limit.seconds == limit.read_s == pytest.approx(BOUND_7B_S, rel=1e-12)
    assert limit.seconds == pytest.approx(6.36e-3, rel=1e-3)
    assert limit.refused_below_s == pytest.approx(BOUND_7B_S / MEMORY_SLACK)


def test_a_long_prompt_is_bound_by_its_arithmetic() -> None:
    limit = pass_lower_bound(setting_of(), PassShape(kind="target_prefill", stage=0, rows=4096, cached_tokens=0), A100)
    layer_flops = 2 * 4096 * LLAMA_7B.num_layers * LLAMA_7B.layer_params
    assert limit.seconds == limit.compute_s == pytest.approx(layer_flops / (312 * TERA), rel=0.1)
    assert limit.compute_s > 10 * limit.read_s
    assert limit.refused_below_s == limit.compute_s / CLOCK_SLACK
    assert limit.reason == "computing 57.5 TFLOP at 312 TFLOP/s"


def test_weights_that_fit_in_the_caches_may_take_no_time_to_read() -> None:
    tiny = find_model("tinyllama-1.1b")
    work = setting_of(tiny).layers_work(2, rows=1)
    assert work.weight_bytes < MAX_CACHE_BYTES
    assert work_lower_bound(work, 100, H100, plain_format("bf16")).read_s == 0.0


def test_devices_share_the_bytes() -> None:
    single, eight = (pass_lower_bound(setting_of(LLAMA_70B, num_devices=number), VERIFY, A100) for number in (1, 8))
    assert eight.read_bytes == pytest.approx(single.read_bytes / 8)


def test_a_layer_with_a_window_reads_at_most_its_window() -> None:
    gemma = find_model("gemma-2-9b")
    assert gemma.window_tokens == 4096
    short, long, longer = (
        pass_lower_bound(setting_of(gemma), replace(VERIFY, cached_tokens=tokens), A100).read_bytes
        for tokens in (0, 4096, 8192)
    )
    assert short == setting_of(replace(gemma, window_tokens=None, windowed_layers=0)).work("verify", 0, 1).weight_bytes
    assert longer - long == pytest.approx((long - short) / 2)


@pytest.mark.parametrize(
    ("device", "dtype", "tera_flops"),
    [
        ("a100", "bf16", 312),
        ("a100", "int4", 1248),
        ("a100", "int8", 624),
        ("a100", "fp8", 312),
        ("a100", "fp32", 156),
        ("4090", "fp32", 82.6),
        ("v100", "bf16", 125),
        ("h100", "fp8", 1979),
    ],
)
def test_the_peak_is_that_of_the_fastest_path_the_weights_can_take(device: str, dtype: Dtype, tera_flops: float) -> None:
    """A100: TF32 at 156 TFLOP/s, integer cores; a V100 has no bf16, whose weights it can only unpack."""
    setting = setting_of(dtype=dtype)
    bound = work_lower_bound(setting.layers_work(1, rows=1), 0, find_hardware(device), setting.weights)
    assert bound.flops_per_s == tera_flops * TERA


def test_a_profile_twice_as_fast_as_its_bound_is_refused_with_the_bound_and_its_reason() -> None:
    with pytest.raises(BelowLowerBound) as caught:
        check_profile(profile_of((BOUND_7B_S / 2,) * 5))
    assert str(caught.value) == (
        "the profile of llama-2-7b on 1 x NVIDIA A100-SXM4-80GB: a verify pass of 1 row over 100 cached tokens in bf16 takes "
        "3.18 ms, below the hardware lower bound of 6.36 ms: reading 13.3 GB less the 302 MB that caches may keep at "
        "2.04 TB/s on A100-80GB-SXM. Check the dtype and that the clock waits for the device, then profile again: "
        "s2d-profile latency."
    )


def test_a_profile_at_its_lower_bound_passes_and_one_below_the_slack_does_not() -> None:
    check_profile(profile_of((BOUND_7B_S,)))
    check_profile(profile_of((BOUND_7B_S / MEMORY_SLACK * 1.001,)))
    with pytest.raises(BelowLowerBound):
        check_profile(profile_of((BOUND_7B_S / MEMORY_SLACK * 0.999,)))


def test_one_pass_among_many_that_the_clock_cut_short_does_not_refuse_a_profile() -> None:
    check_profile(profile_of((1e-9, 9e-3, 9e-3, 9e-3)))


def test_a_profile_filed_under_too_wide_a_dtype_is_refused() -> None:
    measured_s = 1 / 155.58  # gpt-fast, Llama-2-7B in int8 on an A100
    check_profile(profile_of((measured_s,), device=replace(ON_A100, dtype="int8")))
    with pytest.raises(BelowLowerBound, match=r"in fp32 takes 6\.43 ms"):
        check_profile(profile_of((measured_s,), device=replace(ON_A100, dtype="fp32")))


def test_a_cpu_and_a_device_outside_the_table_are_not_checked() -> None:
    cpu = DeviceKey(device="AMD EPYC 9354", num_devices=1, num_threads=2, dtype="fp32", mode="eager")
    unknown = replace(ON_A100, device="NVIDIA GeForce RTX 3090 Ti")
    assert (known_accelerator(cpu), known_accelerator(unknown), known_accelerator(ON_A100)) == (None, None, A100)
    assert known_accelerator(replace(ON_A100, num_threads=1)) is None
    for device in (cpu, unknown):
        check_profile(profile_of((1e-9,), device=device))


def fit_of(*, weight_share: float) -> LatencyFit:
    """A fit with the roofline's terms, but weights read `weight_share` times as fast."""
    law = roofline_law(A100, plain_format("bf16"), "graph", 1)
    return LatencyFit(
        device=ON_A100,
        models=("small",),
        source="made up",
        pads_rows=False,
        law=replace(law, weight_byte_s=law.weight_byte_s / weight_share, head_byte_s=law.head_byte_s / weight_share),
        standard_error=law,
        domain=FitDomain(
            min_layer_weight_bytes=1e6, max_layer_weight_bytes=1e9, max_layers=80, max_rows=16, max_cached_tokens=4096
        ),
        num_samples=10,
        residual_frac=0.01,
        held_out_error_frac=0.02,
        held_out_90_frac=0.03,
    )


def test_a_fitted_price_below_its_lower_bound_is_refused() -> None:
    """A fit to small models may explain all time by floors and none by bytes, which underprices a large model."""
    fitted = FittedLatency(fit_of(weight_share=100), LLAMA_7B, context_tokens=100)
    assert fitted.line("round", 0, 0).base_s > 0
    with pytest.raises(BelowLowerBound) as caught:
        fitted.line("verify", 0, 1)
    message = str(caught.value)
    assert message.startswith(
        "the fitted price of llama-2-7b on 1 x A100-80GB-SXM: a verify pass of 1 row over 0 cached tokens "
    )
    assert message.endswith("Fit again with wider models, or leave the fit out: the datasheet prices it.")
    plausible = FittedLatency(fit_of(weight_share=1), LLAMA_7B, context_tokens=100)
    roofline = RooflineLatency(setting_of(), A100, "graph")
    assert plausible.line("verify", 0, 1) == roofline.line("verify", 0, 1)


def test_a_fit_without_a_cost_of_cache_reads_is_refused_at_its_context() -> None:
    fit = fit_of(weight_share=1)
    free_kv = replace(fit, law=replace(fit.law, kv_byte_s=0.0, attn_flop_s=0.0))
    FittedLatency(free_kv, LLAMA_7B, context_tokens=100).line("verify", 0, 1)
    with pytest.raises(BelowLowerBound, match="over 65536 cached tokens"):
        FittedLatency(free_kv, LLAMA_7B, context_tokens=65536).line("verify", 0, 1)


def test_no_row_exceeds_its_datasheet() -> None:
    """This keeps a roofline above the lower bound."""

    def is_within(row: Hardware) -> bool:
        shares = row.weight_bandwidth_frac
        has_shares = shares.keys() == set(get_args(WeightKernels)) and all(0 < share <= 1 for share in shares.values())
        return has_shares and 0 < row.costs.flops_frac <= 1 and min(row.costs.layer_floor_s, row.costs.attn_floor_s) >= 0

    assert not [row.name for row in KNOWN_HARDWARE if not is_within(row)]


@given(
    hardware=st.sampled_from(KNOWN_HARDWARE),
    model=st.sampled_from(KNOWN_MODELS),
    dtype=st.sampled_from(get_args(Dtype)),
    mode=st.sampled_from(("eager", "graph")),
    kind=st.sampled_from(("segment", "exit", "verify", "target_prefill", "round")),
    rows=st.integers(1, 4096),
    num_devices=st.sampled_from((1, 2, 4, 8)),
    batch=st.sampled_from((1, 16, 256)),
    cached_frac=st.floats(0, 1),
)
def test_a_roofline_is_never_below_the_lower_bound(
    hardware: Hardware,
    model: ModelGeometry,
    dtype: Dtype,
    mode: LaunchMode,
    kind: PassKind,
    rows: int,
    num_devices: int,
    batch: int,
    cached_frac: float,
) -> None:
    assume(num_devices <= hardware.max_devices)
    assume(dtype in hardware.peak_flops_per_s or dtype in WEIGHT_ONLY_DTYPES)
    context_tokens = round(cached_frac * model.max_context_tokens)
    exits = (model.num_layers // 2,)
    setting = PassSetting(
        model=model, exit_layers=exits, weights=dtype_format(dtype, model), batch=batch, num_devices=num_devices
    )
    roofline = RooflineLatency(replace(setting, context_tokens=context_tokens), hardware, mode)
    for cached_tokens in (0, context_tokens // 2, context_tokens):
        shape = PassShape(kind=kind, stage=0, rows=rows, cached_tokens=cached_tokens)
        assert roofline.line(kind, 0, rows).at(cached_tokens) >= pass_lower_bound(setting, shape, hardware).seconds * (1 - 1e-9)
