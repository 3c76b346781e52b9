"""Accept or correct: what the target makes of a drafted block, under each acceptance rule.

Symbols: G drafted, V vocab.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from perfmodel.core.units import Tokens
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import Sampling
from s2d.decoding.process_logits import Processing
from s2d.model.choose_tokens import (
    ExitPredictor,
    NoiseTable,
    choose,
    confidence_of,
    new_noise_table,
    probabilities,
    sample_indices,
)
from s2d.model.decoder import Decoder
from s2d.model.host_copies import HostTokens, PendingPrediction, Uniforms


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How much of a drafted block is the target's own, and the token the target adds."""

    num_accepted: int
    bonus: int


class Verifier(Protocol):
    """One acceptance rule: how an exit answers, and how the target decides on a block of such answers."""

    @property
    def choice(self) -> ExitPredictor | None:
        """How exits answer where nothing counts but their logits and the position's noise; None where more does."""
        ...

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """A text begins, with so many tokens of a prompt; it will hold at most so many."""
        ...

    def ask(self, decoder: Decoder, states: Tensor, text: Sequence[int], known: Tokens, exit_number: int) -> PendingPrediction:
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


def make_verifier(
    sampling: Sampling, confidence: Confidence, device: torch.device, noise: NoiseTable | None = None
) -> Verifier:
    """The verifier for an acceptance rule.

    Args:
        sampling: the rule and its settings.
        confidence: the kind that exits answer with.
        device: where the logits are.
        noise: of the same seed and vocabulary, to share; where None a verifier that needs one makes its own.
    """
    if sampling.rule == "ratio":
        return RatioJudge(sampling, confidence, device)
    return ExactJudge(sampling, confidence, device, noise)


class ExactJudge:
    """Greedy and shared noise: an accepted token equals the target's own choice for its position."""

    def __init__(
        self, sampling: Sampling, confidence: Confidence, device: torch.device, noise: NoiseTable | None = None
    ) -> None:
        assert noise is None or noise.seed == sampling.seed
        self._sampling = sampling
        self._is_greedy, self._has_penalties = sampling.rule == "greedy", sampling.has_penalties
        self._choice = ExitPredictor(sampling=sampling, confidence=confidence)
        self._device = device
        self._tokens = HostTokens(device)
        self._noise = noise
        self._max_tokens = 0

    @property
    def choice(self) -> ExitPredictor | None:
        """See `Verifier`. Penalties depend on the text."""
        return None if self._has_penalties else self._choice

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """See `Verifier`. The noise itself is drawn when the vocabulary's size is first seen."""
        self._processing = Processing(self._sampling, prompt_tokens, self._tokens)
        self._max_tokens = max_tokens

    def ask(self, decoder: Decoder, states: Tensor, text: Sequence[int], known: Tokens, exit_number: int) -> PendingPrediction:
        """See `Verifier`."""
        noise = self._noise_of(len(text), 1, decoder.vocab_size)
        if not self._has_penalties:
            return decoder.predict(states, self._choice, noise)
        return decoder.send_prediction(
            *self._choice(self._processing.penalised(decoder.exit_logits(states), text, known), noise)
        )

    def verdict(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Verdict:
        """See `Verifier`."""
        logits = self._processing(logits, text, known)
        noise = self._noise_of(known, *logits.shape)
        return longest_agreement(choose(logits, noise).tolist(), text[known:])

    def _noise_of(self, position: int, num_rows: int, vocab_size: int) -> Tensor | None:
        if self._is_greedy:
            return None
        if self._noise is None:
            self._noise = new_noise_table(self._sampling, vocab_size, self._device)
        assert self._noise is not None
        self._noise.grow(self._max_tokens)
        return self._noise.rows(position, position + num_rows)


class RatioJudge:
    """Leviathan et al. 2023, Alg. 1: accept x with probability min(1, p(x) / q(x)), else draw from max(p - q, 0)."""

    def __init__(self, sampling: Sampling, confidence: Confidence, device: torch.device) -> None:
        assert sampling.seed is not None
        self._sampling = sampling
        self._seed = sampling.seed
        self._confidence = confidence
        self._uniforms = Uniforms(device, sampling.seed)
        self._tokens = HostTokens(device)
        self._draft_probs: list[Tensor] = []  # a [V] per drafted token

    @property
    def choice(self) -> ExitPredictor | None:
        """See `Verifier`. Tokens are drawn."""
        return None

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """See `Verifier`."""
        self._processing = Processing(self._sampling, prompt_tokens, self._tokens)
        self._uniforms.restart(self._seed)
        self._draft_probs = []

    def ask(self, decoder: Decoder, states: Tensor, text: Sequence[int], known: Tokens, exit_number: int) -> PendingPrediction:
        """See `Verifier`. The distribution of the exit that answers last for a place in the block is the one that counts."""
        probs = probabilities(self._processing(decoder.exit_logits(states), text, known))  # [1, V]
        self._draft_probs[len(text) - known :] = [probs[0]]
        return decoder.send_prediction(sample_indices(probs, self._uniforms.take(1)), confidence_of(probs, self._confidence))

    def verdict(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Verdict:
        """See `Verifier`."""
        target_probs = probabilities(self._processing(logits, text, known))  # [G + 1, V]
        # A round that drafts nothing leaves the distributions of an earlier round in place.
        draft_probs = self._draft_probs[: len(text) - known]
        return ratio_test(target_probs, draft_probs, self._tokens(text[known:]), self._uniforms.take(len(logits)))


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


def ratio_test(target_probs: Tensor, draft_probs: Sequence[Tensor], drafted: Tensor, uniform: Tensor) -> Verdict:
    """Leviathan et al. 2023, Alg. 1, with the arguments of `ratio_decision`; waits once for the device."""
    num_accepted, bonus = ratio_decision(target_probs, draft_probs, drafted, uniform).tolist()
    return Verdict(num_accepted=num_accepted, bonus=bonus)


def ratio_decision(target_probs: Tensor, draft_probs: Sequence[Tensor], drafted: Tensor, uniform: Tensor) -> Tensor:
    """The accepted number of drafted tokens and the token after them, decided on the device: int64 [2].

    Token x is accepted while u q(x) < p(x). The token after the last accepted one is drawn from max(p - q, 0). After a block
    that is accepted whole, q counts as zero, which leaves the target's own p.

    Args:
        target_probs: p, [G + 1, V].
        draft_probs: q, a [V] per drafted token.
        drafted: tokens sampled from their q, int64 [G].
        uniform: numbers from 0 to below 1, one per drafted token and one for the token after them: float64 [G + 1].
    """
    q = torch.stack([*draft_probs, torch.zeros_like(target_probs[0])])  # [G + 1, V]
    num_drafted, tokens = len(drafted), drafted[:, None]
    p_drafted, q_drafted = (probs[:num_drafted].gather(1, tokens)[:, 0] for probs in (target_probs, q))  # [G]
    is_accepted = uniform[:num_drafted] * q_drafted < p_drafted
    num_accepted = is_accepted.long().cumprod(0).sum(0, keepdim=True)  # [1]
    p = target_probs.index_select(0, num_accepted)  # [1, V]
    residual = (p - q.index_select(0, num_accepted)).clamp_(min=0)
    # Rounding leaves no residual where p and q are equal but for the last bit.
    weights = torch.where(residual.any(-1, keepdim=True), residual, p)
    return torch.cat((num_accepted, sample_indices(weights, uniform[num_drafted:])))
