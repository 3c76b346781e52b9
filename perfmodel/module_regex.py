"""Regular expressions in lists of modules, matched in bounded time: files are not trusted, and `re` can take for ever.

The sets of places where a match can end are followed through the pattern, as bits of an integer, instead of one match at a
time. That finds the same matches as `re` where a pattern has neither flags, references to groups nor possessive parts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]  # the parser of `re` has no public name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, TypeAlias

from perfmodel.errors import shown

MAX_CHARS = 500
_MAX_DEPTH = 30

_ONE_LETTER = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)
_LOOKS = re.compile(r"\(\?<?[=!]")
_MAX_LOOKS = 4
"""Look-aheads try every place of a text."""

Places: TypeAlias = int
"""A set of places in a text: bit i stands for the place before letter i, the last bit for its end."""


class UnreadablePattern(ValueError):
    """A pattern that this module does not match."""


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """A text, prepared for all patterns."""

    letters: Mapping[str, Places]
    """The places before every letter that occurs."""
    length: int
    found: dict[int, Places] = field(default_factory=dict)
    """Where a look-ahead matches, by its identity."""

    @property
    def everywhere(self) -> Places:
        return (2 << self.length) - 1


_Step: TypeAlias = Callable[[_Text, Places], Places]
"""From where a part of a pattern begins to where it can end."""


def compile_ends(pattern: str) -> Callable[[str], Places]:
    """A function from a text to the places where a match from its start can end; 0 where there is none.

    Raises:
        re.error: the pattern is no regular expression.
        UnreadablePattern: it is too long, too deep, or has a part that cannot be followed in bounded time.
    """
    problem = f"the pattern {shown(pattern)}, which is too long or too nested, or has flags, references or possessive parts"
    if len(pattern) > MAX_CHARS or len(_LOOKS.findall(pattern)) > _MAX_LOOKS:
        raise UnreadablePattern(problem)
    try:
        parsed = parser.parse(pattern)
        step = _sequence(parsed, _MAX_DEPTH)
    except (RecursionError, OverflowError, NotImplementedError) as err:
        raise UnreadablePattern(problem) from err
    if parsed.state.flags & ~re.UNICODE:
        raise UnreadablePattern(problem)
    needed = _longest_literal(parsed)
    return lambda text: step(_prepared(text), 1) if needed in text else 0


def _longest_literal(parts: Sequence[Any]) -> str:
    """Letters that stand one after another in every match: a quick way to see that there is none."""
    runs = "".join(chr(value) if code == op.LITERAL else "\0" for code, value in parts).split("\0")
    return max(runs, key=len)


@lru_cache(maxsize=1 << 14)
def _prepared(text: str) -> _Text:
    letters: dict[str, Places] = {}
    for place, letter in enumerate(text):
        letters[letter] = letters.get(letter, 0) | 1 << place
    return _Text(letters, len(text))


def _sequence(parts: Sequence[Any], depth: int) -> _Step:
    if depth == 0:
        raise NotImplementedError
    steps = [_step(code, value, depth) for code, value in parts]

    def follow(text: _Text, places: Places) -> Places:
        for step in steps:
            places = step(text, places)
            if not places:
                break
        return places

    return follow


def _step(code: Any, value: Any, depth: int) -> _Step:
    """One part of a parsed pattern."""
    if code in _ONE_LETTER:
        return _one_letter(code, value)
    if code == op.AT:
        return _AT[value]
    if code == op.SUBPATTERN and not value[1] and not value[2]:
        return _sequence(value[3], depth - 1)
    if code == op.BRANCH:
        return _any_of([_sequence(branch, depth - 1) for branch in value[1]])
    if code in (op.MAX_REPEAT, op.MIN_REPEAT):
        least, most, [*inner] = value
        if len(inner) == 1 and inner[0][0] in _ONE_LETTER:
            return _repeated_letter(_places_of(*inner[0]), least, most)
        return _repeated(_sequence(inner, depth - 1), least, most)
    if code in (op.ASSERT, op.ASSERT_NOT):
        look = _behind if value[0] < 0 else _ahead
        return look(_sequence(value[1], depth - 1), wanted=code == op.ASSERT)
    raise NotImplementedError(code)


def _one_letter(code: Any, value: Any) -> _Step:
    where = _places_of(code, value)
    return lambda text, places: (places & where(text)) << 1


def _places_of(code: Any, value: Any) -> Callable[[_Text], Places]:
    """Before which letters of a text a one-letter part matches."""
    if code == op.LITERAL:
        letter = chr(value)
        return lambda text: text.letters.get(letter, 0)
    matches = _letter_test(code, value)
    return lambda text: sum(where for letter, where in text.letters.items() if matches(letter))


def _letter_test(code: Any, value: Any) -> Callable[[str], bool]:
    """Whether one letter is matched."""
    if code == op.ANY:
        return lambda letter: letter != "\n"
    members = [(op.NEGATE, None), (op.LITERAL, value)] if code == op.NOT_LITERAL else value
    is_negated: bool = members[0][0] == op.NEGATE
    tests = [_member_test(*member) for member in members[is_negated:]]

    @lru_cache(maxsize=256)
    def matches(letter: str) -> bool:
        return is_negated is not any(test(letter) for test in tests)

    return matches


def _member_test(code: Any, value: Any) -> Callable[[str], bool]:
    if code == op.LITERAL:
        return lambda letter: letter == chr(value)
    if code == op.RANGE:
        return lambda letter: value[0] <= ord(letter) <= value[1]
    category: re.Pattern[str] = re.compile(_CATEGORIES[value])
    return lambda letter: category.match(letter) is not None


def _any_of(steps: Sequence[_Step]) -> _Step:
    def follow(text: _Text, places: Places) -> Places:
        ends = 0
        for step in steps:
            ends |= step(text, places)
        return ends

    return follow


def _repeated(step: _Step, least: int, most: int) -> _Step:
    """More rounds than the text has letters add nothing: all further ones are empty."""

    def follow(text: _Text, places: Places) -> Places:
        for _ in range(min(least, text.length + 1)):
            places = step(text, places)
        ends = new = places
        for _ in range(min(most - least, text.length + 1)):
            new = step(text, new) & ~ends
            ends |= new
            if not new:
                break
        return ends

    return follow


def _repeated_letter(where: Callable[[_Text], Places], least: int, most: int) -> _Step:
    def follow(text: _Text, places: Places) -> Places:
        matched = where(text)
        for _ in range(min(least, text.length + 1)):
            places = (places & matched) << 1
        ends = new = places
        for _ in range(min(most - least, text.length + 1)):
            new = (new & matched) << 1 & ~ends
            ends |= new
            if not new:
                break
        return ends

    return follow


def _ahead(step: _Step, *, wanted: bool) -> _Step:
    def follow(text: _Text, places: Places) -> Places:
        key = id(step)
        if key not in text.found:
            text.found[key] = sum(1 << place for place in range(text.length + 1) if step(text, 1 << place))
        return places & (text.found[key] if wanted else ~text.found[key])

    return follow


def _behind(step: _Step, *, wanted: bool) -> _Step:
    """`re` takes patterns of one width only, so that any start will do."""

    def follow(text: _Text, places: Places) -> Places:
        found = step(text, text.everywhere)
        return places & (found if wanted else ~found)

    return follow


def _boundaries(text: _Text) -> Places:
    words = sum(where for letter, where in text.letters.items() if re.match(r"\w", letter))
    return (words ^ words << 1) & text.everywhere


_AT: Mapping[Any, _Step] = {
    op.AT_BEGINNING: lambda text, places: places & 1,
    op.AT_BEGINNING_STRING: lambda text, places: places & 1,
    op.AT_END: lambda text, places: places & 1 << text.length,
    op.AT_END_STRING: lambda text, places: places & 1 << text.length,
    op.AT_BOUNDARY: lambda text, places: places & _boundaries(text),
    op.AT_NON_BOUNDARY: lambda text, places: places & ~_boundaries(text),
}
_CATEGORIES: Mapping[Any, str] = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}
