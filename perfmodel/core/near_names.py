"""Known names that are close in meaning to an unknown one: the same family and the nearest size, never spelling alone.

Keys of our own files are the exception: their spelling is all that they have.

`llama-7b0` is near `llama-2-7b`, which has its family and size. `opt-7b` is not near `gpt-7b`, and `fp8` is not near `fp16`:
one letter or one digit makes another model, device or number format.
"""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

MAX_NEAR = 3

_SIZE = re.compile(r"(?<![0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z])")
"""`7b`, `0.6b`, `125m`: what follows the letter may be a stray digit."""
_PARTS = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_CLASS_ENDING = re.compile(r"(For[A-Z]\w*|LMHeadModel|Model)$")
_NO_FAMILY = frozenset({"meta", "the", "my", "new", "b", "m"})
"""Words of model names that tell no family."""
_OTHER_FAMILIES = frozenset(
    {"mixtral", "pixtral", "ministral", "magistral", "llava", "olmoe", "qwq", "gemini", "granitemoe", "phimoe"}
)
"""Families that are spelled almost like a known one: no typos of it."""
_MIN_DIGITS = 3
_TYPO_LETTERS = ((8, 2), (4, 1))
"""From so many letters on, so many may be wrong."""


def near_models(given: str, known: Iterable[str]) -> tuple[str, ...]:
    """Known models or architectures of the family of the one given, the nearest in size and version first; at most three."""
    names = list(known)
    family = _family_in(given, {_words(name)[0] for name in names if _words(name)})
    if family is None:
        return ()
    of_family = [name for name in names if _words(name)[:1] == [family]]
    asked = _with_unit(given, of_family)
    is_sized = _size(asked) is not None or all(_size(name) is None for name in of_family)
    if not is_sized and _version(asked) not in (None, *(number for name in of_family for number in _versions(name))):
        return ()  # another release, such as a Llama 4: nothing says which of the known sizes is near
    return tuple(sorted(of_family, key=lambda name: _distance(asked, name))[:MAX_NEAR])


def near_words(given: str, known: Iterable[str]) -> tuple[str, ...]:
    """Known words with the letters of the one given before the same number, or one digit off; at most three.

    A name may have further parts: `h100` is near `h100-80gb-pcie`. Words without numbers may hold a typo.
    """
    names = list(known)
    same = [name for name in names if _is_near(given, name, digits_off=0)]
    return tuple((same or [name for name in names if _is_near(given, name, digits_off=1)])[:MAX_NEAR])


def near_keys(given: str, known: Iterable[str]) -> tuple[str, ...]:
    """Known keys of a file that are spelled like the one given, best first; at most three, case is ignored."""
    import difflib

    by_folded = {name.casefold(): name for name in known}
    return tuple(by_folded[key] for key in difflib.get_close_matches(given.casefold(), by_folded, n=MAX_NEAR, cutoff=0.6))


def dashed_name(name: str) -> str:
    """A name in lower case with dashes for blanks and underscores: `rtx-4090` for `RTX 4090`."""
    return "-".join(re.split(r"[\s_-]+", name.strip().casefold()))


def edit_distance(one: str, other: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour to turn one word into the other."""
    previous: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, previous, row = previous, row, [i]
        for j, wanted in enumerate(other, start=1):
            costs = [previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (letter != wanted)]
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                costs.append(before[j - 2] + 1)
            row.append(min(costs))
    return row[-1]


def _words(name: str) -> list[str]:
    """The words of a model's or class's name that may be its family, in lower case."""
    plain = _CLASS_ENDING.sub("", name.rpartition("/")[2]).casefold()
    return [part for part in _PARTS.findall(plain) if part.isalpha() and part not in _NO_FAMILY]


def _family_in(given: str, families: set[str]) -> str | None:
    """The first word of a name that is one of the families, else the first that is one but for a typo."""
    words = _words(given)
    exact = next((word for word in words if word in families), None)
    return exact or next((family for word in words for family in sorted(families) if _is_typo(word, family)), None)


def _is_typo(word: str, known: str) -> bool:
    if word in _OTHER_FAMILIES:
        return False
    shorter = min(len(word), len(known))
    allowed = next((wrong for letters, wrong in _TYPO_LETTERS if shorter >= letters), 0)
    return edit_distance(word, known) <= allowed


def _distance(given: str, name: str) -> float:
    """Between two models of one family: the ratio of their sizes, and half a doubling for another version."""
    sizes = _size(given), _size(name)
    between = abs(math.log2(sizes[0] / sizes[1])) if sizes[0] and sizes[1] else 0.0
    versions = _version(given), _version(name)
    return between + (0.5 if versions[0] is not None and versions[0] != versions[1] else 0.0)


def _size(name: str) -> float | None:
    """Weights in its name, in millions."""
    found = _SIZE.search(name.casefold())
    return float(found[1]) * (1000 if found[2] == "b" else 1) if found else None


def _with_unit(given: str, of_family: Sequence[str]) -> str:
    """`qwen3-32b` for `qwen3-32`: a last number that is the size and not the release of a known model, with its unit."""
    last = re.search(r"(?<![\d.])\d+(\.\d+)?$", given)
    if last is None or _size(given) is not None or last[0] in {number for name in of_family for number in _versions(name)}:
        return given
    sizes = {found[1]: found[2] for found in map(_SIZE.search, of_family) if found}
    return given + sizes.get(last[0], "")


def _version(name: str) -> str | None:
    """The first number in a name that is no size; one behind a letter is none (`r1`), unless that is a v."""
    plain = _SIZE.sub("", name.rpartition("/")[2].casefold())
    pairs = pairwise(["", *_PARTS.findall(plain)])
    numbers = (part for before, part in pairs if not part.isalpha() and (before == "v" or not re.fullmatch("[a-z]", before)))
    return next(numbers, None)


def _versions(name: str) -> tuple[str, ...]:
    """Its version, and the release that it belongs to: `3.1` and `3`."""
    version = _version(name)
    return () if version is None else (version, version.partition(".")[0])


def _is_near(given: str, name: str, *, digits_off: int) -> bool:
    """Whether a name has every number of the one given behind the same letters; without numbers, its words but for typos."""
    mine, theirs = _PARTS.findall(given.casefold()), _PARTS.findall(name.casefold())
    numbered = [pair for pair in pairwise(["", *mine]) if not pair[1].isalpha()]
    if numbered:
        pairs = list(pairwise(["", *theirs]))
        return all(any(_is_same_number(pair, other, digits_off) for other in pairs) for pair in numbered)
    return bool(mine) and all(any(_is_typo(word, other) for other in theirs if other.isalpha()) for word in mine)


def _is_same_number(pair: tuple[str, str], other: tuple[str, str], digits_off: int) -> bool:
    """Whether letters and the number behind them are those of another pair.

    Long numbers may lack a digit, have one too many, or two swapped; another digit in one's place is another product.
    """
    allowed = digits_off if min(len(pair[1]), len(other[1])) >= _MIN_DIGITS else 0
    is_other = len(pair[1]) == len(other[1]) and sorted(pair[1]) != sorted(other[1])
    if pair[0] != other[0] or other[1].isalpha() or is_other:
        return False
    return edit_distance(pair[1], other[1]) <= allowed
