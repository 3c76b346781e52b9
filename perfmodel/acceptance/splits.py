"""Two halves of any set of prompts, so that no plan is judged on what it was fitted to."""

import hashlib
from typing import Literal

Half = Literal["calibration", "evaluation"]
HALVES: tuple[Half, ...] = ("calibration", "evaluation")
Split = Literal["calibration", "evaluation", "all"]
SPLITS: tuple[Split, ...] = ("calibration", "evaluation", "all")


def document_of(prompt_name: str) -> str:
    """What a prompt was cut from: `path` of `path:line`, otherwise the prompt itself."""
    return prompt_name.rpartition(":")[0] or prompt_name


def half_of(prompt_name: str) -> Half:
    """The half a prompt belongs to, whatever file or order it comes in. Prompts of one document stay together."""
    first_byte = hashlib.sha256(document_of(prompt_name).encode()).digest()[0]
    return "calibration" if first_byte % 2 == 0 else "evaluation"
