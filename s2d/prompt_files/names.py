"""Names and categories of prompts: taken from the file, or generated.

The name of a prompt decides its half (`perfmodel.acceptance.splits`), so a generated name depends only on the file's content. A
colon in a name separates a document from a position in it. In ids of other formats colons have no such meaning, so they become
slashes. Records with the same id count as positions in one document and belong to one half.
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
    """The name of a record in its file."""

    text: str
    is_explicit: bool
    """Whether the name is used unchanged and must be unique."""


def given_name(value: object, keys: Sequence[str]) -> GivenName | None:
    """The name under the first of `keys` that the record has; None if it has none of them.

    Raises:
        BadRecord: the name is not a text or number, or contains control characters.
    """
    if not isinstance(value, Mapping):
        return None
    key = next((key for key in keys if value.get(key) is not None), None)
    if key is None:
        return None
    text, is_explicit = _label(key, value[key]), key in _EXPLICIT_KEYS
    return GivenName(text=text if is_explicit else text.replace(":", "/"), is_explicit=is_explicit)


def record_category(value: object) -> str:
    """The category of a record, or the default category.

    Raises:
        BadRecord: the category is not a text or number, or contains control characters.
    """
    category = value.get("category") if isinstance(value, Mapping) else None
    return MISSING_CATEGORY if category is None else _label("category", category)


def unique_names(given: Sequence[GivenName | None], starts: Sequence[int]) -> list[str]:
    """A unique name for each record: the given one, or its number in the file, from 1. A repeated id gets `:2`, `:3`, ….

    Args:
        given: the given name of each record.
        starts: the position of each record in the file.

    Raises:
        BadRecord: an explicit name is repeated.
    """
    taken: set[str] = set()
    for name, start in zip(given, starts, strict=True):
        if name and name.is_explicit:
            if name.text in taken:
                count = sum(other == name for other in given)
                problem = f"the name {quoted(name.text)} appears {count} times, expected once"
                raise BadRecord(problem, "Give every prompt its own name", start=start)
            taken.add(name.text)
    num_seen: Counter[str] = Counter()
    return [
        name.text if name and name.is_explicit else _numbered(name.text if name else str(number), taken, num_seen)
        for number, name in enumerate(given, start=1)
    ]


def _numbered(base_name: str, taken: set[str], num_seen: Counter[str]) -> str:
    """The name, numbered if it is taken. Marks it as taken."""
    while True:
        num_seen[base_name] += 1
        name = base_name if num_seen[base_name] == 1 else f"{base_name}:{num_seen[base_name]}"
        if name not in taken:
            taken.add(name)
            return name


def _label(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRecord(f"{key}: expected a text or a number, not {quoted(value)}")
    text = str(value)
    if control := _CONTROL.search(text):
        raise BadRecord(f"{key}: the control character {control[0]!r} in {quoted(text)}, expected none", "Remove it")
    return text
