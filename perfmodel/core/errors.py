"""Every error that a user can meet, and the exit code with which it ends a command.

S2DError                  1    a fault of this project, or the base of the errors below
├── Interrupted         130    Ctrl-C while measuring or training: names the file of the partial result
└── UserInputError        2    an input that cannot be used
    ├── UnknownName            no such target, device, draft …: names the three nearest
    ├── BadFile                missing, truncated, of another schema or version, or with an unknown key
    ├── BadValue               a value passed from Python: also a ValueError
    ├── BadPolicy              exits, thresholds or a stop rule that no draft can follow
    ├── Mismatch               made for another model, device or tokenizer
    ├── OutOfDomain            a shape that the evidence does not cover
    ├── BelowLowerBound        a time that no device can reach, measured or predicted
    ├── MissingExtra           an optional dependency that is not installed
    ├── EngineFailure          an engine that does not start, fails or ends: with the last lines of its log
    └── OutOfSpace             the disk is full

A message states what was wrong, what was expected and how to fix it, in this order. Callers add context with `add_note`.
`console.run_command` prints the message and its notes.
"""

from __future__ import annotations

import functools
import os
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ParamSpec, TypeVar

from perfmodel.core.near_names import near_models, near_words

MAX_LISTED_NAMES = 5
"""A message never prints more known names than this."""
MAX_QUOTED_CHARS = 80
_MAX_LINE_CHARS = 160
_MODEL_KINDS = ("target", "draft", "model", "architecture")
"""Kinds of names that consist of a family and a size."""
_BOUNDED_REPR = reprlib.Repr()
"""A value from a file may be megabytes long. This repr stops at the lengths below."""
_BOUNDED_REPR.maxstring = _BOUNDED_REPR.maxother = _BOUNDED_REPR.maxlong = MAX_QUOTED_CHARS
_BOUNDED_REPR.maxlevel = 3
_COMMAND_OR_FLAG = re.compile(r"(?:s2d-[a-z]+|torchrun) (?:(?![.,;:)](?:\s|$)).)*|(?<![\w-])--([a-z][a-z-]*[a-z])")
"""A command up to the next punctuation mark, or a flag outside a command, whose name is the group."""
_ARGUMENTS = {
    "budget": "budget_s",
    "off-path": "num_mistakes",
    "profile": "profiles",
    "teacher": "teachers",
    "tokens": "num_tokens",
}
"""Arguments of Python functions whose names are not those of their flags."""

P = ParamSpec("P")
R = TypeVar("R")


class S2DError(Exception):
    """Base of the errors that this project raises on purpose."""

    exit_code = 1


class Interrupted(S2DError):
    """Ctrl-C during long work.

    Args:
        kept: the file of the partial result; None if there is none.
    """

    exit_code = 130

    def __init__(self, kept: str | os.PathLike[str] | None) -> None:
        if kept is None:
            super().__init__("interrupted: there is no partial result.")
        else:
            super().__init__(f"interrupted: the partial result is in {os.fspath(kept)!r}. Repeat the command to continue.")


class UserInputError(S2DError):
    """An input that cannot be used."""

    exit_code = 2


class UnknownName(UserInputError):
    """A name that is in none of our tables.

    The message prints the nearest names, at most three. If no name is near, it prints all names, or where they are listed if
    there are many.

    Args:
        kind: what the name should be: `target`, `device` …
        given: the name as the user wrote it.
        known: the accepted names.
        listed_in: where all accepted names are listed, such as `docs/reference/models.md` or `s2d-run --help`.
        aliases: further accepted names, each with its known name.
        otherwise: another way to give the object, such as `give a config: --target path/to/config.json`.
    """

    def __init__(
        self,
        kind: str,
        given: str,
        known: Iterable[str],
        *,
        listed_in: str,
        aliases: Mapping[str, str] | None = None,
        otherwise: str | None = None,
    ) -> None:
        names = list(known)
        hint = names_hint(names, _near_names(kind, given, names, aliases or {}), listed_in)
        alternative = f" Or {otherwise}." if otherwise else ""
        super().__init__(f"unknown {kind} {quoted(given)}: {hint}{alternative}")


