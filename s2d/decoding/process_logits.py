"""Logits as tokens are chosen by them: penalties on what the text holds already, then temperature and what is dropped.

Symbols: T rows, V vocab, U distinct tokens met so far, K tokens that are not certain.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from perfmodel.core.units import Tokens
from perfmodel.policies.sampling import Sampling
from s2d.model.choose_tokens import apply_penalties, process_logits
from s2d.model.host_copies import HostTokens

_BLOCK_STEP: Tokens = 32
"""The triangle of ones grows by so many drafted tokens."""


class Processing:
    """Processes logits along one text, every row by the tokens before its own position.

    Penalties look at the U tokens that were met alone, not at the vocabulary. Each of these has a column, in the order of their
    first occurrence. Certain tokens are counted on the device, once each and for good. Drafted ones count in the rows that see
    them and in no later call, so a rejected block needs no undoing. A call sends the device one list and waits for nothing.

    Args:
        sampling: what to do.
        prompt_tokens: the length of the prompt, whose tokens count as not written.
        tokens: copies token ids to the logits' device; where None, one is made with the first logits.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: Tokens, tokens: HostTokens | None = None) -> None:
        self._sampling = sampling
        self._prompt_tokens = self._num_counted = prompt_tokens
        self._tokens = tokens
        self._columns: dict[int, int] = {}
        self._num_sent = 0  # tokens whose ids are on the device
        # Made with the first logits; [V], of which the first U are in use.
        self._ids = self._in_prompt = self._num_written = torch.empty(0)
        self._one = torch.empty(0)  # [1]
        self._triangle = torch.empty(0)  # [n, n], ones below the diagonal

    def __call__(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Tensor:
        """Logits to choose by: [T, V]; greedily and without penalties they stay as they are.

        Args:
            logits: [T, V]; the last row is of the token after the text, the one before it of the text's last, and so on.
            text: prompt, what was written after it, and what is drafted.
            known: tokens of it that are certain; every row comes after all of these.
        """
        return process_logits(self.penalised(logits, text, known), self._sampling)

    def penalised(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Tensor:
        """Logits after penalties alone, with the same arguments."""
        if not self._sampling.has_penalties:
            return logits
        logits = logits.float()
        if not len(self._ids):
            self._begin(text[: self._prompt_tokens], logits)
        num_written = self._counts(text[self._num_counted : known], text[known:], len(logits))
        self._num_counted = max(self._num_counted, known)
        num_met = len(self._columns)
        ids = self._ids[:num_met]
        changed = apply_penalties(logits.index_select(1, ids), self._sampling, self._in_prompt[:num_met], num_written)
        return logits.index_copy(1, ids, changed)

    def _begin(self, prompt: Sequence[int], logits: Tensor) -> None:
        """Make room for all tokens there are, and meet the prompt's."""
        self._tokens = self._tokens or HostTokens(logits.device)
        vocab_size = logits.shape[-1]
        self._ids = logits.new_zeros(vocab_size, dtype=torch.int64)
        self._in_prompt = logits.new_zeros(vocab_size, dtype=torch.bool)
        self._num_written = logits.new_zeros(vocab_size)
        self._one = logits.new_ones(1)
        self._columns_of(prompt)
        self._in_prompt[: len(self._columns)] = True

    def _columns_of(self, tokens: Sequence[int]) -> list[int]:
        """The column of every token; one that was not met before gets the next."""
        return [self._columns.setdefault(token, len(self._columns)) for token in tokens]

    def _counts(self, certain: Sequence[int], block: Sequence[int], num_rows: int) -> Tensor:
        """How often each token was written before each row: float32 [T, U].

        Args:
            certain: tokens that were not counted yet.
            block: K tokens after the certain ones; the last row sees all, the one before it one less, and so on.
            num_rows: T, at most K + 1.
        """
        certain_columns, block_columns = self._send(self._columns_of(certain), self._columns_of(block))
        if certain:
            self._num_written.index_add_(0, certain_columns, self._one.expand(len(certain)))
        counts = self._num_written[: len(self._columns)].expand(num_rows, -1)
        if not block:
            return counts
        return counts.scatter_add(1, block_columns.expand(num_rows, -1), self._is_seen(num_rows, len(block)))

    def _send(self, certain: list[int], block: list[int]) -> tuple[Tensor, Tensor]:
        """Both lists of columns on the device, where the ids of new columns are kept."""
        assert self._tokens is not None
        new = list(islice(self._columns, self._num_sent, None))
        if not (certain or block or new):
            return self._ids[:0], self._ids[:0]
        sent = self._tokens([*certain, *block, *new]).split((len(certain), len(block), len(new)))
        if new:
            self._ids[self._num_sent : len(self._columns)].copy_(sent[2])
            self._num_sent = len(self._columns)
        return sent[0], sent[1]

    def _is_seen(self, num_rows: int, num_drafted: int) -> Tensor:
        """1 where a row sees a drafted token, else 0: a view, float32 [T, K]."""
        if len(self._triangle) <= num_drafted:
            size = num_drafted + _BLOCK_STEP - num_drafted % _BLOCK_STEP
            self._triangle = self._one.new_ones(size, size).tril_(-1)
        return self._triangle[num_drafted + 1 - num_rows : num_drafted + 1, :num_drafted]
