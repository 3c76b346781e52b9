"""Logits as tokens are chosen by them: penalties on what the text holds already, then temperature and what is dropped.

Symbols: T rows, V vocab.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perfmodel.sampling import Sampling
from perfmodel.units import Tokens
from s2d.sampling import penalised, processed


class Processing:
    """Processes logits along one text, every row by the tokens before its own position.

    Certain tokens are counted on the device, once each and for good. Drafted ones count in the rows that see them and are
    kept nowhere, so that rolling a block back takes nothing.

    Args:
        sampling: what to do.
        prompt_tokens: how many the text begins with that nobody wrote.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: Tokens) -> None:
        self._sampling = sampling
        self._prompt_tokens = self._num_counted = prompt_tokens
        self._in_prompt: Tensor | None = None  # bool [V], made when the vocabulary's size is first seen
        self._num_written: Tensor | None = None  # int32 [V]

    def __call__(self, logits: Tensor, text: Sequence[int], known: int) -> Tensor:
        """Logits to choose by: [T, V]; greedily and without penalties they stay as they are.

        Args:
            logits: [T, V]; the last row is of the token after the text, the one before it of the text's last, and so on.
            text: prompt, what was written after it, and what is drafted.
            known: tokens of it that are certain; every row comes after all of these.
        """
        if self._sampling.has_penalties:
            in_prompt, num_written = self._counts(logits, text, known)
            logits = penalised(logits, self._sampling, in_prompt, num_written)
        return processed(logits, self._sampling)

    def _counts(self, logits: Tensor, text: Sequence[int], known: int) -> tuple[Tensor, Tensor]:
        """Which tokens the prompt holds, bool [V], and how often each was written before a row, int32 [T, V]."""
        num_rows, vocab_size = logits.shape
        if self._in_prompt is None or self._num_written is None:
            prompt = torch.tensor(text[: self._prompt_tokens], device=logits.device)
            self._in_prompt = torch.zeros(vocab_size, dtype=torch.bool, device=logits.device).index_fill_(0, prompt, True)
            self._num_written = torch.zeros(vocab_size, dtype=torch.int32, device=logits.device)
        fresh = torch.tensor(text[self._num_counted : known], dtype=torch.int64, device=logits.device)
        self._num_written.index_add_(0, fresh, torch.ones_like(fresh, dtype=torch.int32))
        self._num_counted = known
        block = torch.tensor(text[known:], dtype=torch.int64, device=logits.device)
        places = torch.arange(len(block), device=logits.device)
        num_seen = torch.arange(num_rows, device=logits.device) + len(block) - num_rows + 1  # of the block, by row
        is_seen = (places < num_seen[:, None]).int()  # [T, block]
        counts = self._num_written.repeat(num_rows, 1)
        return self._in_prompt, counts.scatter_add_(1, block.expand(num_rows, -1), is_seen)
