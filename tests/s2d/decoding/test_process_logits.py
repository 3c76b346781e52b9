"""Processed logits equal those of transformers' processors, row by row, after any rejected drafts."""

from collections import Counter
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.process_logits import LogitsProcessor
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


def processed_by_transformers(logits: torch.Tensor, text: list[int], sampling: Sampling) -> torch.Tensor:
    """One row, [1, V], by the processors of transformers' `generate`, in its order."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty is not None:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.rule != "greedy":
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors(torch.tensor([text]), logits)


@settings(max_examples=150, derandomize=True)
@given(data=st.data(), rest=unpenalised, repetition=st.sampled_from([None, 0.7, 1.0, 1.3]), seed=st.integers(0, 1000))
def test_each_row_is_processed_as_transformers_does_after_its_own_prefix(
    data: st.DataObject, rest: dict[str, object], repetition: float | None, seed: int
) -> None:
    sampling = Sampling(**rest, repetition_penalty=repetition)
    generator = torch.Generator().manual_seed(seed)
    processor, text = LogitsProcessor(sampling, len(PROMPT)), [*PROMPT]
    for drafted, written in data.draw(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=3)):
        block = [*text, *drafted]
        logits = 2 * torch.randn(len(drafted) + 1, VOCAB_SIZE, generator=generator)
        ends = range(len(text), len(block) + 1)
        expected = torch.cat(
            [processed_by_transformers(row[None], block[:end], sampling) for row, end in zip(logits, ends, strict=True)]
        )
        exits = [processor(row[None], block[:end], len(text)) for row, end in zip(logits, ends, strict=True)]
        torch.testing.assert_close(torch.cat(exits), expected)
        torch.testing.assert_close(processor(logits, block, len(text)), expected)
        text += written  # independent of the drafted tokens


@settings(max_examples=60, derandomize=True)
@given(penalty=penalties, drafted=tokens, written=tokens)
def test_presence_counts_once_and_frequency_each_time_and_neither_counts_the_prompt(
    penalty: dict[str, float | None], drafted: list[int], written: list[int]
) -> None:
    """Compares with vLLM's formula."""
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
    torch.testing.assert_close(LogitsProcessor(sampling, len(PROMPT))(logits, [*PROMPT, *written, *drafted], known), expected)


ALL_PENALTIES = Sampling(
    rule="greedy",
    temperature=0.0,
    top_k=None,
    top_p=None,
    seed=None,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
)
VIEWS = {"alias", "detach", "expand", "select", "slice", "split_with_sizes", "unsqueeze", "view"}


class SentTokens:
    """Copies tokens to a device and records them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.sent: list[list[int]] = []

    def __call__(self, token_ids: Sequence[int]) -> torch.Tensor:
        self.sent.append(list(token_ids))
        return torch.tensor(token_ids, dtype=torch.int64, device=self.device)


class CountKernels(TorchDispatchMode):
    """Records the name of each operation that is not a view."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.partition(".")[0] not in VIEWS:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_call_sends_new_tokens_in_one_list_and_nothing_if_there_are_none() -> None:
    tokens = SentTokens("cpu")
    processor, logits = LogitsProcessor(ALL_PENALTIES, len(PROMPT), tokens), torch.randn(1, VOCAB_SIZE)
    processor(logits, PROMPT, 3)
    assert tokens.sent == [[3, 7]]  # the ids of the prompt's tokens, which get columns 0 and 1
    processor(logits, PROMPT, 3)
    assert len(tokens.sent) == 1
    processor(logits, [*PROMPT, 9], 3)  # 9 is drafted
    assert tokens.sent[1:] == [[2, 9]]  # its column, then its id
    processor(logits, [*PROMPT, 7, 9, 5], 5)  # 7 and 9 are known, 5 is drafted
    assert tokens.sent[2:] == [[1, 2, 3, 5]]


def test_penalties_do_not_wait_for_the_device_and_take_few_kernels() -> None:
    """A tensor on the meta device holds no numbers. Reading one, or a shape that depends on one, raises."""
    processor = LogitsProcessor(ALL_PENALTIES, len(PROMPT), SentTokens("meta"))
    rows = [torch.randn(number, VOCAB_SIZE, device="meta") for number in (1, 3)]
    processor(rows[0], [*PROMPT, 1, 2], 3)
    with CountKernels() as check:
        processor(rows[0], [*PROMPT, 1, 2], 3)
    with CountKernels() as verification:
        processor(rows[1], [*PROMPT, 4, 1, 2], 4)
    assert len(check.names) <= 13, check.names
    assert len(verification.names) <= 15, verification.names


def test_neutral_penalties_leave_the_logits_unchanged() -> None:
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
        assert LogitsProcessor(sampling, len(PROMPT))(logits, [*PROMPT, 1], len(PROMPT)) is logits
