"""Records to JSON and back, driven by their type hints and strict in both directions.

A record is a frozen dataclass whose fields are `str`, `int`, `float`, `bool`, `Literal[…]`, other records, `tuple[X, …]`,
`tuple[X, Y]`, `dict[str, X]` or `Mapping[str, X]` (keys may be of a `Literal` too), `X | None`, or a union of several
records, which is written with a `kind` key (the class name in kebab case). Every field is written and every field is
required, defaults or not; NaN and infinity have no JSON form; a bool is never an int; an int is accepted where a float is
expected, and written as a float.
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

from perfmodel.core.errors import S2DError, quoted
from perfmodel.core.near_names import near_keys

T = TypeVar("T")

KIND_KEY = "kind"

_SCALARS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class DecodeError(ValueError):
    """JSON that is not the record it should be.

    Args:
        where: the place inside the file, such as `body.rounds[3].verify_s`.
        problem: what is there and what was expected.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")


def encode_record(record: object) -> dict[str, Any]:
    """The JSON object of a record, proved to decode to an equal record.

    Raises:
        ValueError: a field holds something that its hint does not allow, or that would not come back the same.
    """
    encoded = cast("dict[str, Any]", _encode(record, type(record)))
    decoded = decode_record(encoded, type(record))
    if decoded != record:
        raise ValueError(f"{type(record).__name__} would not survive its file: {record!r} would come back as {decoded!r}")
    return encoded


def decode_record(data: object, cls: type[T], where: str = "body") -> T:
    """The record that a JSON object stands for.

    Raises:
        DecodeError: an unknown or missing key, a wrong type, NaN, or a value that the record itself refuses.
    """
    return cast("T", _decode(data, cls, where))


def kind_tag(cls: type) -> str:
    """The tag of a record inside a union: `HeuristicLength` is `heuristic-length`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of a JSON object, as an `object_pairs_hook`: readers differ on the value of a repeated key.

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
    """Name and resolved hint of every field, in the order they were declared."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _union_members(hint: Any) -> tuple[Any, ...] | None:
    """The members of a union other than None, or None when the hint is no union."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    members = tuple(member for member in typing.get_args(hint) if member is not types.NoneType)
    if len(members) > 1 and not all(map(dataclasses.is_dataclass, members)):
        raise TypeError(f"{hint} has no JSON form: a union is of records, or of one type and None")
    return members


def _item_hints(hint: Any, num_items: int) -> tuple[Any, ...] | None:
    """The hint of every item of a tuple, or None when the tuple must have another length."""
    hints = typing.get_args(hint)
    if len(hints) == 2 and hints[1] is Ellipsis:
        return (hints[0],) * num_items
    return hints if len(hints) == num_items else None


def _is_mapping(hint: Any) -> bool:
    if typing.get_origin(hint) not in (dict, Mapping):
        return False
    key_hint = typing.get_args(hint)[0]
    if key_hint is not str and typing.get_origin(key_hint) is not typing.Literal:
        raise TypeError(f"{hint} has no JSON form: keys must be str or Literal texts")
    return True


def _encode(value: Any, hint: Any) -> Any:
    """JSON by hint. What does not fit its hint is passed through, for `decode_record` to name with its place."""
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
    """A value by hint, every refusal naming its place."""
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
    raise DecodeError(where, f"expected one of {', '.join(map(repr, choices))}, got {quoted(data)}")


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
    """The data itself when it is exactly of the class (so true is no 1), an error that shows it otherwise."""
    if type(data) is not cls:
        raise DecodeError(where, f"expected {expected}, got {quoted(data)}")
    return data
