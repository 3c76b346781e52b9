"""Every error message states what was wrong, what was expected and how to fix it."""

import pytest

from perfmodel.core import errors
from perfmodel.core.errors import (
    BadFile,
    BadPolicy,
    BelowLowerBound,
    Interrupted,
    Mismatch,
    MissingExtra,
    OutOfDomain,
    OutOfSpace,
    S2DError,
    UnknownName,
    UserInputError,
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            UnknownName(
                "target",
                "llama-7b0",
                ["llama-2-7b", "opt-7b"],
                listed_in="docs/reference/models.md",
                otherwise="give a config: --target path/to/config.json",
            ),
            "unknown target 'llama-7b0': did you mean 'llama-2-7b'? docs/reference/models.md lists all 2. "
            "Or give a config: --target path/to/config.json.",
        ),
        (
            UnknownName("device", "TPU", ["a100", "h100"], listed_in="docs/reference/hardware.md"),
            "unknown device 'TPU': expected 'a100' or 'h100'.",
        ),
        (
            UnknownName(
                "device",
                "H-100",
                ["a100-sxm", "h100-sxm"],
                listed_in="docs/reference/hardware.md",
                aliases={"h100": "h100-sxm"},
            ),
            "unknown device 'H-100': did you mean 'h100-sxm'? docs/reference/hardware.md lists all 2.",
        ),
        (UnknownName("draft", "x", [], listed_in="docs/reference/models.md"), "unknown draft 'x': no name is known."),
        (
            UnknownName("target", "q", (f"m{i}" for i in range(20)), listed_in="docs/reference/models.md"),
            "unknown target 'q': docs/reference/models.md lists all 20.",
        ),
        (
            UnknownName("target", "llama-8b", (f"llama-{i}b" for i in range(1, 20)), listed_in="docs/reference/models.md"),
            "unknown target 'llama-8b': did you mean 'llama-8b', 'llama-9b' or 'llama-7b'? "
            "docs/reference/models.md lists all 19.",
        ),
        (
            UnknownName("target", "a\x1b[2J", ["b"], listed_in="docs/reference/models.md"),
            "unknown target 'a\\x1b[2J': expected 'b'.",
        ),
        (BadFile("a.json", "the file is empty", "Make it again"), "'a.json': the file is empty. Make it again."),
        (
            BadPolicy("threshold 1.5 of exit 6", "a number from 0 to 1"),
            "bad policy: threshold 1.5 of exit 6: expected a number from 0 to 1.",
        ),
        (
            Mismatch("plan 'a.json'", made_for="target big", given="target small", fix="Plan again with --target small"),
            "plan 'a.json' was made for target big, not for target small. Plan again with --target small.",
        ),
        (
            OutOfDomain("context_tokens", 65536, low=1, high=4096, fix="Profile longer contexts"),
            "context_tokens = 65536 is outside the evidence, which covers 1 to 4096. Profile longer contexts.",
        ),
        (
            BelowLowerBound(
                "a verify pass",
                given="3.00 ms",
                bound="6.48 ms",
                reason="reading 13.2 GB at 2.04 TB/s",
                fix="Profile again",
            ),
            "a verify pass takes 3.00 ms, below the hardware lower bound of 6.48 ms: reading 13.2 GB at 2.04 TB/s. "
            "Profile again.",
        ),
        (MissingExtra("torch", "run"), "this needs torch, which is not installed: pip install 's2d[run]'"),
        (
            OutOfSpace("a.json"),
            "no space left to write 'a.json': nothing was written, and the old file is unchanged. "
            "Free some space, or give another path with -o.",
        ),
        (Interrupted("a.json"), "interrupted: the partial result is in 'a.json'. Repeat the command to continue."),
        (Interrupted(None), "interrupted: there is no partial result."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_message_states_what_was_wrong_what_was_expected_and_how_to_fix_it(error: S2DError, message: str) -> None:
    assert str(error) == message


def test_the_tree_in_the_docstring_shows_every_class_and_exit_code() -> None:
    drawn = [line.lstrip("│├└─ ").split()[:2] for line in (errors.__doc__ or "").splitlines()]
    codes = {line[0]: int(line[1]) for line in drawn if len(line) == 2 and line[1].isdigit()}
    assert codes == {cls.__name__: cls.exit_code for cls in (S2DError, Interrupted, UserInputError)}
    leaves = [cls.__name__ for cls in UserInputError.__subclasses__() if cls.__module__ == errors.__name__]
    assert [line[0] for line in drawn if line and line[0] in leaves] == leaves
