"""Errors about a file's content, and how much of the content a message quotes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from perfmodel.core.errors import MAX_QUOTED_CHARS, quoted, truncated

EXPECTED_KEYS_FIX = "See docs/prompt-files.md for the formats that are read"

_WORD = re.compile(r"[A-Za-z0-9_.-]+")


class BadRecord(ValueError):
    """Content that cannot be read. The reader of the file adds the file name and the position.

    Args:
        problem: what is wrong and what was expected.
        fix: how to correct it, a sentence without its full stop.
        start: the position in the file's text, in characters; None if unknown.
    """

    def __init__(self, problem: str, fix: str = EXPECTED_KEYS_FIX, *, start: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix
        self.start = start

    def at(self, start: int) -> BadRecord:
        """The same error with a position, unless it has one."""
        return self if self.start is not None else BadRecord(self.problem, self.fix, start=start)


def shown_keys(keys: Iterable[object]) -> str:
    """Keys or columns as text for a message, cut to the length of a quoted value."""
    return truncated(
        ", ".join(str(key) if _WORD.fullmatch(str(key)) else quoted(key) for key in keys) or "none", MAX_QUOTED_CHARS
    )
