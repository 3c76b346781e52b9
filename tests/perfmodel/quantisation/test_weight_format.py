"""Weight formats of dtypes, their bytes, and their effect on pass times."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.latency.roofline_law import roofline_law
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import find_model
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import (
    LayerShare,
    WeightFormat,
    embedding_bytes,
    head_bytes,
    layers_bytes,
    model_weight_bytes,
    plain_format,
    uniform_format,
)

LLAMA_7B, LLAMA_8B, LLAMA_70B = find_model("llama-2-7b"), find_model("llama-3-8b"), find_model("llama-3-70b")
A100 = find_hardware("a100")
GIB = 2**30


@pytest.mark.parametrize(
    ("dtype", "gib_8b", "gib_70b"),
    [("q4_k_m", 4.58, 39.60), ("q5_k_m", 5.33, 46.52), ("q6_k", 6.14, 53.91), ("q8_0", 7.95, 69.83)],
)
def test_llama_cpp_types_have_the_sizes_of_published_files(dtype: Dtype, gib_8b: float, gib_70b: float) -> None:
    """GiB: llama.cpp's tools/quantize/README.md for Llama-3.1-8B, ggerganov/llama.cpp#6745 for Llama-3-70B."""
    for model, gib in ((LLAMA_8B, gib_8b), (LLAMA_70B, gib_70b)):
        assert model_weight_bytes(model, dtype_format(dtype, model)) == pytest.approx(gib * GIB, rel=2e-3)


@pytest.mark.parametrize(("dtype", "bits"), [("q4_k_m", 4.8944), ("q5_k_m", 5.7036), ("q6_k", 6.5633), ("q8_0", 8.5008)])
def test_llama_cpp_types_have_their_published_bits_per_weight(dtype: Dtype, bits: float) -> None:
    """The table in tools/quantize/README.md for Llama-3.1-8B."""
    mean_bits = 8 * model_weight_bytes(LLAMA_8B, dtype_format(dtype, LLAMA_8B)) / LLAMA_8B.num_params
    assert mean_bits == pytest.approx(bits, rel=3e-4)


def test_rows_that_are_not_a_multiple_of_a_super_block_use_blocks_of_32() -> None:
    """Qwen2.5-0.5B has 896 columns, so llama.cpp replaces Q4_K by Q5_0, except in down projections (4864 columns)."""
    qwen = find_model("qwen2.5-0.5b")
    assert qwen.hidden_size % 256
    narrow = dtype_format("q4_k_m", qwen)
    assert narrow.head_bits == narrow.embedding_bits == 8.5
    assert 5.2 < narrow.layer_bits < 6.2


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("bf16", "bf16"),
        ("fp8", "fp8, a scale per row, 8 bits; head 16 bits"),
        ("int8", "int8, a scale per row, 8 bits; head 16 bits"),
        ("int4", "int4, groups of 128, 4.16 bits; head 16 bits"),
        ("q4_k_m", "llama.cpp Q4_K_M, 4.8 bits; head 6.56 bits; embedding 4.5 bits"),
    ],
)
def test_a_dtype_has_the_format_of_checkpoints_in_it(dtype: Dtype, text: str) -> None:
    assert dtype_format(dtype, LLAMA_8B).text == text


@given(st.sampled_from(KNOWN_MODELS), st.sampled_from(get_args(Dtype)))
def test_the_bytes_of_a_model_are_the_sum_of_its_parts(model, dtype: Dtype) -> None:
    weights = dtype_format(dtype, model)
    parts = layers_bytes(model, weights, model.num_layers) + embedding_bytes(model, weights)
    parts += 0 if model.has_tied_head else model.head_table_params * weights.head_bits / 8
    assert model_weight_bytes(model, weights) == pytest.approx(parts + model.outer_params * weights.other_bits / 8)
    assert sum(share.frac for share in weights.layers) == pytest.approx(1)
    if weights.is_plain:
        assert model_weight_bytes(model, weights) == model.num_params * weights.head_bits / 8


