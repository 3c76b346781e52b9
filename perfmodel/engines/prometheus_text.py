"""Prometheus text, as engines serve it at `/metrics`: one sample a line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LABELS = r'(?:[^"}]|"(?:[^"\\]|\\.)*")*'
"""Between braces: everything up to a brace outside of quotation marks."""
_SAMPLE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{({_LABELS})\}})?\s+(\S+)(?:\s+-?[0-9.]+)?(?:\s+#\s.*)?")
"""Name, labels, value; perhaps a time, and in OpenMetrics an exemplar after `#`."""
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: a name, its labels and its value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float

    def label(self, name: str) -> str | None:
        """The value of a label; None if the sample does not have it."""
        return dict(self.labels).get(name)


class BadSample(ValueError):
    """A line that is no sample.

    Args:
        number: 1-based, of the line.
        line: its text.
    """

    def __init__(self, number: int, line: str) -> None:
        super().__init__(f"line {number} is not a Prometheus sample: {line!r}")
        self.number, self.line = number, line


def read_samples(text: str) -> Iterator[Sample]:
    """The samples of a text. Comments and empty lines are passed over.

    Raises:
        BadSample: another line is not a sample.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line.strip())
        value = None if match is None else _value(match[3])
        labels = None if match is None else _labels(match[2] or "")
        if match is None or value is None or labels is None:
            raise BadSample(number, line)
        yield Sample(match[1], labels, value)


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _labels(text: str) -> tuple[tuple[str, str], ...] | None:
    """The labels between braces; None if they are not labels."""
    labels, position = [], 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            return None
        labels.append((match[1], re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), match[2])))
        position = match.end()
    return tuple(labels)
