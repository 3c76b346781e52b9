"""Options for reading a file whose format is ambiguous, and their two flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal, get_args

from perfmodel.core.errors import UserInputError

Form = Literal["auto", "lines", "file"]
Use = Literal["prompt", "text"]
"""The prefix of the flags: prompts are continued, texts are used for training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAs:
    """How to read a file.

    Raises:
        UserInputError: a column is given for plain text.
    """

    use: Use
    form: Form = "auto"
    """`auto` recognises the format by its content. `lines` and `file` read plain text, one text per line or file."""
    column: str | None = None
    """The key or column that holds the text; None finds it by name."""

    def __post_init__(self) -> None:
        if self.column is not None and self.form != "auto":
            raise UserInputError(
                f"{self.column_flag} {self.column!r} and {self.format_flag} {self.form}: expected one of them, as plain text "
                "has no columns. Leave one out."
            )

    @property
    def format_flag(self) -> str:
        """The flag that sets the form."""
        return f"--{self.use}-format"

    @property
    def column_flag(self) -> str:
        """The flag that sets the column."""
        return f"--{self.use}-column"

    @property
    def plain_form(self) -> Form:
        """The form of plain text. By default a prompt per line, or a training text per file."""
        if self.form != "auto":
            return self.form
        return "lines" if self.use == "prompt" else "file"


def add_read_flags(group: argparse._ActionsContainer, use: Use) -> None:
    """Add `--prompt-format` and `--prompt-column`, or those of training texts."""
    plain = "plain text has one prompt per line" if use == "prompt" else "plain text has one text per file"
    format_help = (
        f"auto recognises the format by the content; lines and file read plain text, one {use} per line or file (default: "
        f"auto; {plain})"
    )
    group.add_argument(f"--{use}-format", choices=get_args(Form), default="auto", help=format_help)
    column_help = "column of a CSV or TSV file, or key of JSON records, that holds the text (default: found by name)"
    group.add_argument(f"--{use}-column", metavar="NAME", help=column_help)


def read_as(args: argparse.Namespace, use: Use) -> ReadAs:
    """The options that the two flags give."""
    return ReadAs(use=use, form=getattr(args, f"{use}_format"), column=getattr(args, f"{use}_column"))
