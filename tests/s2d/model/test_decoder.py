"""The decoder computes what transformers computes, in any split of the text and for every exit."""

import pytest
import torch

from perfmodel.models.dtypes import Dtype
from tests.stubs import VOCAB_SIZE, TinySpec, loaded, tiny_llama, tiny_model

SPECS = {
    "one kv head for two heads": TinySpec(),
    "a kv head per head, tied": TinySpec(num_kv_heads=2, tied=True),
    "two kv heads for four heads, heads wider than hidden": TinySpec(num_heads=4, num_kv_heads=2, head_dim=24),
    "llama3 rope": TinySpec(rope="llama3"),
}


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def logits_in_pieces(model, pieces, token_ids, segment_ends):
    cache = model.decoder.new_cache(segment_ends, len(token_ids))
    logits, position = [], 0
    for rows in pieces:
        states = model.decoder.embed(token_ids[position : position + rows])
        for segment in cache.segments:
            states = model.decoder.forward_segment(states, segment, cache)
        logits.append(model.decoder.exit_logits(states))
        position += rows
    return torch.cat(logits)


@torch.no_grad()
def reference_logits(model, token_ids):
    return model(torch.tensor([token_ids])).logits[0]


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_those_of_transformers_in_any_split_of_the_text(name: str) -> None:
    model = tiny_llama(SPECS[name])
    tokens = some_tokens(110)
    expected = reference_logits(model, tokens)
    whole = loaded(model).decoder.all_exit_logits(tokens, (SPECS[name].num_layers,))[0]
    torch.testing.assert_close(whole, expected, atol=2e-4, rtol=1e-4)
    pieces = logits_in_pieces(loaded(model), (70, 1, 1, 5, 3, 1, 29), tokens, (2, 3, 6))
    torch.testing.assert_close(pieces, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "max_error"), [("bf16", 0.03), ("fp16", 0.005)])
def test_half_precision_differs_by_its_rounding_error_at_most(dtype: Dtype, max_error: float) -> None:
    model = tiny_llama(SPECS["one kv head for two heads"])
    tokens = some_tokens(40)
    expected = reference_logits(model, tokens)
    logits = logits_in_pieces(loaded(model, dtype=dtype), (20, 1, 4, 15), tokens, (2, 6))
    assert float((logits.float() - expected).abs().max() / expected.abs().max()) < max_error


def test_an_exit_is_the_model_with_fewer_layers() -> None:
    tokens = some_tokens(30)
    by_exit = tiny_model(TinySpec(), (2, 4, 6)).decoder.all_exit_logits(tokens, (2, 4, 6))
    for layers, logits in zip((2, 4, 6), by_exit, strict=True):
        shallow = reference_logits(tiny_llama(TinySpec(num_layers=layers)), tokens)
        torch.testing.assert_close(logits, shallow, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_backlog_processed_late_gives_the_logits_of_token_by_token() -> None:
    decoder, tokens = tiny_model(TinySpec(), (2, 4)).decoder, some_tokens(12)
    expected = decoder.all_exit_logits(tokens, (2, 4))[1]
    cache = decoder.new_cache((2, 4), len(tokens))
    first, second = cache.segments
    for token in tokens[:9]:
        decoder.forward_segment(decoder.embed([token]), first, cache)
    assert cache.lengths == [9, 0]
    late = decoder.forward_segment(cache.backlog(1, 9), second, cache)
    torch.testing.assert_close(decoder.exit_logits(late), expected[:9], atol=1e-5, rtol=1e-5)
    cache.crop(5)
    decoder.forward_segment(decoder.embed(tokens[5:]), first, cache)
    rest = decoder.forward_segment(cache.backlog(1, 12), second, cache)
    torch.testing.assert_close(decoder.exit_logits(rest), expected[5:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_crop_never_lengthens_a_segment() -> None:
    decoder = tiny_model(TinySpec(), (2, 4)).decoder
    cache = decoder.new_cache((2, 4), 10)
    decoder.forward_segment(decoder.embed(some_tokens(6)), cache.segments[0], cache)
    cache.crop(8)
    assert cache.lengths == [6, 0]
    cache.crop(4)
    assert cache.lengths == [4, 0]
