"""What is wrong with a file's content, and how much of that content a message repeats."""

from __future__ import annotations

import re
from collections.abc import Iterable

from perfmodel.core.errors import MAX_QUOTED_CHARS, quoted, truncated

EXPECTED_KEYS_FIX = "See docs/prompt-files.md for the formats that are read"

_WORD = re.compile(r"[A-Za-z0-9_.-]+")


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


def shown_keys(keys: Iterable[object]) -> str:
    """Keys or columns of a file as a message lists them, as long as a value that is shown."""
    return truncated(
        ", ".join(str(key) if _WORD.fullmatch(str(key)) else quoted(key) for key in keys) or "none", MAX_QUOTED_CHARS
    )
