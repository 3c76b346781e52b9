"""The choice of prompts from a file."""

from collections import Counter

import pytest

from perfmodel.acceptance.splits import SPLITS, Split, document_name
from perfmodel.core.errors import UserInputError
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Prompt


def prompt(number: int, category: str = "a") -> Prompt:
    return Prompt(name=f"file-{number}.py:{number}", category=category, text="text")


def test_the_halves_partition_the_prompts() -> None:
    prompts = [prompt(number) for number in range(60)]
    halves = [choose_prompts(prompts, half, 100) for half in ("calibration", "evaluation")]
    names = [{prompt.name for prompt in half} for half in halves]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {prompt.name for prompt in prompts}
    assert min(map(len, names)) > 15


def test_a_few_prompts_cover_the_categories_in_turn() -> None:
    prompts = [prompt(number, "aaabbbccc"[number]) for number in range(9)]
    assert [prompt.category for prompt in choose_prompts(prompts, "all", 4)] == ["a", "b", "c", "a"]


def test_the_next_prompt_is_from_the_least_used_category_then_the_least_used_document() -> None:
    names = {"one.py:1": "a", "one.py:2": "b", "one.py:3": "a", "two.py:1": "a", "two.py:2": "b", "three.py:1": "b"}
    prompts = [Prompt(name=name, category=category, text="text") for name, category in names.items()]
    chosen = [prompt.name for prompt in choose_prompts(prompts, "all", 6)]
    assert chosen == ["one.py:1", "two.py:2", "three.py:1", "one.py:3", "two.py:1", "one.py:2"]


@pytest.mark.parametrize("split", SPLITS)
def test_a_few_family_prompts_are_balanced_over_categories_and_from_different_documents(split: Split) -> None:
    prompts = read_prompts(FAMILY_PROMPTS)
    for number in (5, 8, 12):
        assert len({document_name(prompt.name) for prompt in choose_prompts(prompts, split, number)}) == number
    for number in (8, 24, 50):
        counts = Counter(prompt.category for prompt in choose_prompts(prompts, split, number))
        assert len(counts) == 5
        assert max(counts.values()) - min(counts.values()) <= 1


def test_twenty_four_family_prompts_cover_every_document_of_their_half() -> None:
    prompts = read_prompts(FAMILY_PROMPTS)
    for half in ("calibration", "evaluation"):
        few, whole = ({document_name(prompt.name) for prompt in choose_prompts(prompts, half, number)} for number in (24, 1000))
        assert few == whole


def test_an_empty_half_is_refused() -> None:
    single = [prompt(1)]
    empty = "evaluation" if choose_prompts(single, "all", 1) and _is_calibration(single) else "calibration"
    with pytest.raises(UserInputError, match=f"none of the 1 prompts is in the {empty} half"):
        choose_prompts(single, empty, 1)


def _is_calibration(prompts: list[Prompt]) -> bool:
    try:
        return bool(choose_prompts(prompts, "calibration", 1))
    except UserInputError:
        return False
