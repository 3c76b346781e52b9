"""Which prompts are measured on: one half of them, so that no plan is judged on what it was fitted to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from perfmodel.errors import UserInputError
from perfmodel.halves import Split, half_of
from s2d.corpus import Prompt


def chosen_prompts(prompts: Sequence[Prompt], split: Split, most: int) -> list[Prompt]:
    """The first prompts of a half, categories taking turns, so that a few of them are a mixture too.

    Raises:
        UserInputError: no prompt is in that half.
    """
    kept = [prompt for prompt in prompts if split in ("all", half_of(prompt.name))]
    if not kept:
        raise UserInputError(f"none of the {len(prompts)} prompts is in the {split} half: give more prompts, or --split all")
    seen: Counter[str] = Counter()
    turns = []
    for place, prompt in enumerate(kept):
        turns.append((seen[prompt.category], place))
        seen[prompt.category] += 1
    return [kept[place] for _, place in sorted(turns)[:most]]