class BadFile(UserInputError):
    """A file that cannot be read or written.

    Args:
        path: the file, as the user wrote it.
        problem: what is wrong and what was expected.
        fix: how to fix it, a whole sentence without its full stop.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, fix: str) -> None:
        super().__init__(f"{os.fspath(path)!r}: {problem}. {fix}.")


class BadValue(UserInputError, ValueError):
    """A value from Python that is out of range or of the wrong shape or type."""


class BadPolicy(UserInputError):
    """An exit policy that contradicts itself or its draft.

    Args:
        problem: the field and its value, such as `threshold 1.5 of exit 6`.
        expected: a right value, such as `a number from 0 to 1`.
    """

    def __init__(self, problem: str, expected: str) -> None:
        super().__init__(f"bad policy: {problem}: expected {expected}.")


class Mismatch(UserInputError):
    """Two inputs that do not belong together.

    Args:
        what: the input that was made for another case, such as `plan 'a.json'`.
        made_for: that case, such as `target llama-2-70b`.
        given: the present case, such as `target llama-2-7b`.
        fix: how to fix it, a whole sentence without its full stop.
    """

    def __init__(self, what: str, *, made_for: str, given: str, fix: str) -> None:
        super().__init__(f"{what} was made for {made_for}, not for {given}. {fix}.")


class OutOfDomain(UserInputError):
    """A shape that the evidence does not cover.

    Args:
        quantity: its name with its unit, such as `context_tokens`.
        given: the requested value.
        low: the smallest covered value.
        high: the largest covered value.
        fix: how to fix it, a whole sentence without its full stop.
        as_text: formats the three values, with their unit if `quantity` has none.
    """

    def __init__(
        self,
        quantity: str,
        given: float,
        *,
        low: float,
        high: float,
        fix: str,
        as_text: Callable[[float], str] = repr,
    ) -> None:
        given_text, low_text, high_text = map(as_text, (given, low, high))
        super().__init__(f"{quantity} = {given_text} is outside the evidence, which covers {low_text} to {high_text}. {fix}.")


class BelowLowerBound(UserInputError):
    """A time below bytes over bandwidth or FLOP over peak: the measurement or the prediction is wrong.

    Args:
        subject: the pass, and the source of its seconds.
        given: its seconds, as text.
        bound: the lower bound, as text.
        reason: what takes so long, such as `reading 13.2 GB at 2.04 TB/s`.
        fix: how to fix it, a whole sentence without its full stop.
    """

    def __init__(self, subject: str, *, given: str, bound: str, reason: str, fix: str) -> None:
        super().__init__(f"{subject} takes {given}, below the hardware lower bound of {bound}: {reason}. {fix}.")


class MissingExtra(UserInputError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: pip install 's2d[{extra}]'")


class EngineFailure(UserInputError):
    """An engine that does not start, cannot do what it was asked, or ends.

    Args:
        engine: its name in the table of engines.
        problem: what happened, such as `it ended with exit code 1`.
        log: the file with its output.
        last_lines: the end of that file.
    """

    def __init__(self, engine: str, problem: str, *, log: str | os.PathLike[str], last_lines: str) -> None:
        ending = f", which ends with:\n{last_lines}" if last_lines else "."
        super().__init__(f"engine {engine!r}: {problem}, expected an answer. Read its log {os.fspath(log)!r}{ending}")


class OutOfSpace(UserInputError):
    """The disk is full. A file that was at the path before is unchanged."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(
            f"no space left to write {os.fspath(path)!r}: nothing was written, and the old file is unchanged. "
            "Free some space, or give another path with -o."
        )


def in_python_words(message: str) -> str:
    """A message with the names of arguments instead of flags. Commands in it stay as they are."""
    return _COMMAND_OR_FLAG.sub(lambda match: _argument(match[1]) if match[1] else match[0], message)


def with_python_errors(function: Callable[P, R]) -> Callable[P, R]:
    """The function for callers in Python: its messages name arguments, not the flags of a command."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserInputError as err:
            err.args = (in_python_words(str(err)), *err.args[1:])
            raise

    return call


def _argument(flag: str) -> str:
    return _ARGUMENTS.get(flag, flag.replace("-", "_"))


def quoted(value: object) -> str:
    """A value from a file or a flag for a message: escaped, constants as in JSON, truncated to a readable length."""
    text = _BOUNDED_REPR.repr(value)
    return truncated({"None": "null", "True": "true", "False": "false"}.get(text, text), MAX_QUOTED_CHARS)


def truncated(text: str, max_chars: int) -> str:
    """The text with at most this many characters. A shortened text ends with an ellipsis."""
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def one_line(err: Exception) -> str:
    """The message of a library's error on one line, truncated to a readable length."""
    return truncated(" ".join(str(err).split()), _MAX_LINE_CHARS)


def names_hint(names: Collection[str], near_names: Collection[str], listed_in: str) -> str:
    """What to write instead of an unknown name: the nearest names, or all names, or where they are listed."""
    if near_names:
        return f"did you mean {_alternatives(near_names)}? {listed_in} lists all {len(names)}."
    if len(names) > MAX_LISTED_NAMES:
        return f"{listed_in} lists all {len(names)}."
    return f"expected {_alternatives(names)}." if names else "no name is known."


def _near_names(kind: str, given: str, names: list[str], aliases: Mapping[str, str]) -> list[str]:
    """Known names that are close in meaning to the given one, each once."""
    if kind in _MODEL_KINDS:
        return list(near_models(given, names))
    near = near_words(given, [*names, *aliases])
    return list(dict.fromkeys(aliases.get(name, name) for name in near))


def _alternatives(names: Collection[str]) -> str:
    """`'a'`, `'a' or 'b'`, `'a', 'b' or 'c'`."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last
