"""Every error a person can meet, and the exit code it ends a command with.

S2DError                  1    our own fault, or the base of what follows
├── Interrupted         130    Ctrl-C while measuring or training: says what was kept
└── UserInputError        2    something given to us cannot be used
    ├── UnknownName            no such target, device, draft …: lists the near misses
    ├── BadFile                missing, truncated, of another schema, newer, or holding an unknown key
    ├── BadPolicy              exits, thresholds or stop rule that no draft could follow
    ├── Mismatch               made for another model, device or tokenizer
    ├── OutOfDomain            a shape the evidence does not cover
    ├── BelowLowerBound        a time below what the hardware can reach, measured or predicted
    ├── MissingExtra           an optional dependency that is not installed
    └── OutOfSpace             the disk is full

A message says what was wrong, what was expected and how to fix it. Context is added on the way up with `add_note`;
`console.run_command` prints the message and its notes.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterable, Mapping

from perfmodel.core.near_names import near_models, near_words

_MAX_LISTED = 8
MAX_SHOWN_CHARS = 80
_MAX_TEXT_CHARS = 160
_MODEL_KINDS = ("target", "draft", "model", "architecture")
"""Kinds whose names have a family and a size."""
_BOUNDED = reprlib.Repr()
"""A value of a file may have megabytes: its repr is made only up to these lengths."""
_BOUNDED.maxstring = _BOUNDED.maxother = _BOUNDED.maxlong = MAX_SHOWN_CHARS
_BOUNDED.maxlevel = 3


class S2DError(Exception):
    """The base of every error we raise on purpose."""

    exit_code = 1


class Interrupted(S2DError):
    """Ctrl-C during long work whose partial result was saved.

    Args:
        kept: the file that holds what was measured so far, or None when there was nothing to keep.
    """

    exit_code = 130

    def __init__(self, kept: str | os.PathLike[str] | None) -> None:
        message = "interrupted: nothing was kept"
        if kept is not None:
            message = f"interrupted: what was measured so far is kept in {os.fspath(kept)!r}"
        super().__init__(message)


class UserInputError(S2DError):
    """Something given to us cannot be used; the message says what, what was expected and how to fix it."""

    exit_code = 2


class UnknownName(UserInputError):
    """A name that is in no table of ours.

    Args:
        kind: what the name should be: `target`, `device` …
        given: what was written.
        known: the names that would have worked.
        aliases: further names that would have worked, and the known name that each stands for.
        listed_in: where a reader finds all known names, such as `docs/models.md`.
        otherwise: another way to say what was meant, such as `give a config: --target path/to/config.json`.
    """

    def __init__(
        self,
        kind: str,
        given: str,
        known: Iterable[str],
        *,
        aliases: Mapping[str, str] | None = None,
        listed_in: str | None = None,
        otherwise: str | None = None,
    ) -> None:
        names = list(known)
        near = _near(kind, given, names, aliases or {})
        hint = f"did you mean {_either(near)}?" if near else ""
        other = f" Or {otherwise}." if otherwise else ""
        super().__init__(f"unknown {kind} {quoted(given)}: {_sentences(hint, _listed(names, listed_in))}{other}")


class BadFile(UserInputError):
    """A file that cannot be read or written.

    Args:
        path: the file, as it was given.
        problem: what is wrong and what was expected.
        fix: what to do now, a whole sentence without its full stop.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, fix: str) -> None:
        super().__init__(f"{os.fspath(path)!r}: {problem}. {fix}.")


class BadPolicy(UserInputError):
    """An exit policy that contradicts itself or its draft.

    Args:
        problem: the field and its value, such as `threshold 1.5 of exit 6`.
        expected: what would have been right, such as `a number from 0 to 1`.
    """

    def __init__(self, problem: str, expected: str) -> None:
        super().__init__(f"bad policy: {problem}: expected {expected}.")


class Mismatch(UserInputError):
    """Two things that do not belong together.

    Args:
        what: the thing made for one case and used in another, such as `plan 'a.json'`.
        made_for: what it was made for, such as `target llama-2-70b`.
        given: what it met instead, such as `target llama-2-7b`.
        fix: what to do now, a whole sentence without its full stop.
    """

    def __init__(self, what: str, *, made_for: str, given: str, fix: str) -> None:
        super().__init__(f"{what} was made for {made_for}, not for {given}. {fix}.")


class OutOfDomain(UserInputError):
    """A shape that the evidence does not cover, and on which we will not guess.

    Args:
        quantity: its name with its unit, such as `context_tokens`.
        given: the value asked for.
        low: the smallest value covered.
        high: the largest value covered.
        fix: what to do now, a whole sentence without its full stop.
        as_text: puts the three values in words, with their unit where `quantity` names none.
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
        fix: what to do now, a whole sentence without its full stop.
    """

    def __init__(self, subject: str, *, given: str, bound: str, reason: str, fix: str) -> None:
        super().__init__(f"{subject} takes {given}, below the hardware lower bound of {bound}: {reason}. {fix}.")


class MissingExtra(UserInputError):
    """An optional dependency that is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: pip install 's2d[{extra}]'")


class OutOfSpace(UserInputError):
    """The disk is full; whatever was at the path before is untouched."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(
            f"no space left to write {os.fspath(path)!r}: nothing was written and what was there is untouched. "
            "Free some space, or give another place with -o."
        )


def quoted(value: object) -> str:
    """A value from a file or a flag as a message quotes it: escaped, as JSON writes constants, and cut to a readable length."""
    text = _BOUNDED.repr(value)
    return truncated({"None": "null", "True": "true", "False": "false"}.get(text, text), MAX_SHOWN_CHARS)


def truncated(text: str, max_chars: int) -> str:
    """A text cut to so many characters, the last of them an ellipsis where any are missing."""
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def one_line(err: Exception) -> str:
    """The message of a library's error, on one line and cut to a readable length."""
    return truncated(" ".join(str(err).split()), _MAX_TEXT_CHARS)


def _near(kind: str, given: str, names: list[str], aliases: Mapping[str, str]) -> list[str]:
    """Known names that are close in meaning to the one given, each once."""
    if kind in _MODEL_KINDS:
        return list(near_models(given, names))
    near = near_words(given, [*names, *aliases])
    return list(dict.fromkeys(aliases.get(name, name) for name in near))


def _either(names: list[str]) -> str:
    """`'a'`, `'a' or 'b'`, `'a', 'b' or 'c'`."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def _listed(names: list[str], listed_in: str | None) -> str:
    """All known names where they are few, else where they stand."""
    if len(names) <= _MAX_LISTED:
        return f"known are {', '.join(names) or 'none'}."
    if listed_in:
        return f"{listed_in} lists all {len(names)}."
    return f"known are {', '.join(names[:_MAX_LISTED])} and {len(names) - _MAX_LISTED} more."


def _sentences(hint: str, listed: str) -> str:
    """The hint and the list, each a sentence after the first."""
    return f"{hint} {listed[0].upper()}{listed[1:]}" if hint and not listed.startswith("docs/") else f"{hint} {listed}".strip()
