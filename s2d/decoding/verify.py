"""Verify a drafted block: the accepted tokens and the bonus, under each acceptance rule.

Symbols: G drafted tokens, V vocabulary, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from perfmodel.core.units import Tokens
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import Sampling
from s2d.decoding.process_logits import LogitsProcessor
from s2d.model.choose_tokens import (
    ExitPredictor,
    NoiseTable,
    choose,
    confidence_values,
    new_noise_table,
    probabilities,
    sample_indices,
)
from s2d.model.decoder import Decoder
from s2d.model.host_copies import HostTokens, PendingPrediction, Uniforms


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of verifying one drafted block."""

    num_accepted: int
    bonus: int
    """The target's own token after the accepted ones."""


class Verifier(Protocol):
    """One acceptance rule: how an exit predicts a token, and how the target accepts a block of predictions."""

    @property
    def predictor(self) -> ExitPredictor | None:
        """The prediction rule of exits if it needs only their logits and the position's noise; None if it needs more."""
        ...

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """Start a text.

        Args:
            prompt_tokens: the length of the prompt.
            max_tokens: the maximum length of the text, prompt included.
        """
        ...

    def check_exit(
        self, decoder: Decoder, states: Tensor, text: Sequence[int], num_known: Tokens, exit_index: int
    ) -> PendingPrediction:
        """Predict a token and its confidence at an exit. Read the result before the next exit check.

        Args:
            decoder: the draft.
            states: the last row of the exit's segment: [1, D + PAD].
            text: known tokens, then drafted ones.
            num_known: the number of known tokens; the block begins here.
            exit_index: zero-based, among all exits.
        """
        ...

    def verify(self, logits: Tensor, text: Sequence[int], num_known: Tokens) -> Verification:
        """Accept a prefix of the drafted tokens `text[num_known:]`.

        Args:
            logits: the target's, for each drafted token's position and the next one: [G + 1, V].
            text: known tokens, then drafted ones.
            num_known: the number of known tokens.
        """
        ...


def make_verifier(
    sampling: Sampling, confidence: Confidence, device: torch.device, noise: NoiseTable | None = None
) -> Verifier:
    """The verifier of an acceptance rule.

    Args:
        sampling: the rule and its settings.
        confidence: the kind of confidence.
        device: the device of the logits.
        noise: a noise table of the same seed and vocabulary to share; None creates one if it is needed.
    """
    if sampling.rule == "ratio":
        return RatioVerifier(sampling, confidence, device)
    return ExactVerifier(sampling, confidence, device, noise)


class ExactVerifier:
    """Greedy and shared noise: a drafted token is accepted if it equals the target's own choice at its position."""

    def __init__(
        self, sampling: Sampling, confidence: Confidence, device: torch.device, noise: NoiseTable | None = None
    ) -> None:
        assert noise is None or noise.seed == sampling.seed
        self._sampling = sampling
        self._is_greedy, self._has_penalties = sampling.rule == "greedy", sampling.has_penalties
        self._predictor = ExitPredictor(sampling=sampling, confidence=confidence)
        self._device = device
        self._tokens = HostTokens(device)
        self._noise = noise
        self._max_tokens = 0

    @property
    def predictor(self) -> ExitPredictor | None:
        """See `Verifier`. Penalties depend on the text, so None with penalties."""
        return None if self._has_penalties else self._predictor

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """See `Verifier`. The noise is drawn at the first logits, when the vocabulary size is known."""
        self._processor = LogitsProcessor(self._sampling, prompt_tokens, self._tokens)
        self._max_tokens = max_tokens

    def check_exit(
        self, decoder: Decoder, states: Tensor, text: Sequence[int], num_known: Tokens, exit_index: int
    ) -> PendingPrediction:
        """See `Verifier`."""
        noise = self._noise_rows(len(text), 1, decoder.vocab_size)
        if not self._has_penalties:
            return decoder.predict(states, self._predictor, noise)
        logits = self._processor.penalised(decoder.exit_logits(states), text, num_known)
        return decoder.send_prediction(*self._predictor(logits, noise))

    def verify(self, logits: Tensor, text: Sequence[int], num_known: Tokens) -> Verification:
        """See `Verifier`."""
        logits = self._processor(logits, text, num_known)
        noise = self._noise_rows(num_known, *logits.shape)
        return longest_agreed_prefix(choose(logits, noise).tolist(), text[num_known:])

    def _noise_rows(self, position: int, num_rows: int, vocab_size: int) -> Tensor | None:
        """The noise of `num_rows` positions from `position` on: [num_rows, V]; None for greedy decoding."""
        if self._is_greedy:
            return None
        if self._noise is None:
            self._noise = new_noise_table(self._sampling, vocab_size, self._device)
        assert self._noise is not None
        self._noise.grow(self._max_tokens)
        return self._noise.rows(position, position + num_rows)


