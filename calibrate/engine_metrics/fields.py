"""Checked access to one JSON object of a metrics file: every error names the file, the place and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel.core.errors import BadFile, quoted
from perfmodel.core.units import Seconds

MAX_COUNT = 2**53
"""Largest count that is read: larger ones are not exact as floats, and no server has counted so far."""
FIX = "Give the file as the engine or its tool wrote it, complete and unedited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """One JSON object. A key that is missing or null reads as None."""

    path: Path
    where: str
    """Place of the object in the file, such as `line 3`; empty for the whole file."""
    values: Mapping[str, Any]

    def has(self, *keys: str) -> bool:
        """Whether all these keys exist, also with null."""
        return all(key in self.values for key in keys)

    def child(self, *keys: str) -> Fields | None:
        """The object at the end of some nested keys; None if one of them is missing or null.

        Raises:
            BadFile: the value is not an object.
        """
        node = self
        for key in keys:
            value = node.values.get(key)
            if value is None:
                return None
            if not isinstance(value, dict):
                raise node.error(key, "an object", value)
            node = Fields(path=self.path, where=f"{node.where} {key}".strip(), values=value)
        return node

    def required(self, *keys: str) -> Fields:
        """The object at the end of some nested keys.

        Raises:
            BadFile: one of the keys is missing.
        """
        node = self.child(*keys)
        if node is None:
            raise BadFile(self.path, f"{self._place}no object {'.'.join(keys)!r}, expected one", FIX)
        return node

    def text(self, key: str) -> str | None:
        """A string.

        Raises:
            BadFile: the value is something else.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "a string", value)
        return value

    def count(self, key: str) -> int | None:
        """A whole number, 0 or more. Tools write some counts as floats.

        Raises:
            BadFile: the value is something else.
        """
        value = self.number(key)
        if value is not None and (value > MAX_COUNT or value != int(value)):
            raise self.error(key, "a whole number", self.values[key])
        return None if value is None else int(value)

    def required_count(self, key: str) -> int:
        """A whole number, 0 or more, that the format always has.

        Raises:
            BadFile: the value is missing or something else.
        """
        value = self.count(key)
        if value is None:
            raise BadFile(self.path, f"{self._place}no {key!r}, expected a whole number", FIX)
        return value

    def number(self, key: str) -> float | None:
        """A finite number, 0 or more.

        Raises:
            BadFile: the value is something else.
        """
        value = self.values.get(key)
        return None if value is None else self._checked(key, value)

    def milliseconds(self, key: str) -> Seconds | None:
        """A time that the file states in milliseconds, in seconds.

        Raises:
            BadFile: the value is not a finite number, 0 or more.
        """
        value = self.number(key)
        return None if value is None else value / 1e3

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list of finite numbers, 0 or more.

        Raises:
            BadFile: the value is something else.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(key, "a list of numbers", value)
        return tuple(self._checked(f"{key}[{index}]", item) for index, item in enumerate(value))

    def counts(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers, 0 or more.

        Raises:
            BadFile: the value is something else.
        """
        numbers = self.numbers(key)
        for index, number in enumerate(numbers or ()):
            if number > MAX_COUNT or number != int(number):
                raise self.error(f"{key}[{index}]", "a whole number", number)
        return None if numbers is None else tuple(map(int, numbers))

    def error(self, key: str, expected: str, value: object) -> BadFile:
        """The error for a value that is not what the key should hold."""
        return BadFile(self.path, f"{self._place}{key} is {quoted(value)}, expected {expected}", FIX)

    @property
    def _place(self) -> str:
        return f"{self.where}: " if self.where else ""

    def _checked(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number < 0:
            raise self.error(key, "a finite number, 0 or more", value)
        return number
