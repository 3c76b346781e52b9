"""Choose tokens: from logits to distributions, tokens and confidence; shared noise.

Confidence depends on an exit's distribution only, never on the token sampled from it: testing the sampled token's own
probability would change the distribution of the output.

Symbols: T rows, V vocab, U a subset of its tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from perfmodel.core.units import Tokens
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import Sampling

_BLOCK = 128
"""Tokens per block. A draw sums probabilities by block first. 128 divides the vocabulary size of most models."""
_ROWS_PER_COPY = 64
"""Rows of noise that are generated on the host before they are copied to the device."""


def apply_penalties(logits: Tensor, sampling: Sampling, in_prompt: Tensor, num_written: Tensor) -> Tensor:
    """Raw logits of some tokens after repetition, frequency and presence penalty, in vLLM's order: [T, U].

    Args:
        logits: logits of U tokens, float32 [T, U].
        sampling: the settings with the penalties.
        in_prompt: whether the prompt contains a token, bool [U].
        num_written: how often a token was written before each row, float32 [T, U].
    """
    if sampling.repetition_penalty is not None:
        penalty = sampling.repetition_penalty
        # Negative logits are multiplied and positive logits divided. For a penalty of at least 1 that is the smaller value.
        extreme = torch.minimum if penalty >= 1 else torch.maximum
        repeated = extreme(logits * penalty, logits / penalty)
        logits = torch.where((num_written > 0).logical_or_(in_prompt), repeated, logits)
    if sampling.frequency_penalty:
        logits = logits.sub(num_written, alpha=sampling.frequency_penalty)
    if sampling.presence_penalty:
        logits = logits.sub(num_written.clamp(max=1), alpha=sampling.presence_penalty)
    return logits


def process_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits after temperature, top-k, top-p and min-p, in this order: [T, V]. Greedy decoding does not change them."""
    if sampling.rule == "greedy":
        return logits
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest_kept = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        descending, order = logits.sort(dim=-1, descending=True)
        probs = descending.softmax(-1)
        # A token is removed if the tokens before it already sum to top_p. The most likely token is always kept.
        is_removed = probs.cumsum(-1) - probs >= sampling.top_p
        is_removed[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(is_removed).scatter(-1, order, is_removed), -torch.inf)
    if sampling.min_p:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), -torch.inf)
    return logits


def confidence_values(probs: Tensor, kind: Confidence) -> Tensor:
    """Confidence of distributions, from 0 to 1: [T, V] -> [T]."""
    if kind == "max-prob":
        return probs.amax(-1)
    if kind == "margin":
        largest = probs.topk(2, dim=-1).values
        return largest[:, 0] - largest[:, 1]
    if kind == "top10-prob":
        largest = probs.topk(min(10, probs.shape[-1]), dim=-1).values
        return largest[:, 0] / largest.sum(-1)
    return (1 - torch.special.entr(probs).sum(-1) / math.log(probs.shape[-1])).clamp(0, 1)


def probabilities(logits: Tensor) -> Tensor:
    """Distributions of processed logits of any dtype: float32 [T, V].

    Runs and traces both use this function, so a threshold means the same in both.
    """
    return logits.softmax(-1, dtype=torch.float32)


def sample_indices(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per row, with probability proportional to its weight, by inversion of the cumulative weights.

    The search finds the block first and then the index inside it, which avoids a cumulative sum over V. Sums are float64: in
    float32 a token's probability would be off by 1e-7, which is as large as the smallest probabilities. An index of weight zero
    is never returned.

    Args:
        weights: non-negative, with at least one positive weight per row: [..., V].
        uniform: one number in [0, 1) per row: float64 [...].

    Returns:
        int64 [...], on the device of the weights. The host does not wait for it.
    """
    padding = -weights.shape[-1] % _BLOCK
    blocks = (pad(weights, (0, padding)) if padding else weights).unflatten(-1, (-1, _BLOCK))  # [..., C, _BLOCK]
    block_sums = blocks.sum(-1, dtype=torch.float64)  # [..., C]
    threshold = uniform[..., None] * block_sums.sum(-1, keepdim=True)  # [..., 1]
    block, before_block = _first_index_above(block_sums, threshold)
    block_weights = blocks.gather(-2, block[..., None].expand(*block.shape, _BLOCK))[..., 0, :]  # [..., _BLOCK]
    index, _ = _first_index_above(block_weights, (threshold - before_block).clamp_(min=0))
    return (block * _BLOCK + index)[..., 0]


def _first_index_above(weights: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative weight exceeds a threshold, and the sum before it: [..., W], [..., 1] -> [..., 1].

    In about one draw of 1e13, rounding leads past the end or to a weight of zero. Then the largest weight's index is returned.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    candidate = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=weights.shape[-1] - 1)
    index = torch.where(weights.gather(-1, candidate) > 0, candidate, weights.argmax(-1, keepdim=True))
    return index, cumulative.gather(-1, index) - weights.gather(-1, index)


class NoiseTable:
    """Gumbel noise of one seed for the first absolute positions of a text, stored on a device.

    Rows are generated one by one, so the noise of a position depends only on the seed and the vocabulary size. A longer
    table starts with the rows of a shorter one, and texts of any length can share a table.

    Args:
        seed: the seed of the noise.
        vocab_size: V.
        device: where the table is stored.
    """

    def __init__(self, seed: int, vocab_size: int, device: torch.device) -> None:
        self.seed = seed
        self.vocab_size = vocab_size
        self._generator = torch.Generator().manual_seed(seed)
        self._rows = torch.empty(0, vocab_size, device=device)  # [positions, V]

    def __len__(self) -> int:
        """Positions generated so far."""
        return len(self._rows)

    def grow(self, num_positions: Tokens) -> None:
        """Generate the missing rows. Call it before anything is timed: it takes milliseconds per row."""
        old = self._rows
        if num_positions <= len(old):
            return
        self._rows = old.new_empty(num_positions, self.vocab_size)
        self._rows[: len(old)].copy_(old)
        for new in self._rows[len(old) :].split(_ROWS_PER_COPY):
            host_rows = torch.empty(new.shape)
            for row in host_rows:
                row.exponential_(generator=self._generator)
            new.copy_(host_rows.log_().neg_())

    def rows(self, begin: Tokens, end: Tokens) -> Tensor:
        """Noise of the positions from `begin` to before `end`, generated if missing: float32 [positions, V]."""
        self.grow(end)
        return self._rows[begin:end]


def new_noise_table(sampling: Sampling, vocab_size: int, device: torch.device) -> NoiseTable | None:
    """An empty table for a sampling; None for rules without shared noise."""
    if sampling.rule != "shared-noise":
        return None
    assert sampling.seed is not None
    return NoiseTable(sampling.seed, vocab_size, device)


def choose(logits: Tensor, noise: Tensor | None) -> Tensor:
    """The token of each row: the argmax of the processed logits, plus the noise of the position if noise is shared.

    Args:
        logits: processed, [T, V].
        noise: rows of a `NoiseTable` for the positions of the chosen tokens, [T, V]; None for greedy decoding.

    Returns:
        int64 [T].
    """
    return (logits if noise is None else logits.float() + noise).argmax(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPredictor:
    """Predicts token and confidence of an exit from its logits and the noise of the position alone."""

    sampling: Sampling
    confidence: Confidence

    def __call__(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """The token, int64 [T], and the confidence, float32 [T], for logits [T, V] after penalties."""
        logits = process_logits(logits, self.sampling)
        return choose(logits, noise), confidence_values(probabilities(logits), self.confidence)
