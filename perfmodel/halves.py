"""Two halves of any set of prompts, so that no plan is judged on what it was fitted to."""

import hashlib
from typing import Literal

Half = Literal["calibration", "evaluation"]
Split = Literal["calibration", "evaluation", "all"]
SPLITS: tuple[Split, ...] = ("calibration", "evaluation", "all")


def half_of(prompt_name: str) -> Half:
    """The half a prompt belongs to, whatever file or order it comes in.

    Prompts cut from one document (`path:line`) stay together.
    """
    document = prompt_name.rpartition(":")[0] or prompt_name
    first_byte = hashlib.sha256(document.encode()).digest()[0]
    return "calibration" if first_byte % 2 == 0 else "evaluation"
