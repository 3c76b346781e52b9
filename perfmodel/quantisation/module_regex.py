"""Match regexes from untrusted files in bounded time, which `re` cannot guarantee."""

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
"""Upper limit for the product of all repeat counts in a pattern, because `regex` allocates memory for each repeat."""
BUDGET_S: Seconds = 2.0
"""Time limit for all matches of one list."""
_COUNTS = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class UnreadablePattern(ValueError):
    """The pattern cannot be matched in bounded time and memory."""


class ModuleRegexes:
    """Tests whether any of several regexes matches the start of a module's name.

    Args:
        patterns: the patterns in the file; an invalid regex is matched literally.
        ending: a regex that must match after each of them.

    Raises:
        UnreadablePattern: a pattern is too long, nested too deeply, or repeats too often.
    """

    def __init__(self, patterns: Sequence[str], ending: str = "") -> None:
        self._compiled = [_compiled(pattern, ending) for pattern in patterns]
        self._remaining_s = BUDGET_S

    def match(self, name: str) -> bool:
        """Whether any pattern matches a name.

        Raises:
            UnreadablePattern: matching this list took longer than `BUDGET_S`.
        """
        start_s = time.perf_counter()
        try:
            is_match = any(pattern.match(name, timeout=self._remaining_s) for pattern in self._compiled)
        except TimeoutError:
            is_match = False
            self._remaining_s = 0.0
        self._remaining_s -= time.perf_counter() - start_s
        if self._remaining_s <= 0:
            raise UnreadablePattern(f"patterns that take more than {BUDGET_S:g} s to match")
        return is_match


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
