"""Generated names are unique, reproducible, and spread over both halves."""

import json
from collections import Counter
from pathlib import Path

import pytest

from perfmodel.acceptance.splits import document_name, prompt_half
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import calibration_half
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Prompt


def names(tmp_path: Path, records: list[dict]) -> list[str]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return [prompt.name for prompt in read_prompts(path)]


def test_the_first_name_key_of_a_record_names_its_prompt(tmp_path: Path) -> None:
    keys = {"name": "n:1", "question_id": 2, "task_id": "t/3", "custom_id": "c:4", "id": 5.5}
    expected = ["n:1", "2", "t/3", "c/4", "5.5", "6"]
    generated = []
    while True:
        generated.append(keys | {"text": "a"})
        if not keys:
            break
        keys = dict(list(keys.items())[1:])
    assert names(tmp_path, generated) == expected


def test_the_question_id_of_a_question_comes_first(tmp_path: Path) -> None:
    assert names(tmp_path, [{"name": "a", "question_id": 81, "turns": ["b"]}]) == ["81"]


def test_repeated_ids_become_positions_in_one_document(tmp_path: Path) -> None:
    generated = names(tmp_path, [{"id": record_id, "text": "a"} for record_id in ("x", "x", "y", "x", "a:b", "a:b")])
    assert generated == ["x", "x:2", "y", "x:3", "a/b", "a/b:2"]
    assert [document_name(name) for name in generated] == ["x", "x", "y", "x", "a/b", "a/b"]


def test_generated_names_avoid_given_ones(tmp_path: Path) -> None:
    records = [{"text": "a"}, {"name": "1", "text": "b"}, {"id": "1", "text": "c"}, {"name": "3:2", "text": "d"}, {"text": "e"}]
    generated = names(tmp_path, records)
    assert generated[1] == "1"
    assert generated[3] == "3:2"
    assert len(set(generated)) == len(generated)


def test_a_record_without_a_name_gets_its_number_for_any_number_of_lines(tmp_path: Path) -> None:
    records = [{"text": "a"}, {"text": "b"}]
    for content in ("\n\n".join(map(json.dumps, records)), json.dumps(records, indent=2), "text\na\nb\n", "a\n\nb\n"):
        path = tmp_path / "file"
        path.write_text(content, encoding="utf-8")
        assert [prompt.name for prompt in read_prompts(path)] == ["1", "2"]


@pytest.mark.parametrize("record", [{}, {"id": "conversation:{}"}, {"custom_id": "request-{}"}, {"task_id": "HumanEval/{}"}])
def test_generated_names_spread_over_both_halves(tmp_path: Path, record: dict) -> None:
    records = [{key: value.format(number) for key, value in record.items()} | {"prompt": "a"} for number in range(100)]
    generated = names(tmp_path, records)
    halves = Counter(map(prompt_half, generated))
    assert min(halves.values()) >= 35
    assert len({document_name(name) for name in generated}) == 100


def test_the_calibration_half_of_the_calibration_half_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    records = [{"name": f"{n % 7}.py:{n}", "category": "abc"[n % 3], "text": "a"} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    half = calibration_half(read_prompts(path))
    assert calibration_half(half) == half


def test_the_prompts_of_the_reference_family_keep_their_names() -> None:
    lines = [json.loads(line) for line in FAMILY_PROMPTS.read_text("utf-8").splitlines()]
    assert read_prompts(FAMILY_PROMPTS) == [Prompt(**line) for line in lines]
    assert len(lines) > 100
