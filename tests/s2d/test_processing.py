"""Processed logits are those of transformers' own processors, row by row, whatever was drafted and thrown away before."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from perfmodel.sampling import GREEDY, Sampling
from s2d.processing import Processing
from tests.strategies import penalties

VOCAB_SIZE = 29
PROMPT = [3, 3, 7]
tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=6)
unpenalised = st.one_of(
    st.just({"rule": "greedy", "temperature": 0.0, "top_k": None, "top_p": None, "seed": None}),
    st.fixed_dictionaries(
        {
            "rule": st.sampled_from(["shared-noise", "ratio"]),
            "temperature": st.sampled_from([0.5, 1.0, 1.7]),
            "top_k": st.sampled_from([None, 1, 9, 100]),
            "top_p": st.sampled_from([None, 0.4, 0.9, 1.0]),
            "min_p": st.sampled_from([None, 0.0, 0.1, 0.6, 1.0]),
            "seed": st.just(0),
        }
    ),
)


def of_transformers(logits: torch.Tensor, text: list[int], sampling: Sampling) -> torch.Tensor:
    """One row, [1, V], with the processors that `generate` would build, and in its order."""
    found = LogitsProcessorList()
    if sampling.repetition_penalty is not None:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.rule != "greedy":
        found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        found.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        found.append(MinPLogitsWarper(sampling.min_p))
    return found(torch.tensor([text]), logits)


@settings(max_examples=150, derandomize=True)
@given(data=st.data(), rest=unpenalised, repetition=st.sampled_from([None, 0.7, 1.0, 1.3]), seed=st.integers(0, 1000))
def test_every_row_is_processed_as_transformers_would_after_its_own_prefix(
    data: st.DataObject, rest: dict[str, object], repetition: float | None, seed: int
) -> None:
    sampling = Sampling(**rest, repetition_penalty=repetition)
    generator = torch.Generator().manual_seed(seed)
    processing, text = Processing(sampling, len(PROMPT)), [*PROMPT]
    for drafted, written in data.draw(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=3)):
        block = [*text, *drafted]
        logits = 2 * torch.randn(len(drafted) + 1, VOCAB_SIZE, generator=generator)
        ends = range(len(text), len(block) + 1)
        expected = torch.cat([of_transformers(row[None], block[:end], sampling) for row, end in zip(logits, ends, strict=True)])
        exits = [processing(row[None], block[:end], len(text)) for row, end in zip(logits, ends, strict=True)]
        torch.testing.assert_close(torch.cat(exits), expected)
        torch.testing.assert_close(processing(logits, block, len(text)), expected)
        text += written  # whatever was drafted


@settings(max_examples=60, derandomize=True)
@given(penalty=penalties, drafted=tokens, written=tokens)
def test_presence_counts_once_and_frequency_each_time_and_neither_counts_the_prompt(
    penalty: dict[str, float | None], drafted: list[int], written: list[int]
) -> None:
    """vLLM's formula, in Python."""
    sampling = Sampling(rule="greedy", temperature=0.0, top_k=None, top_p=None, seed=None, **penalty)
    logits = torch.randn(len(drafted) + 1, VOCAB_SIZE, generator=torch.Generator().manual_seed(5))
    known = len(PROMPT) + len(written)
    expected = logits.clone()
    for row, seen in zip(expected, (Counter([*written, *drafted[:i]]) for i in range(len(drafted) + 1)), strict=True):
        for token in {*PROMPT, *seen}:
            factor = penalty["repetition_penalty"] or 1.0
            row[token] *= factor if row[token] < 0 else 1 / factor
        for token, times in seen.items():
            row[token] -= (penalty["frequency_penalty"] or 0) * times + (penalty["presence_penalty"] or 0)
    torch.testing.assert_close(Processing(sampling, len(PROMPT))(logits, [*PROMPT, *written, *drafted], known), expected)


def test_without_a_penalty_nothing_is_done_for_one() -> None:
    neutral = Sampling(
        rule="greedy",
        temperature=0.0,
        top_k=None,
        top_p=None,
        seed=None,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )
    logits = torch.randn(2, VOCAB_SIZE, dtype=torch.bfloat16)
    for sampling in (GREEDY, neutral):
        assert Processing(sampling, len(PROMPT))(logits, [*PROMPT, 1], len(PROMPT)) is logits
