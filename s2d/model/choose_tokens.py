"""Logits to distributions, tokens and confidence; draws; the noise that target and draft share.

Confidence is a function of an exit's distribution alone, never of the token sampled from it: testing the sampled token's
own probability would change the output's distribution.

Symbols: T rows, V vocab, U of its tokens.
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
"""Tokens whose probabilities are summed first when one is drawn. It divides the vocabularies of most models."""
_ROWS_DRAWN_TOGETHER = 64
"""Rows of noise that lie on the host before they go to the device."""


def apply_penalties(logits: Tensor, sampling: Sampling, in_prompt: Tensor, num_written: Tensor) -> Tensor:
    """Raw logits of some tokens after repetition, frequency and presence penalty, in vLLM's order: [T, U].

    Args:
        logits: of U tokens, float32 [T, U].
        sampling: says how much.
        in_prompt: whether the prompt holds a token, bool [U].
        num_written: how often a token was written before each row, float32 [T, U].
    """
    if sampling.repetition_penalty is not None:
        penalty = sampling.repetition_penalty
        # A negative logit is multiplied, a positive one divided. For a penalty of at least 1 that is the smaller of the two.
        extreme = torch.minimum if penalty >= 1 else torch.maximum
        lowered = extreme(logits * penalty, logits / penalty)
        logits = torch.where((num_written > 0).logical_or_(in_prompt), lowered, logits)
    if sampling.frequency_penalty:
        logits = logits.sub(num_written, alpha=sampling.frequency_penalty)
    if sampling.presence_penalty:
        logits = logits.sub(num_written.clamp(max=1), alpha=sampling.presence_penalty)
    return logits


def process_logits(logits: Tensor, sampling: Sampling) -> Tensor:
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


def probabilities(logits: Tensor) -> Tensor:
    """The distribution of processed logits, whatever their dtype: float32 [T, V].

    Runs and traces both take it from here, so that a threshold divides both alike.
    """
    return logits.softmax(-1, dtype=torch.float32)


def sample_indices(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per row, with probability proportional to its weight, by inversion of the cumulative weights.

    First the block of indices is found, then the place in it, so that no cumulative sum over V is made. Sums are float64: in
    float32 a token's probability would be off by 1e-7, the size of the smallest ones. No index of weight zero is returned.

    Args:
        weights: not negative, one of a row positive: [..., V].
        uniform: a uniform number for each row, from 0 to below 1: float64 [...].

    Returns:
        int64 [...], on the device of the weights. Nothing waits for it.
    """
    padding = -weights.shape[-1] % _BLOCK
    blocks = (pad(weights, (0, padding)) if padding else weights).unflatten(-1, (-1, _BLOCK))  # [..., C, _BLOCK]
    sums = blocks.sum(-1, dtype=torch.float64)  # [..., C]
    wanted = uniform[..., None] * sums.sum(-1, keepdim=True)  # [..., 1]
    block, before = _place_of(sums, wanted)
    chosen = blocks.gather(-2, block[..., None].expand(*block.shape, _BLOCK))[..., 0, :]  # [..., _BLOCK]
    place, _ = _place_of(chosen, (wanted - before).clamp_(min=0))
    return (block * _BLOCK + place)[..., 0]


def _place_of(weights: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The first place at which the cumulative weights exceed a number, and their sum before it: [..., W], [..., 1] -> [..., 1].

    Rounding can point beyond the end or at a weight of zero; the largest weight takes such a draw, about one in 1e13.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=weights.shape[-1] - 1)
    place = torch.where(weights.gather(-1, found) > 0, found, weights.argmax(-1, keepdim=True))
    return place, cumulative.gather(-1, place) - weights.gather(-1, place)


def noise_bytes(num_positions: Tokens, vocab_size: int) -> int:
    """Size of the shared noise of a text's first positions."""
    return num_positions * vocab_size * torch.float32.itemsize


class NoiseTable:
    """Gumbel noise of one seed for the first absolute positions of a text, kept on a device.

    Drawn row by row, so that a position's noise depends on the seed and the vocabulary's size alone. A longer table begins
    with the shorter one, so a table can be shared by texts of any length.

    Args:
        seed: of the noise.
        vocab_size: V.
        device: where the table lies.
    """

    def __init__(self, seed: int, vocab_size: int, device: torch.device) -> None:
        self.seed = seed
        self.vocab_size = vocab_size
        self._generator = torch.Generator().manual_seed(seed)
        self._rows = torch.empty(0, vocab_size, device=device)  # [positions, V]

    def __len__(self) -> int:
        """Positions drawn so far."""
        return len(self._rows)

    def grow(self, num_positions: Tokens) -> None:
        """Draw the rows that are missing. This takes milliseconds a row, so it is done before anything is timed."""
        old = self._rows
        if num_positions <= len(old):
            return
        self._rows = old.new_empty(num_positions, self.vocab_size)
        self._rows[: len(old)].copy_(old)
        for new in self._rows[len(old) :].split(_ROWS_DRAWN_TOGETHER):
            drawn_rows = torch.empty(new.shape)
            for row in drawn_rows:
                row.exponential_(generator=self._generator)
            new.copy_(drawn_rows.log_().neg_())

    def rows(self, begin: Tokens, end: Tokens) -> Tensor:
        """The noise of positions from `begin` to before `end`, drawn when missing: float32 [positions, V]."""
        self.grow(end)
        return self._rows[begin:end]


def new_noise_table(sampling: Sampling, vocab_size: int, device: torch.device) -> NoiseTable | None:
    """An empty table for a sampling; None under rules that share no noise."""
    if sampling.rule != "shared-noise":
        return None
    assert sampling.seed is not None
    return NoiseTable(sampling.seed, vocab_size, device)


def gumbel_noise(seed: int, num_positions: Tokens, vocab_size: int) -> Tensor:
    """The rows of a `NoiseTable` on the CPU: float32 [positions, V]."""
    return NoiseTable(seed, vocab_size, torch.device("cpu")).rows(0, num_positions)


def choose(logits: Tensor, noise: Tensor | None) -> Tensor:
    """The token of each row: the argmax of processed logits, plus the positions' noise where it is shared.

    Args:
        logits: processed, [T, V].
        noise: rows of a `NoiseTable` for the positions of the tokens to choose, [T, V]; None is greedy.

    Returns:
        int64 [T].
    """
    return (logits if noise is None else logits.float() + noise).argmax(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPredictor:
    """How an exit's logits become its answer, where nothing counts but them and the position's noise."""

    sampling: Sampling
    confidence: Confidence

    def __call__(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """The token, int64 [T], and the confidence, float32 [T], of logits [T, V] that penalties have changed already."""
        logits = process_logits(logits, self.sampling)
        return choose(logits, noise), confidence_of(probabilities(logits), self.confidence)
