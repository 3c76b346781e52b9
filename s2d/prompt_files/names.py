"""Names and categories of prompts: those that a file gives, and those that are made where it gives none.

A name decides on the half that its prompt is in (`perfmodel.acceptance.splits`), so a made name depends on the file's content alone. A
colon in a name sets a document apart from a place in it; ids of other people's files mean nothing of the kind, so it becomes
a slash in them. Records of one id count as places in one document, and so are in one half.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfmodel.core.errors import quoted
from s2d.prompt_files.problems import BadRecord

MISSING_CATEGORY = "prompts"
_EXPLICIT_KEYS = ("name", "question_id")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenName:
    """What a file calls a record."""

    text: str
    is_explicit: bool
    """Whether it is to be taken as it is, and must be unique."""


def given_name(value: object, keys: Sequence[str]) -> GivenName | None:
    """What a record is called under the first of some keys that it has; None where it has none.

    Raises:
        BadRecord: it is no text or number, or holds control characters.
    """
    if not isinstance(value, Mapping):
        return None
    key = next((key for key in keys if value.get(key) is not None), None)
    if key is None:
        return None
    text, is_explicit = _label(key, value[key]), key in _EXPLICIT_KEYS
    return GivenName(text=text if is_explicit else text.replace(":", "/"), is_explicit=is_explicit)


def category_of(value: object) -> str:
    """The category of a record, the same for all that have none.

    Raises:
        BadRecord: it is no text or number, or holds control characters.
    """
    category = value.get("category") if isinstance(value, Mapping) else None
    return MISSING_CATEGORY if category is None else _label("category", category)


def unique_names(given: Sequence[GivenName | None], starts: Sequence[int]) -> list[str]:
    """A name for every record: the given one, or its number in the file, from 1; a repeated id gets `:2`, `:3`, ….

    Args:
        given: by record.
        starts: where the records are.

    Raises:
        BadRecord: an explicit name comes twice.
    """
    taken: set[str] = set()
    for name, start in zip(given, starts, strict=True):
        if name and name.is_explicit:
            if name.text in taken:
                count = sum(other == name for other in given)
                problem = f"the name {quoted(name.text)} comes {count} times, expected once"
                raise BadRecord(problem, "Give every prompt its own name", start=start)
            taken.add(name.text)
    num_met: Counter[str] = Counter()
    return [
        name.text if name and name.is_explicit else _free(name.text if name else str(number), taken, num_met)
        for number, name in enumerate(given, start=1)
    ]


def _free(wanted: str, taken: set[str], num_met: Counter[str]) -> str:
    """The wanted name, numbered where it is taken; takes it."""
    while True:
        num_met[wanted] += 1
        name = wanted if num_met[wanted] == 1 else f"{wanted}:{num_met[wanted]}"
        if name not in taken:
            taken.add(name)
            return name


def _label(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRecord(f"{key}: expected a text or a number, not {quoted(value)}")
    text = str(value)
    if control := _CONTROL.search(text):
        raise BadRecord(f"{key}: the control character {control[0]!r} in {quoted(text)}, expected none", "Take it out")
    return text
