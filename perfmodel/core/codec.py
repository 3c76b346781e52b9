"""Converts records to JSON and back by their type hints, strictly in both directions.

A record is a frozen dataclass. Its fields are `str`, `int`, `float`, `bool`, `Literal[…]`, other records, `tuple[X, …]`,
`tuple[X, Y]`, `dict[str, X]` or `Mapping[str, X]` (keys may also be of a `Literal`), `X | None`, or a union of records. A
member of a union is written with a `kind` key, its class name in kebab case. Every field is written and required, even if it
has a default. NaN and infinity have no JSON form. A bool is not an int. An int is accepted for a float and written as a float.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from perfmodel.core.errors import MAX_LISTED_NAMES, S2DError, quoted
from perfmodel.core.near_names import MAX_NEAR, near_keys, near_words

T = TypeVar("T")

KIND_KEY = "kind"

_SCALARS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
"""The types without parts, as messages name them."""


class DecodeError(ValueError):
    """JSON that does not decode to the expected record.

    Args:
        where: the position inside the file, such as `body.rounds[3].verify_s`.
        problem: what is wrong and what was expected.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")


def encode_record(record: object) -> dict[str, Any]:
    """The JSON object of a record. It is checked to decode to an equal record.

    Raises:
        ValueError: the value of a field does not fit its type hint, or would change in the file.
    """
    encoded = cast("dict[str, Any]", _encode(record, type(record)))
    decoded = decode_record(encoded, type(record))
    if decoded != record:
        raise ValueError(f"{type(record).__name__} would change in its file: {record!r} would be read as {decoded!r}")
    return encoded


def decode_record(data: object, cls: type[T], where: str = "body") -> T:
    """The record in a JSON object.

    Raises:
        DecodeError: an unknown or missing key, a wrong type, NaN, or a value that the record's own checks refuse.
    """
    return cast("T", _decode(data, cls, where))


def kind_tag(cls: type) -> str:
    """The `kind` of a record in a union: `HeuristicLength` has `heuristic-length`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of a JSON object; an `object_pairs_hook` that refuses repeated keys, because readers treat them differently.

    Raises:
        ValueError: a key is repeated.
    """
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"the key {quoted(key)} is repeated")
        members[key] = value
    return members


@functools.cache
def _field_hints(cls: type) -> dict[str, Any]:
    """Name and resolved type hint of every field, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _union_members(hint: Any) -> tuple[Any, ...] | None:
    """The members of a union except None; None if the hint is not a union."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    members = tuple(member for member in typing.get_args(hint) if member is not types.NoneType)
    if len(members) > 1 and not all(map(dataclasses.is_dataclass, members)):
        raise TypeError(f"{hint} has no JSON form: expected a union of records, or of one type and None")
    return members


def _item_hints(hint: Any, num_items: int) -> tuple[Any, ...] | None:
    """The type hint of every item of a tuple; None if the tuple must have another length."""
    hints = typing.get_args(hint)
    if len(hints) == 2 and hints[1] is Ellipsis:
        return (hints[0],) * num_items
    return hints if len(hints) == num_items else None


def _is_mapping(hint: Any) -> bool:
    if typing.get_origin(hint) not in (dict, Mapping):
        return False
    key_hint = typing.get_args(hint)[0]
    if key_hint is not str and typing.get_origin(key_hint) is not typing.Literal:
        raise TypeError(f"{hint} has no JSON form: expected keys of type str or Literal")
    return True


def _encode(value: Any, hint: Any) -> Any:
    """Encode by type hint. A value that does not fit is passed through: `decode_record` then reports it with its position."""
    if members := _union_members(hint):
        if value is None or len(members) == 1:
            return None if value is None else _encode(value, members[0])
        return {KIND_KEY: kind_tag(type(value)), **_encode(value, type(value))} if type(value) in members else value
    if hint is float and type(value) is int:
        return float(value)
    if dataclasses.is_dataclass(hint) and isinstance(value, cast("type", hint)):
        return {name: _encode(getattr(value, name), field) for name, field in _field_hints(cast("type", hint)).items()}
    if typing.get_origin(hint) is tuple and isinstance(value, tuple) and (items := _item_hints(hint, len(value))):
        return [_encode(item, item_hint) for item, item_hint in zip(value, items, strict=True)]
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping) and _is_mapping(hint):
        return {key: _encode(item, typing.get_args(hint)[1]) for key, item in value.items()}
    return value


