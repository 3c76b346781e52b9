"""Which prompts of a file are used: those of a half, in an order in which the first few are a mixture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from perfmodel.acceptance.splits import Split, document_of, half_of
from perfmodel.core.errors import UserInputError
from s2d.prompts.conversation import Prompt


def choose_prompts(prompts: Sequence[Prompt], split: Split, most: int) -> list[Prompt]:
    """At most so many prompts of a half: of the least taken category, then of its least taken document, the next in the file.

    Raises:
        UserInputError: no prompt is in that half.
    """
    left = [prompt for prompt in prompts if split in ("all", half_of(prompt.name))]
    if not left:
        raise UserInputError(f"{_none_in(prompts, split)}, or --split all")
    categories: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    chosen: list[Prompt] = []
    while left and len(chosen) < most:
        prompt = min(left, key=lambda one: (categories[one.category], documents[document_of(one.name)]))
        left.remove(prompt)
        chosen.append(prompt)
        categories[prompt.category] += 1
        documents[document_of(prompt.name)] += 1
    return chosen


def calibration_half(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that plans and curves are fitted to.

    Raises:
        UserInputError: none is.
    """
    if not any(half_of(prompt.name) == "calibration" for prompt in prompts):
        raise UserInputError(f"{_none_in(prompts, 'calibration')}.")
    return choose_prompts(prompts, "calibration", len(prompts))


def _none_in(prompts: Sequence[Prompt], half: Split) -> str:
    return f"none of the {len(prompts)} prompts is in the {half} half (it is chosen by prompt name): give more prompts"
