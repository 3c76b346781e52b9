"""Choose prompts from one half of a file, balanced over categories and documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from perfmodel.acceptance.splits import Split, document_name, prompt_half
from perfmodel.core.errors import UserInputError
from s2d.prompts.conversation import Prompt


def choose_prompts(prompts: Sequence[Prompt], split: Split, limit: int) -> list[Prompt]:
    """Up to `limit` prompts of a half. Each comes from the category used least so far, and in it from the document used least.

    Raises:
        UserInputError: the half is empty.
    """
    remaining = [prompt for prompt in prompts if split in ("all", prompt_half(prompt.name))]
    if not remaining:
        raise UserInputError(f"{_none_in(prompts, split)}, or --split all")
    categories: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    chosen: list[Prompt] = []
    while remaining and len(chosen) < limit:
        prompt = min(remaining, key=lambda prompt: (categories[prompt.category], documents[document_name(prompt.name)]))
        remaining.remove(prompt)
        chosen.append(prompt)
        categories[prompt.category] += 1
        documents[document_name(prompt.name)] += 1
    return chosen


def calibration_half(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts to which plans and confidence curves are fitted.

    Raises:
        UserInputError: the half is empty.
    """
    if not any(prompt_half(prompt.name) == "calibration" for prompt in prompts):
        raise UserInputError(f"{_none_in(prompts, 'calibration')}.")
    return choose_prompts(prompts, "calibration", len(prompts))


def _none_in(prompts: Sequence[Prompt], half: Split) -> str:
    return f"none of the {len(prompts)} prompts is in the {half} half, which is decided by prompt name: give more prompts"
