"""Layers with a window: bytes of their cache, read and kept."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.find_model import find_model
from perfmodel.passes.flops_bytes import PassSetting, PassWork, kv_bytes_per_token, kv_cache_bytes
from perfmodel.quantisation.weight_format import plain_format

EVERY_OTHER, ALL, NONE = find_model("gemma-2-9b"), find_model("mistral-7b-v0.1"), find_model("mistral-7b-v0.2")
BF16 = plain_format("bf16")
A100 = find_hardware("a100")


def verify_work(context_tokens: int | None, model=EVERY_OTHER, *, batch: int = 1, rows: int = 1) -> PassWork:
    setting = PassSetting(model=model, weights=BF16, batch=batch, context_tokens=context_tokens)
    return setting.work("verify", 0, rows)


def kv_bytes_read(context_tokens: int, **setting) -> float:
    work = verify_work(context_tokens, **setting)
    return work.window_kv_bytes + context_tokens * work.kv_bytes_per_cached_token


def verify_s(model, context_tokens: int, *, priced_at: int) -> float:
    latency = RooflineLatency(PassSetting(model=model, weights=BF16, context_tokens=priced_at), A100, "graph")
    return latency.line("verify", 0, 1).at(context_tokens)


def test_below_the_window_every_layer_reads_every_token() -> None:
    work = verify_work(4096)
    assert work.kv_bytes_per_cached_token == kv_bytes_per_token(EVERY_OTHER, BF16)
    assert work.window_kv_bytes == work.window_attn_flops == 0


def test_above_the_window_every_other_layer_of_gemma_2_reads_only_its_window() -> None:
    per_token = kv_bytes_per_token(EVERY_OTHER, BF16)
    assert verify_work(8192).kv_bytes_per_cached_token == per_token / 2
    assert kv_bytes_read(8192) == per_token * (8192 + 4096) / 2
    assert verify_work(8192).window_attn_flops == pytest.approx(4 * 21 * 4096 * 16 * 256)


def test_the_reads_of_a_model_with_windows_in_all_layers_stop_growing() -> None:
    assert verify_work(8192, ALL).kv_bytes_per_cached_token == 0
    assert verify_s(ALL, 30000, priced_at=30000) == verify_s(ALL, 5000, priced_at=5000)
    assert verify_s(NONE, 30000, priced_at=30000) > verify_s(NONE, 5000, priced_at=5000)


@given(st.integers(0, 8192), st.integers(1, 8), st.integers(1, 4))
def test_cache_reads_never_shrink_with_the_context_nor_exceed_those_of_full_layers(context, rows, batch) -> None:
    full = replace(EVERY_OTHER, window_tokens=None, windowed_layers=0)
    windowed = kv_bytes_read(context, rows=rows, batch=batch)
    assert windowed <= kv_bytes_read(context, model=full, rows=rows, batch=batch)
    assert windowed <= kv_bytes_read(context + 1, rows=rows, batch=batch)
    assert windowed == pytest.approx(batch * EVERY_OTHER.mean_attended_tokens(context) * kv_bytes_per_token(EVERY_OTHER, BF16))


@given(st.integers(0, 8192), st.integers(0, 8192))
def test_a_price_is_exact_at_its_context_and_never_too_low_elsewhere(context: int, priced_at: int) -> None:
    exact_s = verify_s(EVERY_OTHER, context, priced_at=context)
    assert verify_s(EVERY_OTHER, context, priced_at=priced_at) >= exact_s * (1 - 1e-9)
    if (context <= 4096) == (priced_at <= 4096):
        assert verify_s(EVERY_OTHER, context, priced_at=priced_at) == pytest.approx(exact_s)


def test_the_price_of_a_model_with_windows_needs_a_context() -> None:
    with pytest.raises(ValueError, match="'gemma-2-9b' has layers with a window: its price needs a context"):
        verify_work(None)
    assert verify_work(None, NONE).window_kv_bytes == 0


def test_a_layer_with_a_window_caches_at_most_its_window() -> None:
    assert kv_cache_bytes(ALL, BF16, 32768) == 4096 * kv_bytes_per_token(ALL, BF16)
    assert kv_cache_bytes(NONE, BF16, 32768) == 32768 * kv_bytes_per_token(NONE, BF16)
    assert kv_cache_bytes(EVERY_OTHER, BF16, 1000) == 1000 * kv_bytes_per_token(EVERY_OTHER, BF16)


def test_a_plain_mlp_has_two_matrices_and_not_three() -> None:
    opt = find_model("opt-6.7b")
    work = verify_work(None, opt)
    assert work.weight_bytes == 2 * (32 * opt.layer_params + opt.head_params)
    assert opt.layer_params == pytest.approx(4 * 4096**2 + 2 * 4096 * 16384, rel=1e-3)
