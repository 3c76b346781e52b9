"""A draft whose LM head says only the most frequent tokens: every exit check reads less, and the output stays the target's.

Frequency-ranked draft vocabularies are FR-Spec's (arXiv 2502.14856): most tokens of a text are few tokens of a vocabulary, and
one that the draft cannot say is one that it would have missed.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Frac, Tokens
from s2d.loading.exits import RequestedExits, find_exits
from s2d.loading.load_model import load_tokenizer, save_draft
from s2d.loading.read_config import read_geometry
from s2d.loading.sidecar import Sidecar


def reduce_vocab(
    draft: Path, texts: Sequence[str], num_tokens: Tokens, out: Path, requested_exits: RequestedExits | None = None
) -> Frac:
    """Copy a draft with a reduced head, whole or not at all; returns the share of the texts' tokens that it can say.

    Its confidence is that of fewer tokens, so that curves fitted to the whole head's are left behind.

    Args:
        draft: its folder.
        texts: like those that its targets will write.
        num_tokens: that the head is to say, those that end a text among them.
        out: the folder to make.
        requested_exits: of the draft; those of its sidecar, else its full depth, when None.

    Raises:
        UserInputError: no text, or more tokens than its vocabulary has.
        BadFile: there is something at `out` already, or it cannot be made.
        OutOfSpace: the disk is full.
    """
    geometry, tokenizer = read_geometry(draft), load_tokenizer(draft)
    exits = find_exits(draft, geometry.num_layers, requested_exits, is_self=False)
    counts = token_counts(tokenizer, texts, geometry.vocab_size)
    said = frequent_tokens(counts, tokenizer.all_special_ids, num_tokens)
    save_draft(draft, out, Sidecar(exit_layers=exits.layers, norm="shared-final-norm", calibration=None, num_head_tokens=said))
    return float(counts[list(said)].sum() / counts.sum())


def token_counts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], vocab_size: Tokens) -> np.ndarray:
    """How often each token of a vocabulary occurs in texts: int64 [V].

    Raises:
        UserInputError: none does.
    """
    found = [np.asarray(ids, dtype=np.int64) for ids in tokenizer(list(texts), verbose=False)["input_ids"] if ids]
    if not found:
        raise UserInputError("the texts hold no tokens to count: give more text with --text.")
    return np.bincount(np.concatenate(found), minlength=vocab_size)[:vocab_size]


def frequent_tokens(counts: np.ndarray, always: Sequence[int], num_tokens: Tokens) -> tuple[int, ...]:
    """The most frequent tokens, rising: some in any case, of equally frequent ones the first.

    Args:
        counts: of every token of the vocabulary. [V].
        always: tokens that must be among them, such as those that end a text.
        num_tokens: how many.

    Raises:
        UserInputError: fewer than must be among them, or more than there are.
    """
    fewest = max(1, len(set(always)))
    if not fewest <= num_tokens <= len(counts):
        expected = f"from {fewest}, the special ones, to {len(counts)}, the vocabulary"
        raise UserInputError(f"--tokens {num_tokens}: expected {expected}.")
    rank = counts.astype(np.float64)
    rank[list(always)] = np.inf
    return tuple(sorted(np.argsort(-rank, kind="stable")[:num_tokens].tolist()))
