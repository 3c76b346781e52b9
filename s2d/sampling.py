"""Logits to distributions, tokens and confidence; the noise that target and draft share.

Confidence is a function of an exit's distribution alone, never of the token sampled from it: testing the sampled token's
own probability would change the output's distribution.

Symbols: T rows, V vocab, U of its tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from perfmodel.policy import Confidence
from perfmodel.sampling import Sampling


def penalised(logits: Tensor, sampling: Sampling, in_prompt: Tensor, num_written: Tensor) -> Tensor:
    """Raw logits of some tokens after repetition, frequency and presence penalty, in vLLM's order: [T, U].

    Args:
        logits: of U tokens, [T, U].
        sampling: says how much.
        in_prompt: whether the prompt holds a token, bool [U].
        num_written: how often a token was written before each row, [T, U].
    """
    is_written = num_written > 0
    if sampling.repetition_penalty is not None:
        lowered = torch.where(logits < 0, logits * sampling.repetition_penalty, logits / sampling.repetition_penalty)
        logits = torch.where(is_written | in_prompt, lowered, logits)
    if sampling.frequency_penalty:
        logits = logits - sampling.frequency_penalty * num_written
    if sampling.presence_penalty:
        logits = logits - sampling.presence_penalty * is_written
    return logits


def processed(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits after temperature, top-k, top-p and min-p, in this order: [T, V]; greedy leaves them as they are."""
    if sampling.rule == "greedy":
        return logits
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        weakest_kept = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < weakest_kept, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        # A token goes when those before it already hold top_p; the likeliest always stays.
        beyond = probs.cumsum(-1) - probs >= sampling.top_p
        beyond[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if sampling.min_p:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), -torch.inf)
    return logits


def confidence_of(probs: Tensor, kind: Confidence) -> Tensor:
    """How sure a distribution is, from 0 to 1: [T, V] -> [T]."""
    if kind == "max-prob":
        return probs.amax(-1)
    if kind == "margin":
        largest = probs.topk(2, dim=-1).values
        return largest[:, 0] - largest[:, 1]
    return (1 - torch.special.entr(probs).sum(-1) / math.log(probs.shape[-1])).clamp(0, 1)


def gumbel_table(seed: int, num_positions: int, vocab_size: int) -> Tensor:
    """Gumbel noise for the first absolute positions of a text: float32 [positions, V].

    Drawn row by row, so that a position's noise depends on the seed and the vocabulary's size alone.
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.empty(num_positions, vocab_size)
    for row in table:
        row.exponential_(generator=generator)
    return table.log_().neg_()


def choose(logits: Tensor, noise: Tensor | None) -> Tensor:
    """The token of each row: the argmax of processed logits, plus the positions' noise where it is shared.

    Args:
        logits: processed, [T, V].
        noise: rows of `gumbel_table` for the positions of the tokens to choose, [T, V]; None is greedy.

    Returns:
        int64 [T].
    """
    return (logits if noise is None else logits.float() + noise).argmax(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How an exit's logits become its answer, where nothing counts but them and the position's noise."""

    sampling: Sampling
    confidence: Confidence

    def __call__(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """The token, int64 [T], and the confidence, [T], of logits [T, V] that penalties have changed already."""
        logits = processed(logits, self.sampling)
        return choose(logits, noise), confidence_of(logits.softmax(-1), self.confidence)


Answer = Callable[[], tuple[int, float]]
"""Waits for what an exit said: a token, and the confidence in it."""


class Post:
    """An exit's answer on its way to the host, which waits for it alone and for nothing launched after it.

    Args:
        device: where exits answer.
    """

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._device = device
        self._sent = torch.cuda.Event() if is_cuda else None
        self._read = torch.zeros(2, dtype=torch.float64, pin_memory=is_cuda)

    def send(self, answer: Tensor) -> None:
        """Token and confidence, float64 [2]; the one sent before has been read."""
        self._read.copy_(answer, non_blocking=self._sent is not None)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device))

    def __call__(self) -> tuple[int, float]:
        """See `Answer`."""
        if self._sent is not None:
            self._sent.synchronize()
        token, confidence = self._read.tolist()
        return int(token), confidence
