"""Names that a file does not give are made: unique, the same every time, and spread over both halves."""

import json
from collections import Counter
from pathlib import Path

import pytest

from perfmodel.acceptance.splits import document_of, half_of
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import calibration_half
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Prompt


def names(tmp_path: Path, records: list[dict]) -> list[str]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return [prompt.name for prompt in read_prompts(path)]


def test_the_first_key_that_names_a_record_names_its_prompt(tmp_path: Path) -> None:
    keys = {"name": "n:1", "question_id": 2, "task_id": "t/3", "custom_id": "c:4", "id": 5.5}
    expected = ["n:1", "2", "t/3", "c/4", "5.5", "6"]
    found = []
    while True:
        found.append(keys | {"text": "a"})
        if not keys:
            break
        keys = dict(list(keys.items())[1:])
    assert names(tmp_path, found) == expected


def test_a_question_is_named_by_its_id_before_all_else(tmp_path: Path) -> None:
    assert names(tmp_path, [{"name": "a", "question_id": 81, "turns": ["b"]}]) == ["81"]


def test_repeated_ids_become_places_in_one_document_and_stay_unique(tmp_path: Path) -> None:
    found = names(tmp_path, [{"id": one, "text": "a"} for one in ("x", "x", "y", "x", "a:b", "a:b")])
    assert found == ["x", "x:2", "y", "x:3", "a/b", "a/b:2"]
    assert [document_of(name) for name in found] == ["x", "x", "y", "x", "a/b", "a/b"]


def test_made_names_give_way_to_given_ones(tmp_path: Path) -> None:
    records = [{"text": "a"}, {"name": "1", "text": "b"}, {"id": "1", "text": "c"}, {"name": "3:2", "text": "d"}, {"text": "e"}]
    found = names(tmp_path, records)
    assert found[1] == "1"
    assert found[3] == "3:2"
    assert len(set(found)) == len(found)


def test_a_record_without_a_name_has_its_number_whatever_lines_it_takes(tmp_path: Path) -> None:
    records = [{"text": "a"}, {"text": "b"}]
    for content in ("\n\n".join(map(json.dumps, records)), json.dumps(records, indent=2), "text\na\nb\n", "a\n\nb\n"):
        path = tmp_path / "file"
        path.write_text(content, encoding="utf-8")
        assert [prompt.name for prompt in read_prompts(path)] == ["1", "2"]


@pytest.mark.parametrize("record", [{}, {"id": "conversation:{}"}, {"custom_id": "request-{}"}, {"task_id": "HumanEval/{}"}])
def test_made_names_spread_over_both_halves(tmp_path: Path, record: dict) -> None:
    records = [{key: value.format(number) for key, value in record.items()} | {"prompt": "a"} for number in range(100)]
    found = names(tmp_path, records)
    halves = Counter(map(half_of, found))
    assert min(halves.values()) >= 35
    assert len({document_of(name) for name in found}) == 100


def test_the_calibration_half_of_a_half_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    records = [{"name": f"{n % 7}.py:{n}", "category": "abc"[n % 3], "text": "a"} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    half = calibration_half(read_prompts(path))
    assert calibration_half(half) == half


def test_the_familys_prompts_are_what_their_file_says() -> None:
    lines = [json.loads(line) for line in FAMILY_PROMPTS.read_text("utf-8").splitlines()]
    assert read_prompts(FAMILY_PROMPTS) == [Prompt(**line) for line in lines]
    assert len(lines) > 100
