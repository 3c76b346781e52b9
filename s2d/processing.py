"""Logits as tokens are chosen by them: penalties on what the text holds already, then temperature and what is dropped.

Symbols: T rows, V vocab, U distinct tokens met so far, K tokens that are not certain.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from perfmodel.sampling import Sampling
from perfmodel.units import Tokens
from s2d.sampling import penalised, processed


class Processing:
    """Processes logits along one text, every row by the tokens before its own position.

    Penalties look at the U tokens that were met alone, not at the vocabulary. Certain tokens are counted on the device, once
    each and for good. Drafted ones count in the rows that see them and in no later call: a block is rolled back by itself.

    Args:
        sampling: what to do.
        prompt_tokens: how many the text begins with that nobody wrote.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: Tokens) -> None:
        self._sampling = sampling
        self._prompt_tokens = self._num_counted = prompt_tokens
        self._columns: dict[int, int] = {}  # of tokens, in the order they were met
        self._ids = self._in_prompt = self._num_written = torch.empty(0)  # [V], the first U in use, made with the first logits

    def __call__(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Tensor:
        """Logits to choose by: [T, V]; greedily and without penalties they stay as they are.

        Args:
            logits: [T, V]; the last row is of the token after the text, the one before it of the text's last, and so on.
            text: prompt, what was written after it, and what is drafted.
            known: tokens of it that are certain; every row comes after all of these.
        """
        return processed(self.penalised(logits, text, known), self._sampling)

    def penalised(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Tensor:
        """Logits after penalties alone, with the same arguments."""
        if not self._sampling.has_penalties:
            return logits
        logits = logits.float()
        if not self._columns:
            self._begin(text[: self._prompt_tokens], logits)
        if known > self._num_counted:
            fresh = torch.tensor(self._columns_of(text[self._num_counted : known]), device=logits.device)
            self._num_written.index_add_(0, fresh, torch.ones_like(fresh))
            self._num_counted = known
        num_written = self._counts(self._columns_of(text[known:]), len(logits))
        num_met = len(self._columns)
        ids = self._ids[:num_met]
        changed = penalised(logits.index_select(1, ids), self._sampling, self._in_prompt[:num_met], num_written)
        return logits.index_copy(1, ids, changed)

    def _begin(self, prompt: Sequence[int], logits: Tensor) -> None:
        """Make room for all tokens there are, and meet the prompt's."""
        self._ids, self._num_written = logits.new_zeros((2, logits.shape[-1]), dtype=torch.int64)
        self._in_prompt = torch.zeros_like(self._ids, dtype=torch.bool)
        self._columns_of(prompt)
        self._in_prompt[: len(self._columns)] = True

    def _columns_of(self, tokens: Sequence[int]) -> list[int]:
        """The column of every token; one that was not met before gets the next."""
        num_met = len(self._columns)
        columns = [self._columns.setdefault(token, len(self._columns)) for token in tokens]
        if len(self._columns) > num_met:
            new = list(islice(self._columns, num_met, None))
            self._ids[num_met : len(self._columns)] = torch.tensor(new, device=self._ids.device)
        return columns

    def _counts(self, block: list[int], num_rows: int) -> Tensor:
        """How often each token was written before each row: [T, U].

        Args:
            block: columns of the K tokens after the certain ones; the last row sees all, the one before it one less, and so on.
            num_rows: T, at most K + 1.
        """
        counts = self._num_written[: len(self._columns)].expand(num_rows, -1)
        if not block:
            return counts
        is_seen = counts.new_ones(num_rows, len(block)).tril_(len(block) - num_rows)  # [T, K]
        return counts.scatter_add(1, torch.tensor(block, device=counts.device).expand(num_rows, -1), is_seen)
