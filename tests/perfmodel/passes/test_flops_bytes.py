import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.errors import BadPolicy
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.passes.flops_bytes import PassSetting, attn_flops, kv_bytes_per_token
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import model_weight_bytes, plain_format

BF16 = plain_format("bf16")
LLAMA_7B = find_model("llama-2-7b")
DRAFT = find_draft("s2d")


def setting_of(exit_layers: tuple[int, ...] = (), *, num_devices: int = 1, batch: int = 1) -> PassSetting:
    return PassSetting(model=LLAMA_7B, exit_layers=exit_layers, weights=BF16, batch=batch, num_devices=num_devices)


def test_a_7b_layer_has_405_mb_and_its_head_two_thirds_of_that() -> None:
    setting = PassSetting(model=LLAMA_7B, weights=plain_format("fp16"))
    layer, head = setting.layers_work(1, rows=1).weight_bytes, setting.layers_work(0, rows=0, head_rows=1).weight_bytes
    assert layer == pytest.approx(405e6, rel=1e-3)
    assert head / layer == pytest.approx(0.65, abs=0.005)


def test_a_decode_step_computes_two_flop_per_weight_it_reads() -> None:
    work = setting_of().work("verify", 0, 1)
    weights = work.weight_bytes / 2
    assert work.flops == pytest.approx(2 * weights + attn_flops(LLAMA_7B, 32, 1, 1))


def test_a_step_reads_all_weights_but_the_embedding_and_the_final_norm() -> None:
    unread = 2 * (LLAMA_7B.head_params + LLAMA_7B.hidden_size)
    assert setting_of().work("verify", 0, 1).weight_bytes == model_weight_bytes(LLAMA_7B, BF16) - unread


def test_segments_and_the_head_add_up_to_the_whole_draft() -> None:
    draft = PassSetting(model=DRAFT.model, exit_layers=DRAFT.exit_layers, weights=BF16)
    segments = [draft.work("segment", stage, 1) for stage in range(3)]
    assert [work.num_layers for work in segments] == [6, 3, 3]
    whole = PassSetting(model=DRAFT.model, weights=BF16).work("verify", 0, 1)
    parts = sum(work.weight_bytes for work in segments) + draft.work("exit", 2, 1).weight_bytes
    assert parts == whole.weight_bytes


def test_an_exit_check_waits_for_the_host_once_and_a_segment_never() -> None:
    setting = setting_of((6, 9, 12))
    assert [setting.work("exit", 0, 1).num_syncs, setting.work("segment", 0, 1).num_syncs] == [1, 0]
    assert setting.work("exit", 0, 1).num_layers == 0


def test_an_ahead_pass_is_an_exit_check_and_the_next_segment() -> None:
    setting = setting_of((6, 9, 12))
    ahead, check, segment = setting.work("ahead", 1, 3), setting.work("exit", 0, 1), setting.work("segment", 1, 3)
    for name in ("num_passes", "num_syncs", "num_layers", "weight_bytes", "flops", "kv_bytes_per_cached_token"):
        assert getattr(ahead, name) == pytest.approx(getattr(check, name) + getattr(segment, name)), name
    with pytest.raises(BadPolicy):  # no exit check comes before the first segment
        setting.work("ahead", 0, 1)


def test_a_self_draft_verifies_above_its_last_exit_and_decodes_plainly_through_all_layers() -> None:
    setting = setting_of((4, 8))
    assert setting.work("verify", 0, 5).num_layers == 24
    assert setting.work("verify", 0, 1).num_layers == 32


def test_a_round_pass_is_bookkeeping_only() -> None:
    work = setting_of().work("round", 0, 4)
    assert (work.num_rounds, work.drafted_rows, work.num_layers, work.weight_bytes) == (1, 4, 0, 0.0)


def test_a_prefill_does_not_run_the_head() -> None:
    assert [setting_of((6, 9)).work("draft_prefill", stage, 100).num_layers for stage in (0, 1)] == [6, 3]
    assert setting_of((6, 12)).work("target_prefill", 0, 100).num_layers == 32
    assert setting_of().work("target_prefill", 0, 100).num_syncs == 0


def test_an_exit_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadPolicy, match="exit number 2 of 'llama-2-7b'"):
        setting_of((6, 9)).work("segment", 2, 1)


def test_quantised_weights_keep_a_16_bit_cache() -> None:
    for dtype in ("bf16", "fp8", "int8", "int4", "q4_k_m"):
        assert kv_bytes_per_token(LLAMA_7B, dtype_format(dtype, LLAMA_7B)) == 2**19
    assert kv_bytes_per_token(LLAMA_7B, plain_format("fp32")) == 2**20


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 64), st.integers(1, 8))
def test_devices_share_the_work_and_add_two_all_reduces_per_layer(num_devices: int, rows: int, batch: int) -> None:
    alone = setting_of(batch=batch).work("verify", 0, rows)
    shared = setting_of(num_devices=num_devices, batch=batch).work("verify", 0, rows)
    assert shared.weight_bytes * num_devices == pytest.approx(alone.weight_bytes)
    assert shared.flops * num_devices == pytest.approx(alone.flops)
    rows_out_and_logits_in = 2
    assert shared.num_all_reduces == (64 + rows_out_and_logits_in if num_devices > 1 else 0)


def test_devices_share_the_head_and_one_gathers_its_logits() -> None:
    alone, shared = (setting_of((6, 12), num_devices=number).work("exit", 0, 1) for number in (1, 4))
    assert (alone.num_all_reduces, alone.link_bytes) == (0, 0.0)
    assert shared.weight_bytes == alone.weight_bytes / 4
    assert (shared.num_all_reduces, shared.link_bytes) == (1, 2 * 32000 * 3 / 4)


@given(st.integers(1, 16), st.integers(1, 8))
def test_weights_are_read_once_for_the_whole_batch_and_the_cache_once_per_sequence(rows: int, batch: int) -> None:
    single, many = setting_of().work("verify", 0, rows), setting_of(batch=batch).work("verify", 0, rows)
    assert many.weight_bytes == single.weight_bytes
    assert many.kv_bytes_per_cached_token == batch * single.kv_bytes_per_cached_token
    assert many.flops == pytest.approx(batch * single.flops)