def test_a_tied_head_with_its_own_bits_is_counted_separately() -> None:
    tied = find_model("llama-3.2-1b")
    plain = plain_format("bf16")
    extra_bytes = model_weight_bytes(tied, replace(plain, head_bits=8.0)) - model_weight_bytes(tied, plain)
    assert extra_bytes == tied.head_table_params


def test_layers_and_head_are_read_at_the_rates_of_their_own_kernels() -> None:
    weights = dtype_format("int4", LLAMA_8B)
    law, plain = roofline_law(A100, weights, "graph", 1), roofline_law(A100, plain_format("bf16"), "graph", 1)
    shares = A100.weight_bandwidth_frac
    assert law.weight_byte_s == pytest.approx(1 / (A100.memory_bytes_per_s * shares["int4"]))
    assert law.head_byte_s == plain.head_byte_s == plain.weight_byte_s == pytest.approx(1 / (2039e9 * shares["bf16"]))
    setting = PassSetting(model=LLAMA_8B, weights=weights)
    work = setting.work("verify", 0, 1)
    assert work.head_bytes == head_bytes(LLAMA_8B, weights) == 2 * LLAMA_8B.head_params
    assert work.weight_bytes == work.layer_bytes + work.head_bytes
    quick = replace(weights, head_bits=4.0)
    saved_s = RooflineLatency(PassSetting(model=LLAMA_8B, weights=weights), A100, "graph").line("verify", 0, 1).base_s
    saved_s -= RooflineLatency(PassSetting(model=LLAMA_8B, weights=quick), A100, "graph").line("verify", 0, 1).base_s
    assert saved_s == pytest.approx(1.5 * LLAMA_8B.head_params * law.head_byte_s, rel=1e-3)


def test_a_mixed_format_is_read_at_the_mean_rate_of_its_bytes() -> None:
    half_each = replace(
        plain_format("bf16"),
        layers=(
            LayerShare(frac=0.5, bits=16.0, kernels="bf16", arithmetic=None),
            LayerShare(frac=0.5, bits=4.0, kernels="int4", arithmetic=None),
        ),
    )
    law = roofline_law(A100, half_each, "graph", 1)
    rates = {kernels: 1 / (2039e9 * A100.weight_bandwidth_frac[kernels]) for kernels in ("bf16", "int4")}
    per_weight_s = 0.5 * 2.0 * rates["bf16"] + 0.5 * 0.5 * rates["int4"]
    assert law.weight_byte_s * half_each.layer_bits / 8 == pytest.approx(per_weight_s)


def test_8_bit_products_run_at_the_8_bit_peak_if_the_device_has_one() -> None:
    h100, fp8 = find_hardware("h100"), dtype_format("fp8", LLAMA_8B)
    law, plain = roofline_law(h100, fp8, "graph", 1), roofline_law(h100, plain_format("bf16"), "graph", 1)
    assert law.flop_s == pytest.approx(plain.flop_s * 989 / 1979)
    assert law.head_flop_s == law.attn_flop_s == plain.flop_s
    on_a100, plain_a100 = roofline_law(A100, fp8, "graph", 1), roofline_law(A100, plain_format("bf16"), "graph", 1)
    assert on_a100.flop_s == plain_a100.flop_s


def test_llama_cpp_kernels_add_time_per_layer() -> None:
    laws = [roofline_law(A100, dtype_format(dtype, LLAMA_8B), "graph", 1) for dtype in ("q4_0", "int4")]
    assert laws[0].layer_s - laws[1].layer_s == pytest.approx(A100.costs.gguf_layer_s)


@pytest.mark.parametrize("layers", [(), (LayerShare(frac=0.4, bits=4.0, kernels="int4", arithmetic=None),)])
def test_shares_that_do_not_add_up_to_1_are_refused(layers: tuple[LayerShare, ...]) -> None:
    with pytest.raises(ValueError, match="weight format 'bf16': expected positive bits and shares that add up to 1"):
        replace(plain_format("bf16"), layers=layers)


def test_a_uniform_format_has_the_same_bits_everywhere() -> None:
    uniform: WeightFormat = uniform_format("int4", "int4", 4.0)
    assert model_weight_bytes(LLAMA_7B, uniform) == round(LLAMA_7B.num_params / 2)
