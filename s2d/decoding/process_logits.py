"""Process logits before a token is chosen: penalties, temperature, top-k, top-p and min-p.

Symbols: T rows, V vocabulary, U distinct tokens so far, K drafted tokens.
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
"""The triangle of ones grows by this many drafted tokens."""


class LogitsProcessor:
    """Processes the logits of one text. Each row depends on the tokens before its position.

    Penalties read only the U distinct tokens so far, not the vocabulary. Each of these has a column, in order of first
    occurrence. Known tokens are counted once, on the device. Drafted tokens count only in the rows after them and only in the
    current call, so nothing is undone when a block is rejected. A call sends one list to the device and waits for nothing.

    Args:
        sampling: penalties, temperature and cut-offs.
        prompt_tokens: the length of the prompt, whose tokens do not count as output.
        tokens: copies token ids to the device; None creates one with the first logits.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: Tokens, tokens: HostTokens | None = None) -> None:
        self._sampling = sampling
        self._prompt_tokens = self._num_counted = prompt_tokens
        self._tokens = tokens
        self._columns: dict[int, int] = {}
        self._num_sent = 0  # tokens whose ids are on the device
        # Created with the first logits: [V], of which the first U are in use.
        self._ids = self._in_prompt = self._num_emitted = torch.empty(0)
        self._ones = torch.empty(0)  # [1]
        self._triangle = torch.empty(0)  # [n, n], ones below the diagonal

    def __call__(self, logits: Tensor, text: Sequence[int], num_known: Tokens) -> Tensor:
        """Processed logits: [T, V]. Greedy decoding without penalties leaves them unchanged.

        Args:
            logits: [T, V]. The last row predicts the token after the text, the row before it the last token of the text, and
                so on.
            text: the prompt, the emitted tokens, and the drafted tokens.
            num_known: the number of known tokens (prompt and emitted). Each row comes after all of these.
        """
        return process_logits(self.penalised(logits, text, num_known), self._sampling)

    def penalised(self, logits: Tensor, text: Sequence[int], num_known: Tokens) -> Tensor:
        """Logits after the penalties only. The arguments are those of a call."""
        if not self._sampling.has_penalties:
            return logits
        logits = logits.float()
        if not len(self._ids):
            self._begin(text[: self._prompt_tokens], logits)
        num_emitted = self._counts(text[self._num_counted : num_known], text[num_known:], len(logits))
        self._num_counted = max(self._num_counted, num_known)
        num_distinct = len(self._columns)
        ids = self._ids[:num_distinct]
        changed = apply_penalties(logits.index_select(1, ids), self._sampling, self._in_prompt[:num_distinct], num_emitted)
        return logits.index_copy(1, ids, changed)

    def _begin(self, prompt: Sequence[int], logits: Tensor) -> None:
        """Allocate for the whole vocabulary and register the prompt's tokens."""
        self._tokens = self._tokens or HostTokens(logits.device)
        vocab_size = logits.shape[-1]
        self._ids = logits.new_zeros(vocab_size, dtype=torch.int64)
        self._in_prompt = logits.new_zeros(vocab_size, dtype=torch.bool)
        self._num_emitted = logits.new_zeros(vocab_size)
        self._ones = logits.new_ones(1)
        self._columns_for(prompt)
        self._in_prompt[: len(self._columns)] = True

    def _columns_for(self, tokens: Sequence[int]) -> list[int]:
        """The column of each token. A new token gets the next column."""
        return [self._columns.setdefault(token, len(self._columns)) for token in tokens]

    def _counts(self, known: Sequence[int], block: Sequence[int], num_rows: int) -> Tensor:
        """Occurrences of each token in the output before each row: float32 [T, U].

        Args:
            known: known tokens that are not counted yet.
            block: the K drafted tokens. The last row comes after all of them, the row before it after one fewer, and so on.
            num_rows: T, at most K + 1.
        """
        known_columns, block_columns = self._send(self._columns_for(known), self._columns_for(block))
        if known:
            self._num_emitted.index_add_(0, known_columns, self._ones.expand(len(known)))
        counts = self._num_emitted[: len(self._columns)].expand(num_rows, -1)
        if not block:
            return counts
        return counts.scatter_add(1, block_columns.expand(num_rows, -1), self._is_seen(num_rows, len(block)))

    def _send(self, known: list[int], block: list[int]) -> tuple[Tensor, Tensor]:
        """Copy both lists of columns to the device, and the ids of new columns."""
        assert self._tokens is not None
        new = list(islice(self._columns, self._num_sent, None))
        if not (known or block or new):
            return self._ids[:0], self._ids[:0]
        sent = self._tokens([*known, *block, *new]).split((len(known), len(block), len(new)))
        if new:
            self._ids[self._num_sent : len(self._columns)].copy_(sent[2])
            self._num_sent = len(self._columns)
        return sent[0], sent[1]

    def _is_seen(self, num_rows: int, num_drafted: int) -> Tensor:
        """1 where a row comes after a drafted token, else 0: a view, float32 [T, K]."""
        if len(self._triangle) <= num_drafted:
            size = num_drafted + _BLOCK_STEP - num_drafted % _BLOCK_STEP
            self._triangle = self._ones.new_ones(size, size).tril_(-1)
        return self._triangle[num_drafted + 1 - num_rows : num_drafted + 1, :num_drafted]
