"""The text that new tokens add to a prompt, computed while they arrive, and the stop strings found in it."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from s2d.prompts.special_tokens import special_token_ids

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a byte-level tokenizer decodes a character to whose last bytes have not arrived."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNCLEAN_END = re.compile(r"[ 'nvr]+\Z")
"""The end of a text that transformers' clean-up of spaces may still change: it closes up ` n't`, ` 've`, ` 're`, ` ' ` …"""
_CLEAN_UP_CHARS = 19
"""How far back the ten replacements of the clean-up can reach: each one less than its pattern's length, added up."""
_CONTEXT_TOKENS: Tokens = 32
_CONTEXT_CHARS = 24
"""A window of the last tokens must agree with the whole text in so many characters. More than any decoder looks back."""


class ContinuationText:
    """The text of the tokens that follow a prompt, in pieces.

    Definition: D decodes tokens as the tokenizer does, special tokens left out, spaces cleaned up where its configuration says
    so. The text of new tokens after a prompt is D(prompt + new) without the longest prefix that it shares with D(prompt).
    So the first space is kept, which a decode of the new tokens alone would strip. A character that the prompt leaves
    incomplete belongs to the new text once it is complete. Where clean-up changes the end of the prompt, the text begins at
    the first changed character: `Hello ` continued by `, you` becomes `Hello, you`, and the text is `, you`.

    What `add` returns is certain: no later token changes it. It withholds what later tokens may change: an incomplete
    character; a run of byte tokens such as `<0xE7>`, which decodes to replacement characters unless all of it is valid UTF-8;
    with clean-up, an end that could begin what it closes up. All pieces and `rest` joined are the text.

    A bounded window of the last tokens is decoded, so that the work for a text is linear in its length.

    Args:
        tokenizer: decodes.
        prompt_ids: the tokens before the new ones.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(special_token_ids(tokenizer).values())
        self._cleans_up = bool(tokenizer.clean_up_tokenization_spaces)
        self._ids: list[int] = []
        self._num_last_bytes: Tokens = 0
        """Byte tokens at the end."""
        self._append(prompt_ids)
        self._text = self._decode(self._ids)
        self._returned_chars = 0
        """Of `_text`; what is returned begins behind them."""
        self._limit_tokens = 2 * _CONTEXT_TOKENS
        self._shorten_window(len(self._ids))
        self._prompt_text: str | None = self._text
        """None once some text was returned."""

    def add(self, tokens: Sequence[int]) -> str:
        """Take the next tokens and return the text that has become certain."""
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
        """The end of the text so far, beyond what `add` returned; it may change as long as tokens follow."""
        text = self._decode(self._ids) if self._num_last_bytes else self._text
        return text[self._begin(text) :]

    def _append(self, tokens: Sequence[int]) -> None:
        """Keep the tokens that have a text."""
        for index in tokens:
            # None: beyond the vocabulary, as in a head that is padded.
            token = None if index in self._special_ids else self._tokenizer.convert_ids_to_tokens(index)
            if token is not None:
                self._ids.append(index)
                self._num_last_bytes = self._num_last_bytes + 1 if _BYTE_TOKEN.fullmatch(token) else 0

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _begin(self, text: str) -> int:
        """The first character of a text, decoded from the window, that was not returned and is not the prompt's."""
        if self._prompt_text is None:
            return self._returned_chars
        return _num_shared_chars(self._prompt_text, text)

    def _num_uncertain_chars(self) -> int:
        """Characters at the end of `_text` that later tokens may change."""
        if self._text.endswith(_UNFINISHED):
            return 1
        end = self._text[-_CLEAN_UP_CHARS:]
        unclean = _UNCLEAN_END.search(end) if self._cleans_up else None
        return len(end) - unclean.start() if unclean else 0

    def _shorten_window(self, end: int) -> None:
        """Drop the window's first tokens where the others decode to the same last characters, and go on behind those.

        Args:
            end: so many tokens decode to `_text`.
        """
        if len(self._ids) <= self._limit_tokens:
            return
        num_kept = _CONTEXT_TOKENS
        while num_kept < len(self._ids):
            begin = self._behind_byte_tokens(len(self._ids) - num_kept)
            text = self._decode(self._ids[begin:end])
            if len(text) > _CONTEXT_CHARS and text.endswith(self._text[-_CONTEXT_CHARS:]):
                self._returned_chars -= len(self._text) - len(text)
                self._ids, self._text = self._ids[begin:], text
                break
            num_kept *= 2
        self._limit_tokens = 2 * max(_CONTEXT_TOKENS, len(self._ids))

    def _behind_byte_tokens(self, place: int) -> int:
        """The first place from this one on that holds no byte token: a run of them is valid UTF-8 as a whole or not at all."""
        while place < len(self._ids) and _BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(self._ids[place])):
            place += 1
        return place


def _num_shared_chars(one: str, other: str) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def continuation_text(tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of new tokens after a prompt, as `ContinuationText` defines it."""
    text = ContinuationText(tokenizer, prompt_ids)
    return text.add(tokens) + text.rest


class Stop:
    """Ends a text at the token that completes one of the given strings, or that is one: a special token by its name.

    Args:
        strings: none of them empty. Looked for in the text as `ContinuationText` defines it, which has no special tokens.
        tokenizer: turns tokens into text.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> None:
        if not strings or not all(strings):
            raise UserInputError(f"stop strings {tuple(strings)!r}: expected at least one, none of them empty. Leave it out.")
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        special_ids = special_token_ids(tokenizer)
        self.token_ids = frozenset(special_ids[string] for string in strings if string in special_ids)

    def after(self, prompt_ids: Sequence[int]) -> "StopSearch":
        """Looks for the strings in the text that follows a prompt."""
        return StopSearch(self, ContinuationText(self.tokenizer, prompt_ids))

    def before(self, text: str) -> str:
        """What a text holds before its first stop string: all of it where there is none."""
        return text[: min((text.index(string) for string in self.strings if string in text), default=len(text))]


class StopSearch:
    """Looks for stop strings in one text while its tokens arrive.

    Args:
        stop: the strings.
        text: that of the prompt, with nothing added yet.
    """

    def __init__(self, stop: Stop, text: ContinuationText) -> None:
        self._stop = stop
        self._text = text
        self._context_chars = max(map(len, stop.strings)) - 1
        self._before = ""

    def kept(self, emitted: Sequence[int]) -> int | None:
        """How many of the newly emitted tokens stay; None when no stop string was completed.

        The text is searched after every single token, so that the result does not depend on how many arrive at a time.
        """
        for number, token in enumerate(emitted, start=1):
            certain = self._before + self._text.add([token])
            text = certain + self._text.rest
            if token in self._stop.token_ids or any(string in text for string in self._stop.strings):
                return number
            self._before = certain[len(certain) - min(len(certain), self._context_chars) :]
        return None
