"""Every error a person can meet, and the exit code it ends a command with.

S2DError                  1    our own fault, or the base of what follows
├── Interrupted         130    Ctrl-C while measuring or training: says what was kept
└── UserInputError        2    something given to us cannot be used
    ├── UnknownName            no such target, device, draft …: lists the near misses
    ├── BadFile                missing, truncated, of another schema, newer, or holding an unknown key
    ├── BadPolicy              exits, thresholds or stop rule that no draft could follow
    ├── Mismatch               made for another model, device or tokenizer
    ├── OutOfDomain            a shape the evidence does not cover
    ├── FasterThanLight        seconds that no device could have taken, measured or predicted
    ├── MissingExtra           an optional dependency that is not installed
    └── OutOfSpace             the disk is full

A message says what was wrong, what was expected and how to fix it. Context is added on the way up with `add_note`;
`console.run_command` prints the message and its notes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

_MAX_LISTED = 16


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
        aliases: further names that would have worked, not listed but offered as near misses.
        otherwise: another way to say what was meant, such as `give a config: --target path/to/config.json`.
    """

    def __init__(
        self, kind: str, given: str, known: Iterable[str], *, aliases: Iterable[str] = (), otherwise: str | None = None
    ) -> None:
        names = tuple(known)
        listed = ", ".join(names[:_MAX_LISTED])
        if len(names) > _MAX_LISTED:
            listed += f", … ({len(names)} in all)"
        near = near_misses(given, (*names, *aliases))
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        other = f" Or {otherwise}." if otherwise else ""
        super().__init__(f"unknown {kind} {given!r}: known are {listed or 'none'}.{hint}{other}")


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


class FasterThanLight(UserInputError):
    """Seconds shorter than bytes over bandwidth or FLOP over peak: an error of whoever measured or predicted them.

    Args:
        what: the pass and whose it is.
        given: its seconds, as text.
        least: what it takes at least and why, such as `reading 13.2 GB at 2.04 TB/s takes at least 6.48 ms`.
        fix: what to do now, a whole sentence without its full stop.
    """

    def __init__(self, what: str, *, given: str, least: str, fix: str) -> None:
        super().__init__(f"{what} takes {given}, which is faster than light: {least}. {fix}.")


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


def near_misses(given: str, known: Iterable[str]) -> tuple[str, ...]:
    """At most three known names that resemble the one given, best first; case is ignored."""
    import difflib

    by_folded = {name.casefold(): name for name in known}
    return tuple(by_folded[match] for match in difflib.get_close_matches(given.casefold(), by_folded, n=3, cutoff=0.6))
