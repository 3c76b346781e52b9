"""Split prompts into two halves by document: one to fit a plan, one to test it."""

import hashlib
from typing import Literal

Half = Literal["calibration", "evaluation"]
HALVES: tuple[Half, ...] = ("calibration", "evaluation")
Split = Literal["calibration", "evaluation", "all"]
SPLITS: tuple[Split, ...] = ("calibration", "evaluation", "all")


def document_name(prompt_name: str) -> str:
    """The document a prompt was cut from: `path` of `path:line`, otherwise the prompt's own name."""
    return prompt_name.rpartition(":")[0] or prompt_name


def prompt_half(prompt_name: str) -> Half:
    """The half of a prompt, from a hash of its document's name. Prompts of one document are in the same half."""
    first_byte = hashlib.sha256(document_name(prompt_name).encode()).digest()[0]
    return "calibration" if first_byte % 2 == 0 else "evaluation"