def _decode(data: Any, hint: Any, where: str) -> Any:
    """Decode by type hint. Every error names the position."""
    if hint in _SCALARS:
        return _decode_scalar(data, hint, where)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(data, cast("type", hint), where)
    if members := _union_members(hint):
        return _decode_union(data, members, hint, where)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return _decode_literal(data, typing.get_args(hint), where)
    if origin is tuple:
        return _decode_tuple(data, hint, where)
    if _is_mapping(hint):
        return _decode_mapping(data, hint, where)
    raise TypeError(f"{where}: {hint} has no JSON form")


def _decode_scalar(data: Any, hint: Any, where: str) -> Any:
    expected = _SCALARS[hint]
    if hint is not float:
        return _expect(data, hint, expected, where)
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise DecodeError(where, f"expected {expected}, got {quoted(data)}")
    try:
        number = float(data)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DecodeError(where, f"expected a finite number, got {quoted(data)}")
    return number


def _decode_literal(data: Any, choices: tuple[Any, ...], where: str) -> Any:
    for choice in choices:
        if type(choice) is type(data) and choice == data:
            return choice
    is_long = len(choices) > MAX_LISTED_NAMES
    examples = (near_words(str(data), map(str, choices)) or choices[:MAX_NEAR]) if is_long else choices
    count = f"{len(choices)} values such as " if is_long else ""
    raise DecodeError(where, f"expected one of {count}{', '.join(map(repr, examples))}, got {quoted(data)}")


def _decode_tuple(data: Any, hint: Any, where: str) -> tuple[Any, ...]:
    items = _expect(data, list, "a list", where)
    hints = _item_hints(hint, len(items))
    if hints is None:
        raise DecodeError(where, f"expected {len(typing.get_args(hint))} items, got {len(items)}")
    return tuple(_decode(item, hints[i], f"{where}[{i}]") for i, item in enumerate(items))


def _decode_mapping(data: Any, hint: Any, where: str) -> dict[str, Any]:
    key_hint, item_hint = typing.get_args(hint)
    items = _expect(data, dict, "an object", where).items()
    return {_decode(key, key_hint, f"{where} key"): _decode(item, item_hint, f"{where}[{key!r}]") for key, item in items}


def _decode_union(data: Any, members: tuple[Any, ...], hint: Any, where: str) -> Any:
    if data is None and types.NoneType in typing.get_args(hint):
        return None
    if len(members) == 1:
        return _decode(data, members[0], where)
    by_kind = {kind_tag(member): member for member in members}
    tagged = _expect(data, dict, "an object", where)
    if KIND_KEY not in tagged:
        raise DecodeError(where, f"missing key {KIND_KEY!r}")
    kind = _decode_literal(tagged[KIND_KEY], tuple(by_kind), f"{where}.{KIND_KEY}")
    return _decode({key: item for key, item in tagged.items() if key != KIND_KEY}, by_kind[kind], where)


def _decode_dataclass(data: Any, cls: type, where: str) -> Any:
    hints = _field_hints(cls)
    present = _expect(data, dict, "an object", where)
    for key in present:
        if key not in hints:
            near = near_keys(key, hints)
            raise DecodeError(where, f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    for name in hints:
        if name not in present:
            raise DecodeError(where, f"missing key {name!r}")
    values = {name: _decode(present[name], hint, f"{where}.{name}") for name, hint in hints.items()}
    try:
        return cls(**values)
    except (ValueError, S2DError) as err:
        raise DecodeError(where, str(err).removesuffix(".")) from err


def _expect(data: Any, cls: type, expected: str, where: str) -> Any:
    """The data, if its class is exactly this one (true is not 1)."""
    if type(data) is not cls:
        raise DecodeError(where, f"expected {expected}, got {quoted(data)}")
    return data
