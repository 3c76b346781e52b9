"""Between tokens and text: stop strings found as they are completed, and characters streamed once they are whole."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerFast

from perfmodel.errors import UserInputError

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of a character whose bytes are not all there yet."""


class Stop:
    """Ends a text at the token that completes one of the given strings.

    Args:
        strings: none of them empty.
        tokenizer: turns tokens into text.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> None:
        if not strings or not all(strings):
            raise UserInputError(f"stop strings {tuple(strings)!r}: expected at least one, none of them empty. Leave it out.")
        self._strings = tuple(strings)
        self._tokenizer = tokenizer
        # A token stands for at least one byte, so a string cannot span more tokens than it has bytes.
        self._reach_tokens = max(len(string.encode()) for string in strings)

    def kept(self, text: Sequence[int], emitted: Sequence[int]) -> int | None:
        """How many of the newly emitted tokens stay; None when no stop string was completed.

        Args:
            text: the tokens emitted before.
            emitted: those of this round.
        """
        before = list(text[len(text) - min(len(text), self._reach_tokens) :])
        if not self._found([*before, *emitted]):
            return None
        return next(count for count in range(1, len(emitted) + 1) if self._found([*before, *emitted[:count]]))

    def before(self, text: str) -> str:
        """What a text holds before its first stop string: all of it where there is none."""
        return text[: min((text.index(string) for string in self._strings if string in text), default=len(text))]

    def _found(self, tokens: list[int]) -> bool:
        text = self._tokenizer.decode(tokens)
        return any(string in text for string in self._strings)


class TextStream:
    """Writes text while its tokens arrive, never half a character.

    Args:
        tokenizer: turns tokens into text.
        write: gets every new piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, write: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._tokens: list[int] = []
        self._begin = 0
        self._written = 0

    def add(self, tokens: Sequence[int]) -> None:
        """Take the next tokens and write what is complete."""
        self._tokens.extend(tokens)
        if not self._piece().endswith(_UNFINISHED):
            self.flush()

    def flush(self) -> None:
        """Write what is left, complete or not."""
        if piece := self._piece():
            self._write(piece)
        # The last tokens stay as context: some tokenizers write a word's space only between two words.
        self._begin, self._written = self._written, len(self._tokens)

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._begin : self._written])
        return self._tokenizer.decode(self._tokens[self._begin :])[len(before) :]


def readable(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> str:
    """The text of tokens without the special ones, the end of the text among them."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
