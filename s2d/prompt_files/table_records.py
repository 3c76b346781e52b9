"""Read records from CSV and TSV: a row is an object whose keys are the columns."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator

from perfmodel.core.errors import quoted
from s2d.prompt_files.json_records import Record
from s2d.prompt_files.problems import BadRecord, shown_keys

_DELIMITERS = ("\t", ",", ";")
_COLUMN_NAME = re.compile(r"[^\W\d][\w.-]*(?: [\w.-]+){0,3}")


def table_records(text: str, known: frozenset[str], column: str | None) -> list[Record] | None:
    """The rows below a line of column names; None if the text is not a table.

    A text is a table if a column is known or is the chosen one. It is also a table if the first line reads like column names
    and every row has as many cells.

    Args:
        text: the text of the file.
        known: columns that hold a text, compared without case.
        column: the chosen column; None if none was chosen.

    Raises:
        BadRecord: a row of another length, an unclosed quote, or a repeated column.
    """
    header = _header(text)
    if header is None:
        return None
    delimiter, columns = header
    names = [name.lower() if name.lower() in known else name for name in columns]
    is_certain = column in names or not known.isdisjoint(names)
    if not is_certain and len(names) == 1:
        return None
    try:
        rows = list(_rows(text, delimiter))[1:]
        _check_widths(names, rows)
    except BadRecord:
        if is_certain:
            raise
        return None
    if not is_certain and not rows:
        return None
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise BadRecord(f"the column {quoted(name)} appears {count} times", "Give every column its own name", start=0)
    return [Record(value=dict(zip(names, row, strict=True)), start=start) for start, row in rows]


def _header(text: str) -> tuple[str, list[str]] | None:
    """The delimiter that gives the most column names in the first line, and the names; None if the line is not a header."""
    line = io.StringIO(text, newline="").readline()
    candidates: list[tuple[str, list[str]]] = []
    for delimiter in _DELIMITERS:
        try:
            cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if cells and all(map(_COLUMN_NAME.fullmatch, cells)):
            candidates.append((delimiter, cells))
    return max(candidates, key=lambda header: len(header[1]), default=None)


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the offset of its start. Line ends inside cells become newlines."""
    num_read = 0

    def lines() -> Iterator[str]:
        nonlocal num_read
        for line in io.StringIO(text, newline=""):
            num_read += len(line)
            yield line

    limit = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        while True:
            start = num_read
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as err:
                problem = "not a table row: a double quote is not closed"
                raise BadRecord(problem, "Close the quotes, or double those inside", start=start) from err
            if any(cell.strip() for cell in row):
                yield start, [cell.replace("\r\n", "\n").replace("\r", "\n") for cell in row]
    finally:
        csv.field_size_limit(limit)


def _check_widths(names: list[str], rows: list[tuple[int, list[str]]]) -> None:
    for start, row in rows:
        if len(row) != len(names):
            problem = f"a row of {len(row)} cells, expected {len(names)} as in the first line ({shown_keys(names)})"
            raise BadRecord(problem, "Put cells that contain the delimiter or a line end in double quotes", start=start)
