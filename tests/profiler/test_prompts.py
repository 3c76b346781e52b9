"""Which prompts are chosen."""

import pytest

from perfmodel.errors import UserInputError
from profiler.prompts import chosen_prompts
from s2d.corpus import Prompt


def prompt(number: int, category: str = "a") -> Prompt:
    return Prompt(name=f"file-{number}.py:{number}", category=category, text="text")


def test_the_halves_share_no_prompt_and_together_are_all() -> None:
    prompts = [prompt(number) for number in range(60)]
    halves = [chosen_prompts(prompts, half, 100) for half in ("calibration", "evaluation")]
    names = [{one.name for one in half} for half in halves]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {one.name for one in prompts}
    assert min(map(len, names)) > 15


def test_a_few_prompts_take_turns_through_the_categories() -> None:
    prompts = [prompt(number, "aaabbbccc"[number]) for number in range(9)]
    assert [one.category for one in chosen_prompts(prompts, "all", 4)] == ["a", "b", "c", "a"]


def test_an_empty_half_says_so() -> None:
    one = [prompt(1)]
    empty = "evaluation" if chosen_prompts(one, "all", 1) and _is_calibration(one) else "calibration"
    with pytest.raises(UserInputError, match=f"none of the 1 prompts is in the {empty} half"):
        chosen_prompts(one, empty, 1)


def _is_calibration(prompts: list[Prompt]) -> bool:
    try:
        return bool(chosen_prompts(prompts, "calibration", 1))
    except UserInputError:
        return False