class RatioVerifier:
    """Ratio test (Leviathan et al. 2023, Alg. 1): accept x with probability min(1, p(x)/q(x)), else draw from max(p - q, 0)."""

    def __init__(self, sampling: Sampling, confidence: Confidence, device: torch.device) -> None:
        assert sampling.seed is not None
        self._sampling = sampling
        self._seed = sampling.seed
        self._confidence = confidence
        self._uniforms = Uniforms(device, sampling.seed)
        self._tokens = HostTokens(device)
        self._draft_probs: list[Tensor] = []  # one [V] for each drafted token

    @property
    def predictor(self) -> ExitPredictor | None:
        """See `Verifier`. None, because tokens are drawn at random."""
        return None

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """See `Verifier`."""
        self._processor = LogitsProcessor(self._sampling, prompt_tokens, self._tokens)
        self._uniforms.restart(self._seed)
        self._draft_probs = []

    def check_exit(
        self, decoder: Decoder, states: Tensor, text: Sequence[int], num_known: Tokens, exit_index: int
    ) -> PendingPrediction:
        """See `Verifier`. The ratio test uses the distribution of the exit checked last at each position."""
        probs = probabilities(self._processor(decoder.exit_logits(states), text, num_known))  # [1, V]
        self._draft_probs[len(text) - num_known :] = [probs[0]]
        return decoder.send_prediction(
            sample_indices(probs, self._uniforms.take(1)), confidence_values(probs, self._confidence)
        )

    def verify(self, logits: Tensor, text: Sequence[int], num_known: Tokens) -> Verification:
        """See `Verifier`."""
        target_probs = probabilities(self._processor(logits, text, num_known))  # [G + 1, V]
        # A round that drafts nothing leaves the distributions of an earlier round in place.
        draft_probs = self._draft_probs[: len(text) - num_known]
        return ratio_test(target_probs, draft_probs, self._tokens(text[num_known:]), self._uniforms.take(len(logits)))


def longest_agreed_prefix(chosen: Sequence[int], drafted: Sequence[int]) -> Verification:
    """Accept the longest prefix of a block that equals the target's choices.

    Args:
        chosen: the target's token at each drafted position and the next one: G + 1.
        drafted: G tokens.
    """
    accepted = 0
    for token in drafted:
        if token != chosen[accepted]:
            break
        accepted += 1
    return Verification(num_accepted=accepted, bonus=chosen[accepted])


def ratio_test(target_probs: Tensor, draft_probs: Sequence[Tensor], drafted: Tensor, uniform: Tensor) -> Verification:
    """The ratio test with the arguments of `ratio_decision`. Waits once for the device."""
    num_accepted, bonus = ratio_decision(target_probs, draft_probs, drafted, uniform).tolist()
    return Verification(num_accepted=num_accepted, bonus=bonus)


def ratio_decision(target_probs: Tensor, draft_probs: Sequence[Tensor], drafted: Tensor, uniform: Tensor) -> Tensor:
    """The number of accepted tokens and the bonus token, computed on the device: int64 [2].

    Token x is accepted while u q(x) < p(x). The bonus is drawn from max(p - q, 0) at the first rejected position. After a
    fully accepted block q counts as zero, which leaves the target's own p.

    Args:
        target_probs: p, [G + 1, V].
        draft_probs: q, one [V] for each drafted token.
        drafted: the tokens sampled from q, int64 [G].
        uniform: u, numbers in [0, 1): one for each drafted token and one for the bonus, float64 [G + 1].
    """
    q = torch.stack([*draft_probs, torch.zeros_like(target_probs[0])])  # [G + 1, V]
    num_drafted, tokens = len(drafted), drafted[:, None]
    p_drafted, q_drafted = (probs[:num_drafted].gather(1, tokens)[:, 0] for probs in (target_probs, q))  # [G]
    is_accepted = uniform[:num_drafted] * q_drafted < p_drafted
    num_accepted = is_accepted.long().cumprod(0).sum(0, keepdim=True)  # [1]
    p = target_probs.index_select(0, num_accepted)  # [1, V]
    residual = (p - q.index_select(0, num_accepted)).clamp_(min=0)
    # Where p and q differ only by rounding, no residual remains: draw from p.
    weights = torch.where(residual.any(-1, keepdim=True), residual, p)
    return torch.cat((num_accepted, sample_indices(weights, uniform[num_drafted:])))
