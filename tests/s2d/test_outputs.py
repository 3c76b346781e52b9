"""Texts kept as they are finished: what a line holds, how a run goes on, and what it refuses to go on with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perfmodel.errors import OutOfSpace, UserInputError
from s2d.conversation import Prompt
from s2d.load import load_tokenizer
from s2d.outputs import Outputs
from s2d.pair import encode_prompts, load_pair
from tests.s2d.conftest import run

NAMES = ("a:1", "b:1", "c:1")
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"name": name, "category": "some", "text": f"the {name} cat"} for name in NAMES]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def decode(folders: Path, plan_file: Callable[..., Path], prompts: Path) -> Callable[..., tuple[int, Path]]:
    def decode(*more: str, policy: object = ...) -> tuple[int, Path]:
        outputs = folders / "texts.jsonl"
        plan = plan_file() if policy is ... else plan_file(policy=policy)
        flags = ["--prompts", str(prompts), "--split", "all", "--max-new-tokens", "12", "--outputs", str(outputs), *more]
        return run(folders, plan, *flags), outputs

    return decode


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_text_is_kept_with_its_figures(decode, folders: Path, capsys) -> None:
    code, outputs = decode("--json")
    assert code == 0
    report = json.loads(capsys.readouterr().out)["body"]
    kept = lines_of(outputs)
    assert [line["name"] for line in kept] == list(NAMES)
    runs = {one["name"]: one for one in report["plan_arm"]["runs"]}
    for line in kept:
        mine = runs[line["name"]]
        assert line["num_rounds"] == mine["rounds"]["num_rounds"]
        assert line["tokens_per_round"] == pytest.approx(line["num_tokens"] / line["num_rounds"])
        assert (line["decode_s"], line["prefill_s"]) == (mine["decode_s"], mine["prefill_s"])
        assert sum(line["exits_taken"].values()) == mine["rounds"]["num_drafted"]
        assert set(line["exits_taken"]) == {"2", "4"}
        assert line["ending"] == ("length" if line["num_tokens"] == 12 else "end of text")
        assert isinstance(line["text"], str)
    assert len({line["run"] for line in kept}) == 1


def test_a_run_goes_on_with_the_prompts_that_are_missing(decode, capsys) -> None:
    _, outputs = decode()
    whole = outputs.read_text("utf-8")
    first, second, third = whole.splitlines(keepends=True)
    outputs.write_text(first + second + third[:25], encoding="utf-8")  # killed while it wrote
    capsys.readouterr()
    code, _ = decode()
    shown, talk = capsys.readouterr()
    assert code == 0
    assert f"going on after 2 texts in {outputs}" in talk
    assert shown.count("=== ") == 1
    again = lines_of(outputs)
    assert [line["text"] for line in again] == [json.loads(line)["text"] for line in (first, second, third)]
    assert outputs.read_text("utf-8").startswith(first + second)


def test_a_finished_file_leaves_nothing_to_run(decode, capsys) -> None:
    _, outputs = decode()
    before = outputs.read_bytes()
    capsys.readouterr()
    assert decode()[0] == 0
    shown, talk = capsys.readouterr()
    assert (shown, outputs.read_bytes()) == ("", before)
    assert "nothing is left to run" in talk


@pytest.mark.parametrize("changed", [("--max-new-tokens", "11"), ("--stop", "zq")])
def test_texts_of_another_run_are_not_mixed_in(decode, capsys, changed: tuple[str, str]) -> None:
    _, outputs = decode()
    before = outputs.read_bytes()
    assert decode(*changed)[0] == 2
    assert "was made for run" in capsys.readouterr().err
    assert outputs.read_bytes() == before


def test_another_prompt_of_the_same_name_is_not_taken_for_finished(folders: Path, plan_file, capsys) -> None:
    plan, outputs = plan_file(), folders / "texts.jsonl"
    for number, prompt in enumerate(("the cat", "the dog", "the cat"), start=1):
        assert run(folders, plan, "--prompt", prompt, "--max-new-tokens", "4", "--outputs", str(outputs)) == 0
        assert len(lines_of(outputs)) == min(number, 2)
    assert "nothing is left to run" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_decoded(decode, folders: Path, capsys) -> None:
    code, _ = decode("--outputs", str(folders / "nowhere" / "texts.jsonl"))
    shown, talk = capsys.readouterr()
    assert (code, shown) == (2, "")
    assert "its folder does not exist" in talk


def test_a_file_of_something_else_is_refused_and_left_alone(decode, folders: Path, capsys) -> None:
    (folders / "texts.jsonl").write_text('{"name": "mine"}\n', encoding="utf-8")
    code, outputs = decode()
    assert code == 2
    assert "line 1 is not the text of a run" in capsys.readouterr().err
    assert outputs.read_text("utf-8") == '{"name": "mine"}\n'


def test_a_full_disk_keeps_what_was_finished(decode, monkeypatch, capsys) -> None:
    real, done = Outputs._record, []

    def second_fails(self, *args):
        done.append(args)
        if len(done) > 1:
            raise OutOfSpace(self._path)
        return real(self, *args)

    monkeypatch.setattr(Outputs, "_record", second_fails)
    code, outputs = decode()
    assert code == 2
    assert "is kept in" in capsys.readouterr().err
    assert [line["name"] for line in lines_of(outputs)] == [NAMES[0]]


def test_a_chat_prompt_is_in_the_tokenizers_template(folders: Path) -> None:
    pair = load_pair(str(folders / "target"), str(folders / "draft"), "fp32", "cpu")
    prompt = Prompt(name="a", category="c", text="the cat")
    with pytest.raises(UserInputError, match="--chat: the tokenizer of target has no chat template"):
        encode_prompts(pair, [prompt], max_new_tokens=4, is_chat=True)
    pair.tokenizer.chat_template = TEMPLATE
    [chat] = encode_prompts(pair, [prompt], max_new_tokens=4, is_chat=True)
    [plain] = encode_prompts(pair, [Prompt(name="a", category="c", text="<user>the cat<assistant>")], max_new_tokens=4)
    assert chat.token_ids == plain.token_ids


def test_a_text_begins_as_its_tokenizer_begins_texts_and_a_chat_as_its_template(folders: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    pair = load_pair(str(folders / "target"), str(folders / "draft"), "fp32", "cpu")
    prompt = Prompt(name="a", category="c", text="the cat")
    [bare] = encode_prompts(pair, [prompt], max_new_tokens=4)
    backend = pair.tokenizer.backend_tokenizer
    first = backend.id_to_token(7)
    backend.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 7)])
    [begun] = encode_prompts(pair, [prompt], max_new_tokens=4)
    assert begun.token_ids == (7, *bare.token_ids)
    pair.tokenizer.chat_template = "{{ messages[0].content }}"
    [chat] = encode_prompts(pair, [prompt], max_new_tokens=4, is_chat=True)
    assert chat.token_ids == bare.token_ids


def test_a_tokenizer_is_read_with_its_template(folders: Path) -> None:
    tokenizer = load_tokenizer(folders / "target")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folders / "target")
    assert load_tokenizer(folders / "target").chat_template == TEMPLATE
