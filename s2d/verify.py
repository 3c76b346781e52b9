"""Accept or correct: what the target makes of a drafted block, under each acceptance rule.

Symbols: G drafted, V vocab.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from perfmodel.policy import Confidence
from perfmodel.sampling import Sampling
from perfmodel.units import Tokens
from s2d.nested import Decoder
from s2d.processing import Processing
from s2d.sampling import Answer, Choice, choose, confidence_of, gumbel_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How much of a drafted block is the target's own, and the token the target adds."""

    num_accepted: int
    bonus: int


class Judge(Protocol):
    """One acceptance rule: how an exit answers, and how the target decides on a block of such answers."""

    @property
    def choice(self) -> Choice | None:
        """How exits answer where nothing counts but their logits and the position's noise; None where more does."""
        ...

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """A text begins, with so many tokens of a prompt; it will hold at most so many."""
        ...

    def ask(self, decoder: Decoder, states: Tensor, text: Sequence[int], known: Tokens, exit_number: int) -> Answer:
        """Token and confidence of an exit, to be read before another is asked.

        Args:
            decoder: the draft.
            states: its row at that exit, [1, D + PAD].
            text: certain tokens, `known` of them, and drafted ones.
            known: where in it the block begins.
            exit_number: which exit, zero-based.
        """
        ...

    def verdict(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Verdict:
        """Decide on the drafted tokens of a text, `text[known:]`: the target's logits [G + 1, V]."""
        ...


def make_judge(sampling: Sampling, confidence: Confidence, device: torch.device) -> Judge:
    """The judge for an acceptance rule."""
    if sampling.rule == "ratio":
        return RatioJudge(sampling, confidence, device)
    return ExactJudge(sampling, confidence, device)


class ExactJudge:
    """Greedy and shared noise: an accepted token equals the target's own choice for its position."""

    def __init__(self, sampling: Sampling, confidence: Confidence, device: torch.device) -> None:
        self._sampling = sampling
        self._is_greedy, self._has_penalties = sampling.rule == "greedy", sampling.has_penalties
        self._choice = Choice(sampling=sampling, confidence=confidence)
        self._device = device
        self._noise: Tensor | None = None  # [positions, V]
        self._max_tokens = 0

    @property
    def choice(self) -> Choice | None:
        """See `Judge`. Penalties depend on the text."""
        return None if self._has_penalties else self._choice

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """See `Judge`. The noise itself is drawn when the vocabulary's size is first seen."""
        self._processing = Processing(self._sampling, prompt_tokens)
        self._max_tokens = max_tokens

    def ask(self, decoder: Decoder, states: Tensor, text: Sequence[int], known: Tokens, exit_number: int) -> Answer:
        """See `Judge`."""
        noise = None if self._is_greedy else self._noise_of(len(text), 1, decoder.vocab_size)
        if not self._has_penalties:
            return decoder.ask(states, self._choice, noise)
        return decoder.send(*self._choice(self._processing.penalised(decoder.exit_logits(states), text, known), noise))

    def verdict(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Verdict:
        """See `Judge`."""
        logits = self._processing(logits, text, known)
        noise = None if self._is_greedy else self._noise_of(known, *logits.shape)
        return longest_agreement(choose(logits, noise).tolist(), text[known:])

    def _noise_of(self, position: int, num_rows: int, vocab_size: int) -> Tensor:
        assert self._sampling.seed is not None
        if self._noise is None or len(self._noise) < self._max_tokens:
            self._noise = gumbel_table(self._sampling.seed, self._max_tokens, vocab_size).to(self._device)
        return self._noise[position : position + num_rows]


class RatioJudge:
    """Leviathan et al. 2023, Alg. 1: accept x with probability min(1, p(x) / q(x)), else draw from max(p - q, 0)."""

    def __init__(self, sampling: Sampling, confidence: Confidence, device: torch.device) -> None:
        self._sampling = sampling
        self._confidence = confidence
        self._device = device
        self._random = torch.Generator()
        self._draft_probs: list[Tensor] = []  # a [V] per drafted token

    @property
    def choice(self) -> Choice | None:
        """See `Judge`. Tokens are drawn."""
        return None

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """See `Judge`."""
        assert self._sampling.seed is not None
        self._processing = Processing(self._sampling, prompt_tokens)
        self._random.manual_seed(self._sampling.seed)
        self._draft_probs = []

    def ask(self, decoder: Decoder, states: Tensor, text: Sequence[int], known: Tokens, exit_number: int) -> Answer:
        """See `Judge`. The distribution of the exit that answers last for a place in the block is the one that counts."""
        probs = self._processing(decoder.exit_logits(states), text, known).float().softmax(-1)
        self._draft_probs[len(text) - known :] = [probs[0]]
        return decoder.send(drawn(probs, self._random), confidence_of(probs, self._confidence))

    def verdict(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Verdict:
        """See `Judge`."""
        target_probs = self._processing(logits, text, known).float().softmax(-1)
        return ratio_test(target_probs, self._draft_probs, text[known:], self._random)


def longest_agreement(chosen: Sequence[int], drafted: Sequence[int]) -> Verdict:
    """The longest prefix of a block that the target would have chosen itself, and its choice after that.

    Args:
        chosen: the target's token for each of the block's positions and the one after: G + 1.
        drafted: G tokens.
    """
    accepted = 0
    for token in drafted:
        if token != chosen[accepted]:
            break
        accepted += 1
    return Verdict(num_accepted=accepted, bonus=chosen[accepted])


def ratio_test(target_probs: Tensor, draft_probs: Sequence[Tensor], drafted: Sequence[int], random: torch.Generator) -> Verdict:
    """Leviathan et al. 2023, Alg. 1.

    Args:
        target_probs: p, [G + 1, V].
        draft_probs: q, a [V] per drafted token.
        drafted: G tokens, each sampled from its q.
        random: where the draws come from.
    """
    draws = torch.rand(len(drafted), generator=random).tolist()
    for index, (token, draw) in enumerate(zip(drafted, draws, strict=True)):
        p, q = target_probs[index], draft_probs[index]
        if draw * float(q[token]) >= float(p[token]):
            residual = (p - q).clamp_(min=0)
            return Verdict(num_accepted=index, bonus=int(drawn(residual, random)))
    return Verdict(num_accepted=len(drafted), bonus=int(drawn(target_probs[-1], random)))


def drawn(weights: Tensor, random: torch.Generator) -> Tensor:
    """An index for every row, drawn with probability proportional to its weight: an exponential race, [..., V] -> [...]."""
    race = torch.empty(weights.shape).exponential_(generator=random).to(weights.device)
    return (weights / race).argmax(-1)
