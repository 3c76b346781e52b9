"""A reduced LM head changes the weights and the cost of exit checks, and nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.errors import UserInputError
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import with_reduced_head
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.flops_bytes import PassSetting, PassWork
from perfmodel.quantisation.weight_format import plain_format

DRAFT = find_draft("s2d")
WHOLE, VOCAB, WIDTH = DRAFT.model, DRAFT.model.vocab_size, DRAFT.model.hidden_size
A100 = find_hardware("a100")


def head_setting(tokens: int | None) -> PassSetting:
    return PassSetting(model=with_reduced_head(WHOLE, tokens), exit_layers=DRAFT.exit_layers, weights=plain_format("bf16"))


def exit_work(tokens: int | None, rows: int = 1) -> PassWork:
    return head_setting(tokens).work("exit", 1, rows)


@given(st.integers(1, VOCAB), st.integers(1, 16))
def test_the_cost_of_an_exit_check_is_proportional_to_the_tokens_in_the_head(tokens: int, rows: int) -> None:
    whole, reduced = exit_work(None, rows), exit_work(tokens, rows)
    assert reduced.weight_bytes * VOCAB == whole.weight_bytes * tokens == 2 * VOCAB * WIDTH * tokens
    assert reduced.flops * VOCAB == pytest.approx(whole.flops * tokens)
    assert whole.model_bytes - reduced.model_bytes == 2 * (VOCAB - tokens) * WIDTH
    head_terms = {"head_bytes": whole.head_bytes, "model_bytes": whole.model_bytes, "head_flops": whole.head_flops}
    assert replace(reduced, **head_terms) == whole


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_only_exit_checks_become_faster_and_their_host_sync_stays(mode: LaunchMode) -> None:
    tokens = 8192
    whole, reduced = (RooflineLatency(head_setting(head_tokens), A100, mode) for head_tokens in (None, tokens))
    for stage in range(3):
        assert reduced.line("segment", stage, 1) == whole.line("segment", stage, 1)
        (reduced_s, _), (whole_s, _) = (latency.line("exit", stage, 1) for latency in (reduced, whole))
        sync_s = A100.launch_costs(mode).sync_s
        assert reduced_s - sync_s == pytest.approx((whole_s - sync_s) * tokens / VOCAB)
    assert reduced.line("draft_prefill", 0, 64) == whole.line("draft_prefill", 0, 64)


def test_a_reduced_head_is_counted_in_addition_to_a_tied_embedding() -> None:
    tied, tokens = find_model("qwen2.5-0.5b"), 10_000
    assert tied.tied_embeddings
    assert with_reduced_head(tied, tokens).num_params == tied.num_params + tokens * tied.hidden_size
    assert with_reduced_head(WHOLE, tokens).num_params == WHOLE.num_params - (VOCAB - tokens) * WIDTH


def test_a_reduced_head_still_reads_the_projection_of_a_narrow_embedding() -> None:
    narrow = replace(find_model("opt-350m"), head_vocab_size=1000)
    assert narrow.head_params == 1000 * 512 + 512 * 1024


def test_a_head_of_all_tokens_is_the_complete_head() -> None:
    assert with_reduced_head(WHOLE, None) == with_reduced_head(WHOLE, VOCAB) == WHOLE
    explicit = replace(WHOLE, head_vocab_size=VOCAB)
    assert not explicit.has_reduced_head
    assert (explicit.head_params, explicit.num_params) == (WHOLE.head_params, WHOLE.num_params)
    assert explicit.differences_from_llama == WHOLE.differences_from_llama == ()


def test_a_reduced_head_is_a_difference_from_a_llama() -> None:
    assert with_reduced_head(WHOLE, 8192).differences_from_llama == ("a reduced head",)
    assert with_reduced_head(WHOLE, 8192).head_label == "a head of 8192 of 32000 tokens"


@pytest.mark.parametrize("tokens", [-1, 0, VOCAB + 1])
def test_a_head_has_at_least_one_token_and_at_most_the_vocabulary(tokens: int) -> None:
    with pytest.raises(UserInputError, match=f"--draft-vocab {tokens}: expected from 1 to 32000 tokens, the vocabulary of s2d"):
        with_reduced_head(WHOLE, tokens)
    with pytest.raises(ValueError, match=f"an LM head of {tokens} tokens, expected 1 to the 32000 of its vocabulary"):
        replace(WHOLE, head_vocab_size=tokens)
