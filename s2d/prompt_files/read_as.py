"""How a person wants a file to be read where its content leaves that open: the two flags, and what they ask for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal, get_args

from perfmodel.core.errors import UserInputError

Form = Literal["auto", "lines", "file"]
Use = Literal["prompt", "text"]
"""What the flags begin with: prompts are gone on from, texts are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAs:
    """How to read a file.

    Raises:
        UserInputError: a column of a file that is to be read as plain text.
    """

    use: Use
    form: Form = "auto"
    """Recognised by its content; or plain text whatever it looks like, of one text a line or a file."""
    column: str | None = None
    """Key or column that holds the text; None to find it."""

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
        """How plain text is read: as a prompt a line, as a training text a file, unless the form says otherwise."""
        if self.form != "auto":
            return self.form
        return "lines" if self.use == "prompt" else "file"


def add_read_flags(group: argparse._ActionsContainer, use: Use) -> None:
    """Add `--prompt-format` and `--prompt-column`, or those of training texts."""
    plain = "plain text is a prompt a line" if use == "prompt" else "plain text is one text a file"
    format_help = (
        f"recognise files by their content, or take them as plain text, a {use} a line or file (default: auto; {plain})"
    )
    group.add_argument(f"--{use}-format", choices=get_args(Form), default="auto", help=format_help)
    column_help = "column of a CSV or TSV file, or key of JSON records, that holds the text (default: found by its name)"
    group.add_argument(f"--{use}-column", metavar="NAME", help=column_help)


def read_as(args: argparse.Namespace, use: Use) -> ReadAs:
    """What the two flags ask for."""
    return ReadAs(use=use, form=getattr(args, f"{use}_format"), column=getattr(args, f"{use}_column"))
