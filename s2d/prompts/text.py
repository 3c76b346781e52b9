"""Decode new tokens to text as they arrive, and find stop strings in it."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from s2d.prompts.special_tokens import special_token_ids

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""The text of an incomplete character in a byte-level tokenizer."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNCLEAN_END = re.compile(r"[ 'nvr]+\Z")
"""The end of a text that transformers' clean-up of spaces may still change: it removes the space in ` n't`, ` 've`, ` ' ` …"""
_CLEAN_UP_CHARS = 19
"""The reach of the clean-up's ten replacements: the sum of their pattern lengths, less one each."""
_CONTEXT_TOKENS: Tokens = 32
_CONTEXT_CHARS = 24
"""The last characters in which a window of tokens must agree with the whole text. No decoder depends on more."""


class ContinuationText:
    """The text of new tokens after a prompt, in pieces.

    Definition: D decodes tokens as the tokenizer does, without special tokens, with the clean-up of spaces if its configuration
    asks for it. The text of new tokens after a prompt is D(prompt + new) without the longest prefix shared with D(prompt).
    This keeps the first space, which decoding the new tokens alone would strip. A character that the prompt leaves incomplete
    belongs to the new text. If clean-up changes the end of the prompt, the text starts at the first changed character: `Hello `
    continued by `, you` becomes `Hello, you`, and the text is `, you`.

    `add` returns certain text, which no later token changes. It withholds text that later tokens may change: an incomplete
    character; a run of byte tokens such as `<0xE7>`, which decodes to replacement characters unless the whole run is valid
    UTF-8; and, with clean-up, an end that may begin one of its patterns. The pieces and `rest`, joined, are the text.

    Only a bounded window of the last tokens is decoded, so the work is linear in the length of the text.

    Args:
        tokenizer: the tokenizer.
        prompt_ids: the tokens before the new ones.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(special_token_ids(tokenizer).values())
        self._cleans_up = bool(tokenizer.clean_up_tokenization_spaces)
        self._ids: list[int] = []
        self._num_last_bytes: Tokens = 0
        """Byte tokens at the end of the window."""
        self._append(prompt_ids)
        self._text = self._decode(self._ids)
        self._returned_chars = 0
        """Characters of `_text` that were returned."""
        self._limit_tokens = 2 * _CONTEXT_TOKENS
        self._shorten_window(len(self._ids))
        self._prompt_text: str | None = self._text
        """None once a piece was returned."""

    def add(self, tokens: Sequence[int]) -> str:
        """Add tokens; returns the text that has become certain."""
        self._append(tokens)
        end = len(self._ids) - self._num_last_bytes
        self._text = self._decode(self._ids[:end])
        certain = self._text[: len(self._text) - self._num_uncertain_chars()]
        begin = self._begin(certain)
        if begin == len(certain):
            return ""
        self._prompt_text, self._returned_chars = None, len(certain)
        self._shorten_window(end)
        return certain[begin:]

    @property
    def rest(self) -> str:
        """The text after the returned pieces. Later tokens may change it."""
        text = self._decode(self._ids) if self._num_last_bytes else self._text
        return text[self._begin(text) :]

    def _append(self, tokens: Sequence[int]) -> None:
        """Append the tokens that have a text."""
        for index in tokens:
            # None: outside the vocabulary, as in a padded head.
            token = None if index in self._special_ids else self._tokenizer.convert_ids_to_tokens(index)
            if token is not None:
                self._ids.append(index)
                self._num_last_bytes = self._num_last_bytes + 1 if _BYTE_TOKEN.fullmatch(token) else 0

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _begin(self, text: str) -> int:
        """The index of the first character that was not returned and is not part of the prompt."""
        if self._prompt_text is None:
            return self._returned_chars
        return _num_shared_chars(self._prompt_text, text)

    def _num_uncertain_chars(self) -> int:
        """The number of characters at the end of `_text` that later tokens may change."""
        if self._text.endswith(_UNFINISHED):
            return 1
        end = self._text[-_CLEAN_UP_CHARS:]
        unclean = _UNCLEAN_END.search(end) if self._cleans_up else None
        return len(end) - unclean.start() if unclean else 0

    def _shorten_window(self, end: int) -> None:
        """Drop the first tokens of the window if the others decode to the same last characters.

        Args:
            end: the number of tokens that decode to `_text`.
        """
        if len(self._ids) <= self._limit_tokens:
            return
        num_kept = _CONTEXT_TOKENS
        while num_kept < len(self._ids):
            begin = self._after_byte_tokens(len(self._ids) - num_kept)
            text = self._decode(self._ids[begin:end])
            if len(text) > _CONTEXT_CHARS and text.endswith(self._text[-_CONTEXT_CHARS:]):
                self._returned_chars -= len(self._text) - len(text)
                self._ids, self._text = self._ids[begin:], text
                break
            num_kept *= 2
        self._limit_tokens = 2 * max(_CONTEXT_TOKENS, len(self._ids))

    def _after_byte_tokens(self, index: int) -> int:
        """The first index, from this one on, without a byte token: only a whole run of byte tokens is valid UTF-8."""
        while index < len(self._ids) and _BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(self._ids[index])):
            index += 1
        return index


def _num_shared_chars(text: str, other: str) -> int:
    """The length of the longest common prefix."""
    pairs = zip(text, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))


def continuation_text(tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of new tokens after a prompt, as `ContinuationText` defines it."""
    text = ContinuationText(tokenizer, prompt_ids)
    return text.add(tokens) + text.rest


class Stop:
    """Ends a text at the token that completes a stop string. A special token also ends it if its name is a stop string.

    Args:
        strings: non-empty strings, searched in the text as `ContinuationText` defines it, without special tokens.
        tokenizer: the tokenizer.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> None:
        if not strings or not all(strings):
            raise UserInputError(f"stop strings {tuple(strings)!r}: expected at least one, none of them empty. Leave it out.")
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        special_ids = special_token_ids(tokenizer)
        self.token_ids = frozenset(special_ids[string] for string in strings if string in special_ids)

    def after(self, prompt_ids: Sequence[int]) -> "StopSearch":
        """A search for the strings in the text after a prompt."""
        return StopSearch(self, ContinuationText(self.tokenizer, prompt_ids))

    def before(self, text: str) -> str:
        """The text before its first stop string; the whole text if it has none."""
        return text[: min((text.index(string) for string in self.strings if string in text), default=len(text))]


class StopSearch:
    """Searches stop strings in one text while its tokens arrive.

    Args:
        stop: the strings.
        text: the text after the prompt, still empty.
    """

    def __init__(self, stop: Stop, text: ContinuationText) -> None:
        self._stop = stop
        self._text = text
        self._context_chars = max(map(len, stop.strings)) - 1
        self._before = ""

    def kept(self, emitted: Sequence[int]) -> int | None:
        """How many of the new tokens to keep; None if no stop string was completed.

        The text is searched after each token, so the result does not depend on the number of tokens per call.
        """
        for number, token in enumerate(emitted, start=1):
            certain = self._before + self._text.add([token])
            text = certain + self._text.rest
            if token in self._stop.token_ids or any(string in text for string in self._stop.strings):
                return number
            self._before = certain[len(certain) - min(len(certain), self._context_chars) :]
        return None
