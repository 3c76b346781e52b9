"""Reduce a draft's LM head to the most frequent tokens, which makes exit checks faster.

The output stays the target's. Frequency-ranked draft vocabularies come from FR-Spec (arXiv 2502.14856). A few tokens of the
vocabulary make up most of a text, and the draft would have mispredicted most of the rare tokens that its head lacks.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from perfmodel.core.blocks import Block, Command, Paragraph, Printable
from perfmodel.core.disk import PathLike, as_paths
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Frac, Tokens, format_frac
from s2d.loading.exits import find_exits, requested_exits
from s2d.loading.load_model import load_tokenizer, save_draft
from s2d.loading.model_folder import find_model
from s2d.loading.read_config import read_geometry
from s2d.loading.sidecar import Sidecar
from s2d.prompt_files.read_as import Form
from s2d.training.requests import ReduceVocabRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedDraft(Printable):
    """A draft with a reduced head. `print` shows what s2d-train prints."""

    folder: Path
    num_tokens: Tokens
    """Tokens of its head."""
    covered_frac: Frac
    """Fraction of the texts' tokens that the head covers."""

    def blocks(self, *, explain: bool = False) -> list[Block]:
        """The size of the head, what is missing, and the next command."""
        text = (
            f"wrote {self.folder}: its head has {self.num_tokens} tokens, {format_frac(self.covered_frac)} of the text. "
            "Its confidence has no curves yet: s2d-train calibrate fits them."
        )
        command = shlex.join(["s2d-profile", "--target", "path/to/target", "--draft", str(self.folder)])
        return [Paragraph(text), Command(command)]


def reduce_vocab(
    draft: PathLike,
    *,
    num_tokens: Tokens,
    text: PathLike | Sequence[PathLike],
    output: PathLike,
    exits: Sequence[int] | None = None,
    text_format: Form = "auto",
    text_column: str | None = None,
) -> ReducedDraft:
    """Copy a draft with an LM head for its most frequent tokens, completely or not at all.

    Confidence curves are not copied: a reduced head changes the confidence.

    Args:
        draft: a model folder, `org/name` on the Hugging Face hub, or a name of the reference family.
        num_tokens: size of the new head. Special tokens, such as those that end a text, are always in it.
        text: files with texts like those that the targets will write, to count tokens in.
        output: the folder to make.
        exits: exits of the draft; those of its sidecar, else its full depth, if None.
        text_format: how to read the files: by their content, or as plain text with one text per line or per file.
        text_column: column or key that holds the text; found by its name if None.

    Raises:
        UserInputError: no text, or more tokens than the vocabulary has.
        BadPolicy: the draft does not have the exits.
        BadFile: a file cannot be read, or `output` exists or cannot be made.
        OutOfSpace: the disk is full.

    Example:
        >>> print(s2d.reduce_vocab("my-draft", num_tokens=8192, text="chats.jsonl", output="my-draft-8192"))  # doctest: +SKIP
    """
    request = ReduceVocabRequest(
        draft=os.fspath(draft),
        num_tokens=num_tokens,
        text=as_paths(text),
        output=Path(output),
        exits=None if exits is None else tuple(exits),
        text_format=text_format,
        text_column=text_column,
    )
    return reduce_head(request, request.read_texts())


def reduce_head(request: ReduceVocabRequest, texts: Sequence[str]) -> ReducedDraft:
    """Reduce a draft's head by texts that are already read: see `reduce_vocab`."""
    draft = find_model(request.draft)
    geometry, tokenizer = read_geometry(draft), load_tokenizer(draft)
    exits = find_exits(draft, geometry.num_layers, requested_exits(request.exits), is_self=False)
    counts = token_counts(tokenizer, texts, geometry.vocab_size)
    tokens = frequent_tokens(counts, tokenizer.all_special_ids, request.num_tokens)
    sidecar = Sidecar(exit_layers=exits.layers, norm="shared-final-norm", calibration=None, head_token_ids=tokens)
    save_draft(draft, request.output, sidecar)
    covered_frac = float(counts[list(tokens)].sum() / counts.sum())
    return ReducedDraft(folder=request.output, num_tokens=len(tokens), covered_frac=covered_frac)


def token_counts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], vocab_size: Tokens) -> np.ndarray:
    """Number of occurrences of each token in the texts: int64 [V].

    Raises:
        UserInputError: the texts hold no tokens.
    """
    token_ids = [np.asarray(ids, dtype=np.int64) for ids in tokenizer(list(texts), verbose=False)["input_ids"] if ids]
    if not token_ids:
        raise UserInputError("the texts hold no tokens to count: give more text with --text.")
    return np.bincount(np.concatenate(token_ids), minlength=vocab_size)[:vocab_size]


def frequent_tokens(counts: np.ndarray, required: Sequence[int], num_tokens: Tokens) -> tuple[int, ...]:
    """Ids of the most frequent tokens, rising. Among equally frequent tokens lower ids come first.

    Args:
        counts: occurrences of every token of the vocabulary: [V].
        required: tokens that must be included, such as those that end a text.
        num_tokens: how many to choose.

    Raises:
        UserInputError: fewer than the required tokens, or more than the vocabulary.
    """
    lowest = max(1, len(set(required)))
    if not lowest <= num_tokens <= len(counts):
        expected = f"from {lowest} (the special tokens) to {len(counts)} (the vocabulary)"
        raise UserInputError(f"--tokens {num_tokens}: expected {expected}.")
    rank = counts.astype(np.float64)
    rank[list(required)] = np.inf
    return tuple(sorted(np.argsort(-rank, kind="stable")[:num_tokens].tolist()))
