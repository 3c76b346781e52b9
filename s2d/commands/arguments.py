"""What the flags of `s2d-run` and `s2d-train` take, and what is said of anything else."""

import argparse
import math

from s2d.prompts.special_tokens import SPECIAL_TOKENS

EXITS_HELP = (
    "layers after which the draft may answer, rising, e.g. 6,9,12 (default: those of its s2d.json, else its full depth)"
)


def positive(text: str) -> int:
    """A whole number from 1."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
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
    """A whole number that every generator takes."""
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return value


def layers(text: str) -> tuple[int, ...]:
    """Rising layer counts."""
    layers = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if not layers or len(layers) != len(text.split(",")) or list(layers) != sorted({*layers}) or layers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rising list of layer counts such as 6,9,12")
    return layers


def stop_string(text: str) -> str:
    """At least one character."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty, expected at least one character")
    return text


def add_special_tokens_flag(container: argparse._ActionsContainer) -> None:
    """How the text of special tokens in a prompt is read."""
    text = (
        "what the text of a special token in a prompt, such as </s>, stands for: parse, the token itself, as in most engines; "
        "text, ordinary text, so that no prompt and no user of a chat can end a turn; what a chat template adds is special in "
        "any case (default: parse)"
    )
    container.add_argument("--special-tokens", choices=SPECIAL_TOKENS, default="parse", help=text)
