"""Split a file into records: JSON, CSV, TSV or plain text, recognised by the content."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from perfmodel.core.errors import quoted
from s2d.prompt_files.json_records import Record, is_json, items_of_object, json_records, string_records
from s2d.prompt_files.kinds import TEXT_KEYS, recognised
from s2d.prompt_files.problems import BadRecord
from s2d.prompt_files.read_as import Form, ReadAs
from s2d.prompt_files.table_records import table_records

_OBJECT_LINE = re.compile(r'^[ \t]*\{[ \t]*"', re.MULTILINE)
_PYTHON_LINE = re.compile(r"^[ \t]*\{[ \t]*'", re.MULTILINE)
_LINE = re.compile(r"^[ \t]*\S", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The records of a file, in file order."""

    records: list[Record]
    plain: Form | None = None
    """How plain text was read; None for JSON and tables."""
    ignored: tuple[str, ...] = ()
    """Keys of the object around the records, which are not read."""


def split_records(text: str, options: ReadAs) -> Records:
    """The records of a file's text, at least one.

    Raises:
        BadRecord: the text looks like JSON or a table but cannot be read as one, or lacks the chosen column.
    """
    try:
        records = _records(text, options)
    except BadRecord as err:
        fix = f"{err.fix}; or give {options.format_flag} {options.plain_form}, if this is plain text"
        raise BadRecord(err.problem, fix, start=err.start) from err
    if not records.records:
        raise BadRecord("the file has no record, expected at least one", "Give a file with texts in it")
    return records


def _records(text: str, options: ReadAs) -> Records:
    if options.form != "auto":
        return _from_plain_text(text, options)
    if is_json(text):
        return _from_json(json_records(text), options)
    rows = table_records(text, TEXT_KEYS, options.column)
    if rows is not None:
        return Records(records=rows)
    if strings := string_records(text):
        return Records(records=strings)
    if options.column is not None:
        problem = f"there is no column {quoted(options.column)} in the first line, which is {quoted(text.splitlines()[0])}"
        raise BadRecord(problem, f"Leave {options.column_flag} out")
    if 2 * len(_OBJECT_LINE.findall(text)) > len(_LINE.findall(text)):
        problem = f"most lines are JSON objects, but the file begins with {quoted(text.splitlines()[0])}"
        raise BadRecord(problem, "Remove the lines that are not JSON", start=0)
    if 2 * len(_PYTHON_LINE.findall(text)) > len(_LINE.findall(text)):
        problem = "most lines are Python dictionaries with keys in single quotes: expected JSON"
        raise BadRecord(problem, "Write each line with json.dumps", start=0)
    return _from_plain_text(text, options)


def _from_json(records: list[Record], options: ReadAs) -> Records:
    """JSON records. If the file is one object that is not a record, the items of its only array."""
    if len(records) == 1 and isinstance(value := records[0].value, dict) and not _is_record(value, options):
        items, others = items_of_object(records[0])
        return Records(records=items, ignored=tuple(others))
    return Records(records=records)


def _is_record(value: dict[str, object], options: ReadAs) -> bool:
    if options.column is not None:
        return options.column in value
    return recognised(value) is not None


def _from_plain_text(text: str, options: ReadAs) -> Records:
    """Plain text as records: each line that is not blank, or the whole text."""
    if options.plain_form == "lines":
        return Records(records=list(_lines(text)), plain="lines")
    whole = text.replace("\r\n", "\n").replace("\r", "\n")
    if options.use == "prompt":
        whole = whole.rstrip("\n")  # added by an editor
    return Records(records=[Record(value=whole, start=0)], plain="file")


def _lines(text: str) -> Iterator[Record]:
    start = 0
    for line in io.StringIO(text, newline=""):
        if line.strip():
            yield Record(value=line.rstrip("\r\n"), start=start)
        start += len(line)
