"""Blocks of text for a terminal or a notebook: facts, tables, paragraphs, commands."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

from perfmodel.core.console import table

PAGE_CHARS = 100
"""Longest line of text for people. Only a single word, such as a path, may be longer."""
_GAP_CHARS = 2
"""Between a label and its value, and between two columns."""
_CONTINUATION = "    "
_WORD = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")
"""A word of a command, its quotes kept."""
_COMMAND_IN_PROSE = re.compile(r": (?=(?:s2d-|torchrun )\S)")


@dataclass(frozen=True, slots=True)
class Facts:
    """Labelled lines. Values start in one column and are folded at the width of a page."""

    pairs: Sequence[tuple[str, str]]
    """Label and value."""
    label_chars: int = 0
    """Width of the labels at least, to align several blocks."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of formatted cells under their headers. Cells are folded where the table is wider than a page."""

    rows: Sequence[Sequence[str]]
    headers: Sequence[str]
    align: str | None = None
    """`l` or `r` per column. None aligns the first column left and the others right."""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Prose, folded at the width of a page."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command to copy. A long one continues over several lines, as a shell reads them."""

    command: str
    label: str = "next: "


Block: TypeAlias = Facts | Table | Paragraph | Command


class Printable:
    """A result that prints itself: `str()` is the command's default text, `explain()` the long one. Notebooks show HTML."""

    __slots__ = ()

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The result as blocks of text.

        Args:
            explain: whether to include the details.
        """
        raise NotImplementedError

    def explain(self) -> str:
        """The text that the command prints with `--explain`."""
        return as_text(self.blocks(explain=True))

    def __str__(self) -> str:
        return as_text(self.blocks())

    def _repr_html_(self) -> str:
        return as_html(self.blocks())


def as_text(blocks: Sequence[Block]) -> str:
    """Blocks as plain text, an empty line between two of them."""
    return "\n\n".join(map(_block_text, blocks))


def as_html(blocks: Sequence[Block]) -> str:
    """Blocks as HTML."""
    return "\n".join(map(_block_html, blocks))


def sentence_blocks(text: str, *, label: str = "") -> list[Block]:
    """Prose that may end with a command after a colon: the prose folded, the command whole.

    Args:
        text: `record a trace first: s2d-profile --target …`, for example.
        label: printed before the text.
    """
    prose, *command = _COMMAND_IN_PROSE.split(text, maxsplit=1)
    if not command:
        return [Paragraph(label + prose)]
    return [Paragraph(f"{label}{prose}:"), Command(command[0], label="  ")]


def short_note(note: str) -> str:
    """A note without the command at its end, for a summary."""
    prose, *command = _COMMAND_IN_PROSE.split(note, maxsplit=1)
    return f"{prose} (--explain shows the command)" if command else prose


def leading_clauses(text: str, max_chars: int) -> str:
    """The clauses at the start of a fact that fit on a line. A first clause that does not fit ends with an ellipsis."""
    if len(text) <= max_chars:
        return text
    starts = (text[: match.start()] for match in re.finditer("[,;] ", text[: max_chars + 1]))
    whole = [start for start in starts if start.count("(") == start.count(")")]
    return whole[-1] if whole else textwrap.shorten(text, max_chars, placeholder=" …")


def _block_text(block: Block) -> str:
    match block:
        case Facts():
            return _facts_text(block)
        case Table():
            title = f"{_folded(block.title)}\n\n" if block.title else ""
            return title + table(_fitted_rows(block), headers=block.headers, align=block.align)
        case Paragraph():
            return _folded(block.text)
        case Command():
            return _command_text(block)


def _folded(text: str) -> str:
    return textwrap.fill(text, PAGE_CHARS, break_long_words=False, break_on_hyphens=False)


def _facts_text(facts: Facts) -> str:
    width = max([facts.label_chars, *(len(label) for label, _ in facts.pairs)]) + _GAP_CHARS
    lines = []
    for label, value in facts.pairs:
        first, *others = textwrap.wrap(value, PAGE_CHARS - width, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [label.ljust(width) + first, *(" " * width + other for other in others)]
    return "\n".join(line.rstrip() for line in lines)


def _fitted_rows(block: Table) -> list[list[str]]:
    """Rows with their widest cells folded into several lines, until the table is as wide as a page."""
    columns = list(zip(block.headers, *block.rows, strict=True))
    widths = [max(map(len, cells)) for cells in columns]
    lowest = [max([len(header), *(len(word) for cell in cells for word in cell.split())]) for header, *cells in columns]
    while (excess := sum(widths) + _GAP_CHARS * (len(widths) - 1) - PAGE_CHARS) > 0:
        widest = max(range(len(widths)), key=lambda column: widths[column] - lowest[column])
        if widths[widest] == lowest[widest]:
            break
        widths[widest] = max(lowest[widest], widths[widest] - excess)
    lines = []
    for row in block.rows:
        cells = [textwrap.wrap(cell, width, break_on_hyphens=False) or [""] for cell, width in zip(row, widths, strict=True)]
        lines += [list(line) for line in zip_longest(*cells, fillvalue="")]
    return lines


def _command_text(block: Command) -> str:
    """One line, or lines that end with a backslash. A flag stays on the line of its value."""
    parts: list[str] = []
    for word in _WORD.findall(block.command):
        starts_part = not parts or word.startswith("-") or word == "&&" or " " in parts[-1]
        parts = [*parts, word] if starts_part else [*parts[:-1], f"{parts[-1]} {word}"]
    lines = [block.label + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) <= PAGE_CHARS - len(" \\"):
            lines[-1] += f" {part}"
        else:
            lines.append(_CONTINUATION + part)
    return " \\\n".join(lines)


def _block_html(block: Block) -> str:
    match block:
        case Facts():
            rows = (_row_html(pair, "ll", first="th") for pair in block.pairs)
            return f"<table>{''.join(rows)}</table>"
        case Table():
            return _table_html(block)
        case Paragraph():
            return f"<p>{html.escape(block.text)}</p>"
        case Command():
            return f"<p>{html.escape(block.label.strip())}</p><pre>{html.escape(block.command)}</pre>"


def _table_html(block: Table) -> str:
    title = f"<p>{html.escape(block.title)}</p>" if block.title else ""
    align = block.align or "l" + "r" * (len(block.headers) - 1)
    head = _row_html(block.headers, align, first="th", other="th")
    return f"{title}<table>{head}{''.join(_row_html(row, align) for row in block.rows)}</table>"


def _row_html(cells: Sequence[str], align: str, *, first: str = "td", other: str = "td") -> str:
    """A row whose cells are aligned as in the text; notebooks would align all to the right."""
    tags = [first, *[other] * (len(cells) - 1)]
    sides = ["right" if letter == "r" else "left" for letter in align]
    columns = zip(tags, sides, cells, strict=True)
    shown = (f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>' for tag, side, cell in columns)
    return f"<tr>{''.join(shown)}</tr>"
