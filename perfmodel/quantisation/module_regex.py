"""Regular expressions in lists of modules, matched in bounded time: files are not trusted, and `re` can take for ever."""

import math
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perfmodel.core.errors import quoted
from perfmodel.core.units import Seconds

if TYPE_CHECKING:
    import regex

MAX_CHARS = 500
MAX_REPEATS = 10_000
"""The product of all counts in a pattern: `regex` takes memory for each."""
BUDGET_S: Seconds = 2.0
"""For all matches of one list."""
_COUNTS = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class UnreadablePattern(ValueError):
    """A pattern that cannot be matched in bounded time and memory."""


class ModuleRegexes:
    """Whether any of some regexes matches the beginning of a module's name.

    Args:
        patterns: as the file has them; one that is no regex is taken letter by letter.
        ending: a regex that must match behind each of them.

    Raises:
        UnreadablePattern: a pattern is too long, too deep, or repeats too often.
    """

    def __init__(self, patterns: Sequence[str], ending: str = "") -> None:
        self._compiled = [_compiled(pattern, ending) for pattern in patterns]
        self._left_s = BUDGET_S

    def match(self, name: str) -> bool:
        """Whether one of them matches.

        Raises:
            UnreadablePattern: the matches of this list took too long.
        """
        start_s = time.perf_counter()
        try:
            found = any(pattern.match(name, timeout=self._left_s) for pattern in self._compiled)
        except TimeoutError:
            found = False
            self._left_s = 0.0
        self._left_s -= time.perf_counter() - start_s
        if self._left_s <= 0:
            raise UnreadablePattern(f"patterns that take more than {BUDGET_S:g} s to match")
        return found


def _compiled(pattern: str, ending: str) -> "regex.Pattern[str]":
    import regex

    counts = [max(int(count or 1) for count in pair) for pair in _COUNTS.findall(pattern[:MAX_CHARS])]
    problem = f"the pattern {quoted(pattern)}, which is too long, too nested, or repeats too often"
    if len(pattern) > MAX_CHARS or math.prod(max(count, 1) for count in counts) > MAX_REPEATS:
        raise UnreadablePattern(problem)
    try:
        return regex.compile(f"(?:{pattern}){ending}")
    except regex.error:
        return regex.compile(regex.escape(pattern) + ending)
    except (RecursionError, OverflowError) as err:
        raise UnreadablePattern(problem) from err
