"""Which prompts are chosen."""

from collections import Counter

import pytest

from perfmodel.acceptance.splits import SPLITS, Split, document_of
from perfmodel.core.errors import UserInputError
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Prompt


def prompt(number: int, category: str = "a") -> Prompt:
    return Prompt(name=f"file-{number}.py:{number}", category=category, text="text")


def test_the_halves_share_no_prompt_and_together_are_all() -> None:
    prompts = [prompt(number) for number in range(60)]
    halves = [choose_prompts(prompts, half, 100) for half in ("calibration", "evaluation")]
    names = [{one.name for one in half} for half in halves]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {one.name for one in prompts}
    assert min(map(len, names)) > 15


def test_a_few_prompts_take_turns_through_the_categories() -> None:
    prompts = [prompt(number, "aaabbbccc"[number]) for number in range(9)]
    assert [one.category for one in choose_prompts(prompts, "all", 4)] == ["a", "b", "c", "a"]


def test_next_is_the_least_taken_category_then_the_least_taken_document_then_the_first_in_the_file() -> None:
    names = {"one.py:1": "a", "one.py:2": "b", "one.py:3": "a", "two.py:1": "a", "two.py:2": "b", "three.py:1": "b"}
    prompts = [Prompt(name=name, category=category, text="text") for name, category in names.items()]
    found = [one.name for one in choose_prompts(prompts, "all", 6)]
    assert found == ["one.py:1", "two.py:2", "three.py:1", "one.py:3", "two.py:1", "one.py:2"]


@pytest.mark.parametrize("split", SPLITS)
def test_a_few_of_the_familys_prompts_are_of_as_many_documents_and_of_all_categories_alike(split: Split) -> None:
    prompts = read_prompts(FAMILY_PROMPTS)
    for number in (5, 8, 12):
        assert len({document_of(one.name) for one in choose_prompts(prompts, split, number)}) == number
    for number in (8, 24, 50):
        counts = Counter(one.category for one in choose_prompts(prompts, split, number))
        assert len(counts) == 5
        assert max(counts.values()) - min(counts.values()) <= 1


def test_twenty_four_of_the_familys_prompts_miss_no_document_of_their_half() -> None:
    prompts = read_prompts(FAMILY_PROMPTS)
    for half in ("calibration", "evaluation"):
        few, whole = ({document_of(one.name) for one in choose_prompts(prompts, half, number)} for number in (24, 1000))
        assert few == whole


def test_an_empty_half_says_so() -> None:
    one = [prompt(1)]
    empty = "evaluation" if choose_prompts(one, "all", 1) and _is_calibration(one) else "calibration"
    with pytest.raises(UserInputError, match=f"none of the 1 prompts is in the {empty} half"):
        choose_prompts(one, empty, 1)


def _is_calibration(prompts: list[Prompt]) -> bool:
    try:
        return bool(choose_prompts(prompts, "calibration", 1))
    except UserInputError:
        return False
