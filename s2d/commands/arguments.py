"""Argument types, and flags shared by several commands."""

import argparse
import math

from s2d.prompts.special_tokens import SPECIAL_TOKENS

EXITS_HELP = (
    "layers after which the draft may answer, rising, e.g. 6,9,12 (default: those in its s2d.json, else its full depth)"
)


def positive(text: str) -> int:
    """A whole number, at least 1."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def frac(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def rate(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def seed(text: str) -> int:
    """A seed that every random generator accepts."""
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return value


def layers(text: str) -> tuple[int, ...]:
    """Rising layer counts."""
    return _rising(text, "layer counts such as 6,9,12")


def draft_lengths(text: str) -> tuple[int, ...]:
    """Rising draft lengths."""
    return _rising(text, "draft lengths such as 2,5,8")


def _rising(text: str, expected: str) -> tuple[int, ...]:
    """Rising whole numbers, the first at least 1."""
    numbers = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if not numbers or len(numbers) != len(text.split(",")) or list(numbers) != sorted({*numbers}) or numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rising list of {expected}")
    return numbers


def stop_string(text: str) -> str:
    """A text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("the text is empty: expected at least one character")
    return text


def add_special_tokens_flag(container: argparse._ActionsContainer) -> None:
    """Add `--special-tokens`."""
    text = (
        "how to read the text of a special token in a prompt, such as </s>. parse: as the token, as most engines do. text: as "
        "ordinary text, so that a prompt cannot end a turn of a chat. The tokens of a chat template are always special "
        "(default: parse)"
    )
    container.add_argument("--special-tokens", choices=SPECIAL_TOKENS, default="parse", help=text)
