"""A head that says only the most frequent tokens: what it weighs, what an exit check reads, and what stays as it was."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.errors import UserInputError
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import with_reduced_head
from perfmodel.passes.device_key import EngineMode
from perfmodel.passes.flops_bytes import PassSetting, PassWork
from perfmodel.quantisation.weight_format import plain_format

DRAFT = find_draft("s2d")
WHOLE, VOCAB, WIDTH = DRAFT.model, DRAFT.model.vocab_size, DRAFT.model.hidden_size
A100 = find_hardware("a100")


def setting_of(tokens: int | None) -> PassSetting:
    return PassSetting(model=with_reduced_head(WHOLE, tokens), exit_layers=DRAFT.exit_layers, weights=plain_format("bf16"))


def exit_work(tokens: int | None, rows: int = 1) -> PassWork:
    return setting_of(tokens).work("exit", 1, rows)


@given(st.integers(1, VOCAB), st.integers(1, 16))
def test_an_exit_check_reads_and_computes_in_proportion_to_the_tokens_it_can_say(tokens: int, rows: int) -> None:
    whole, reduced = exit_work(None, rows), exit_work(tokens, rows)
    assert reduced.weight_bytes * VOCAB == whole.weight_bytes * tokens == 2 * VOCAB * WIDTH * tokens
    assert reduced.flops * VOCAB == pytest.approx(whole.flops * tokens)
    assert whole.model_bytes - reduced.model_bytes == 2 * (VOCAB - tokens) * WIDTH
    as_whole = {"head_bytes": whole.head_bytes, "model_bytes": whole.model_bytes, "head_flops": whole.head_flops}
    assert replace(reduced, **as_whole) == whole


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_only_exit_checks_become_faster_and_their_wait_for_the_host_stays(engine: EngineMode) -> None:
    tokens = 8192
    whole, reduced = (RooflineLatency(setting_of(head_tokens), A100, engine) for head_tokens in (None, tokens))
    for stage in range(3):
        assert reduced.line("segment", stage, 1) == whole.line("segment", stage, 1)
        (reduced_s, _), (whole_s, _) = (one.line("exit", stage, 1) for one in (reduced, whole))
        sync_s = A100.engine_costs(engine).sync_s
        assert reduced_s - sync_s == pytest.approx((whole_s - sync_s) * tokens / VOCAB)
    assert reduced.line("draft_prefill", 0, 64) == whole.line("draft_prefill", 0, 64)


def test_a_reduced_head_is_a_copy_and_so_counted_besides_a_tied_embedding() -> None:
    tied, tokens = find_model("qwen2.5-0.5b"), 10_000
    assert tied.tied_embeddings
    assert with_reduced_head(tied, tokens).num_params == tied.num_params + tokens * tied.hidden_size
    assert with_reduced_head(WHOLE, tokens).num_params == WHOLE.num_params - (VOCAB - tokens) * WIDTH


def test_the_way_to_a_narrow_embedding_is_read_whatever_the_head_says() -> None:
    narrow = replace(find_model("opt-350m"), head_vocab_size=1000)
    assert narrow.head_params == 1000 * 512 + 512 * 1024


def test_a_head_of_all_tokens_is_the_whole_one() -> None:
    assert with_reduced_head(WHOLE, None) == with_reduced_head(WHOLE, VOCAB) == WHOLE
    all_of_them = replace(WHOLE, head_vocab_size=VOCAB)
    assert not all_of_them.has_reduced_head
    assert (all_of_them.head_params, all_of_them.num_params) == (WHOLE.head_params, WHOLE.num_params)
    assert all_of_them.differences_from_llama == WHOLE.differences_from_llama == ()


def test_it_is_a_departure_from_a_llama() -> None:
    assert with_reduced_head(WHOLE, 8192).differences_from_llama == ("a reduced head",)
    assert with_reduced_head(WHOLE, 8192).head_label == "a head of 8192 of 32000 tokens"


@pytest.mark.parametrize("tokens", [-1, 0, VOCAB + 1])
def test_a_head_says_at_least_one_token_and_no_more_than_there_are(tokens: int) -> None:
    with pytest.raises(UserInputError, match=f"--draft-vocab {tokens}: expected from 1 to 32000 tokens, the vocabulary of s2d"):
        with_reduced_head(WHOLE, tokens)
    with pytest.raises(ValueError, match=f"an LM head of {tokens} tokens, expected 1 to the 32000 of its vocabulary"):
        replace(WHOLE, head_vocab_size=tokens)
