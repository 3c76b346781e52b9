"""Read records from JSON: consecutive values (JSONL), the items of an array, or one object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perfmodel.core.codec import unique_keys
from perfmodel.core.errors import quoted
from s2d.prompt_files.problems import BadRecord

MAX_DIGITS = 40
"""The maximum length of an integer. Prompt files have no integers as long."""

_SPACE = re.compile(r"[ \t\r\n]*")
_JSON_START = re.compile(r"""[ \t\r\n]*(?:\{[ \t\r\n]*["}]|\[[ \t\r\n]*[\[{"\]])""")
_CLOSING_COMMA = re.compile(r",[ \t\r\n]*(?=[\]}])")
_JSON_FIX = 'Write one object per line, such as {"prompt": "…"}, or one array of them'


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One value of a file, before its kind is recognised."""

    value: Any
    """A dict, a text, or any other JSON value."""
    start: int
    """Offset of its first character in the file's text."""


def is_json(text: str) -> bool:
    """Whether a text starts like an array or object of records."""
    return _JSON_START.match(text) is not None


def json_records(text: str) -> list[Record]:
    """The items of an array, or consecutive objects of one or more lines each.

    Raises:
        BadRecord: not JSON, a repeated key in an object, an integer that is too long, too deep nesting, or text after an array.
    """
    start = _end_of_space(text, 0)
    return list(_items(text, start) if text[start] == "[" else _values(text, start))


def string_records(text: str) -> list[Record]:
    """The texts of a file with a JSON string on each line; an empty list for any other file."""
    if not text.lstrip().startswith('"'):
        return []
    try:
        records = list(_values(text, _end_of_space(text, 0)))
    except BadRecord:
        return []
    return records if all(isinstance(record.value, str) for record in records) else []


def items_of_object(record: Record) -> tuple[list[Record], list[str]]:
    """The items of the one array in an object such as `{"data": [...]}`, and the object's other keys.

    All items have the position of the object, because the JSON reader does not report theirs. If the object has no such array,
    or several, it is itself the only record.
    """
    value = record.value
    filled = [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict | str)]
    arrays = filled or [key for key, item in value.items() if item == []]
    if len(arrays) != 1:
        return [record], []
    [key] = arrays
    return [Record(value=item, start=record.start) for item in value[key]], [other for other in value if other != key]


def _values(text: str, start: int) -> Iterator[Record]:
    while start < len(text):
        value, end = _value(text, start)
        yield Record(value=value, start=start)
        start = _end_of_space(text, end)


def _items(text: str, start: int) -> Iterator[Record]:
    """The items of the array that starts at `start`. Nothing may follow the array."""
    start = _end_of_space(text, start + 1)
    if text[start : start + 1] != "]":
        while True:
            value, end = _value(text, start)
            yield Record(value=value, start=start)
            start = _end_of_space(text, end)
            if text[start : start + 1] != ",":
                break
            start = _end_of_space(text, start + 1)
    if text[start : start + 1] != "]":
        raise BadRecord("not JSON (expected ',' or ']' after an item of the array)", _JSON_FIX, start=start)
    rest = _end_of_space(text, start + 1)
    if rest < len(text):
        raise BadRecord(f"{quoted(text[rest:])} after the end of the array, expected nothing", _JSON_FIX, start=rest)


def _value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that starts at `start`, and its end."""
    try:
        return _DECODER.raw_decode(text, start)
    except BadRecord as err:
        raise err.at(start) from err
    except json.JSONDecodeError as err:
        position = min(err.pos, len(text))
        if (comma := _closing_comma(text, position)) is not None:
            raise BadRecord("not JSON (a comma before the closing bracket)", "Take the comma out", start=comma) from err
        raise BadRecord(f"not JSON ({err.msg})", _JSON_FIX, start=position) from err
    except RecursionError as err:
        raise BadRecord("objects or arrays are nested too deeply", "Flatten the record", start=start) from err


def _closing_comma(text: str, position: int) -> int | None:
    """The position of a comma before a closing bracket; None if no such comma causes the error at `position`."""
    comma = text.rfind(",", 0, position + 1)
    match = _CLOSING_COMMA.match(text, comma) if comma >= 0 else None
    return comma if match and match.end() >= position else None


def _end_of_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return unique_keys(pairs)
    except ValueError as err:
        raise BadRecord(f"{err} in one object, expected once", "Keep one of them") from err


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadRecord(f"an integer of {len(digits)} digits, expected at most {MAX_DIGITS}", "Write it as a string")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
