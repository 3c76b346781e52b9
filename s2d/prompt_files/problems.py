"""What is wrong with a file's content, and how much of that content a message repeats."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable

MAX_SHOWN_CHARS = 80
EXPECTED_KEYS_FIX = "See docs/prompt-files.md for the formats that are read"

_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = MAX_SHOWN_CHARS
_SHORT.maxlevel = 3


class BadRecord(ValueError):
    """Content that cannot be read; the reader of the file adds its name and the place.

    Args:
        problem: what is wrong and what was expected.
        fix: what to do now, a whole sentence without its full stop.
        start: offset of the place in the file's text, in characters; None where the raiser does not know it.
    """

    def __init__(self, problem: str, fix: str = EXPECTED_KEYS_FIX, *, start: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix
        self.start = start

    def at(self, start: int) -> BadRecord:
        """The same with a place, unless it has one."""
        return self if self.start is not None else BadRecord(self.problem, self.fix, start=start)


def shown(value: object) -> str:
    """A value of a file as a message repeats it: its repr, at most 80 characters."""
    return _cut(_SHORT.repr(value))


def shown_keys(keys: Iterable[object]) -> str:
    """Keys or columns of a file as a message lists them, at most 80 characters."""
    return _cut(", ".join(str(key) if _WORD.fullmatch(str(key)) else shown(key) for key in keys) or "none")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
