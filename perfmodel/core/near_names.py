"""Known names that are near an unknown one: same family, nearest size.

`llama-7b0` is near `llama-2-7b`, which has its family and size. `opt-7b` is not near `gpt-7b`, and `fp8` is not near `fp16`:
one letter or one digit makes another model, device or number format. Keys of our own files are compared by spelling alone.
"""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

MAX_NEAR = 3

_SIZE = re.compile(r"(?<![0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z])")
"""`7b`, `0.6b`, `125m`. A stray digit may follow the letter."""
_PARTS = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_CLASS_ENDING = re.compile(r"(For[A-Z]\w*|LMHeadModel|Model)$")
_NOT_A_FAMILY = frozenset({"meta", "the", "my", "new", "b", "m"})
"""Words in model names that are not a family."""
_OTHER_FAMILIES = frozenset(
    {"mixtral", "pixtral", "ministral", "magistral", "llava", "olmoe", "qwq", "gemini", "granitemoe", "phimoe"}
)
"""Families whose spelling is close to a known family. They are not typos."""
_MIN_DIGITS = 3
_ALLOWED_TYPOS = ((8, 2), (4, 1))
"""Length of a word from which on this many letters may be wrong."""


def near_models(given: str, known: Iterable[str]) -> tuple[str, ...]:
    """Known models or architectures of the same family, nearest size and version first; at most three."""
    names = list(known)
    family = _family(given, {_words(name)[0] for name in names if _words(name)})
    if family is None:
        return ()
    relatives = [name for name in names if _words(name)[:1] == [family]]
    sized = _with_unit(given, relatives)
    is_sized = _size(sized) is not None or all(_size(name) is None for name in relatives)
    if not is_sized and _version(sized) not in (None, *(number for name in relatives for number in _versions(name))):
        return ()  # an unknown release without a size, such as Llama 4: no known size is near
    return tuple(sorted(relatives, key=lambda name: _distance(sized, name))[:MAX_NEAR])


def near_words(given: str, known: Iterable[str]) -> tuple[str, ...]:
    """Known names whose numbers, with the letters before them, equal those of the given name, or differ in a digit.

    A name may have further parts: `h100` is near `h100-80gb-pcie`. Words without numbers may hold a typo. At most three.
    """
    names = list(known)
    equal = [name for name in names if _is_near(given, name, digits_off=0)]
    return tuple((equal or [name for name in names if _is_near(given, name, digits_off=1)])[:MAX_NEAR])


def near_keys(given: str, known: Iterable[str]) -> tuple[str, ...]:
    """Known keys of a file with a similar spelling, best first, ignoring case; at most three."""
    import difflib

    by_folded = {name.casefold(): name for name in known}
    return tuple(by_folded[key] for key in difflib.get_close_matches(given.casefold(), by_folded, n=MAX_NEAR, cutoff=0.6))


def dashed_name(name: str) -> str:
    """A name in lower case with dashes instead of blanks and underscores: `rtx-4090` for `RTX 4090`."""
    return "-".join(re.split(r"[\s_-]+", name.strip().casefold()))


def edit_distance(left: str, right: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour to turn one word into the other."""
    previous: list[int] = []
    row = list(range(len(right) + 1))
    for i, left_letter in enumerate(left, start=1):
        before_previous, previous, row = previous, row, [i]
        for j, right_letter in enumerate(right, start=1):
            costs = [previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (left_letter != right_letter)]
            if i > 1 and j > 1 and (left_letter, left[i - 2]) == (right[j - 2], right_letter):
                costs.append(before_previous[j - 2] + 1)
            row.append(min(costs))
    return row[-1]


def _words(name: str) -> list[str]:
    """The words of a model's or class's name that may be its family, in lower case."""
    plain = _CLASS_ENDING.sub("", name.rpartition("/")[2]).casefold()
    return [part for part in _PARTS.findall(plain) if part.isalpha() and part not in _NOT_A_FAMILY]


def _family(given: str, families: set[str]) -> str | None:
    """The first word of a name that is one of the families, else the first that is a typo of one."""
    words = _words(given)
    exact = next((word for word in words if word in families), None)
    return exact or next((family for word in words for family in sorted(families) if _is_typo(word, family)), None)


def _is_typo(word: str, known: str) -> bool:
    if word in _OTHER_FAMILIES:
        return False
    length = min(len(word), len(known))
    allowed = next((num_wrong for min_length, num_wrong in _ALLOWED_TYPOS if length >= min_length), 0)
    return edit_distance(word, known) <= allowed


def _distance(given: str, name: str) -> float:
    """Distance between two models of one family: doublings between their sizes, and half a doubling for another version."""
    sizes = _size(given), _size(name)
    doublings = abs(math.log2(sizes[0] / sizes[1])) if sizes[0] and sizes[1] else 0.0
    versions = _version(given), _version(name)
    return doublings + (0.5 if versions[0] is not None and versions[0] != versions[1] else 0.0)


def _size(name: str) -> float | None:
    """The number of weights in a name, in millions."""
    match = _SIZE.search(name.casefold())
    return float(match[1]) * (1000 if match[2] == "b" else 1) if match else None


def _with_unit(given: str, relatives: Sequence[str]) -> str:
    """`qwen3-32b` for `qwen3-32`: adds the unit to a last number that is the size, not the release, of a known model."""
    last = re.search(r"(?<![\d.])\d+(\.\d+)?$", given)
    if last is None or _size(given) is not None or last[0] in {number for name in relatives for number in _versions(name)}:
        return given
    units = {match[1]: match[2] for match in map(_SIZE.search, relatives) if match}
    return given + units.get(last[0], "")


def _version(name: str) -> str | None:
    """The first number in a name that is not a size. A number after a letter other than v is not a version (`r1`)."""
    plain = _SIZE.sub("", name.rpartition("/")[2].casefold())
    pairs = pairwise(["", *_PARTS.findall(plain)])
    numbers = (part for before, part in pairs if not part.isalpha() and (before == "v" or not re.fullmatch("[a-z]", before)))
    return next(numbers, None)


def _versions(name: str) -> tuple[str, ...]:
    """The version of a name and its release: `3.1` and `3`."""
    version = _version(name)
    return () if version is None else (version, version.partition(".")[0])


def _is_near(given: str, name: str, *, digits_off: int) -> bool:
    """Whether a name has every number of the given one after the same letters. Without numbers, its words may hold typos."""
    given_parts, name_parts = _PARTS.findall(given.casefold()), _PARTS.findall(name.casefold())
    numbered = [pair for pair in pairwise(["", *given_parts]) if not pair[1].isalpha()]
    if numbered:
        pairs = list(pairwise(["", *name_parts]))
        return all(any(_is_same_number(pair, other, digits_off) for other in pairs) for pair in numbered)
    words = [part for part in name_parts if part.isalpha()]
    return bool(given_parts) and all(any(_is_typo(part, word) for word in words) for part in given_parts)


def _is_same_number(pair: tuple[str, str], other: tuple[str, str], digits_off: int) -> bool:
    """Whether two pairs of letters and the number after them are the same.

    A long number may miss a digit, have an extra one, or have two swapped. A different digit makes another product.
    """
    allowed = digits_off if min(len(pair[1]), len(other[1])) >= _MIN_DIGITS else 0
    has_other_digit = len(pair[1]) == len(other[1]) and sorted(pair[1]) != sorted(other[1])
    if pair[0] != other[0] or other[1].isalpha() or has_other_digit:
        return False
    return edit_distance(pair[1], other[1]) <= allowed
