"""Texts kept as they are finished: what a line holds, how a run goes on, and what it refuses to go on with."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from perfmodel.core.errors import BadFile, OutOfSpace, UserInputError
from perfmodel.core.lock import locked_file
from perfmodel.passes.passes import PassSamples
from s2d.commands.run_cli import main_run
from s2d.decoding.generate import Generation
from s2d.decoding.pair import EncodedPrompt, encode_prompts, load_pair
from s2d.loading.load_model import load_tokenizer
from s2d.prompts.conversation import Prompt
from s2d.running.outputs import Outputs
from tests.s2d.conftest import ROUNDS, run
from tests.s2d.loading.test_load_model import byte_tokenizer

NAMES = ("a:1", "b:1", "c:1")
RUN = "0123456789ab"
GENERATION = Generation(
    tokens=(74, 75),
    rounds=replace(ROUNDS, num_tokens=2),
    blocks=(),
    policies=(),
    prefill_s=0.1,
    decode_s=0.2,
    samples=PassSamples(kind=(), stage=(), rows=(), cached_tokens=(), place=(), seconds=()),
)
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
    assert (
        "(another plan, model, length, --stop, --chat, --special-tokens or --adapt). Give another --outputs"
        in capsys.readouterr().err
    )
    assert outputs.read_bytes() == before


@pytest.mark.parametrize("form", [("--outputs", "{}"), ("--outputs={}",)])
def test_the_next_command_measures_as_it_stands(folders: Path, plan_file, capsys, form: tuple[str, ...]) -> None:
    outputs, report = str(folders / "texts.jsonl"), str(folders / "report.json")
    flags = ["--prompt", "the cat", "--max-new-tokens", "4", *(word.format(outputs) for word in form)]
    assert run(folders, plan_file(), *flags, "-o", report) == 0
    following = capsys.readouterr().err.rpartition("to measure the speedup: ")[2]
    program, *argv = shlex.split(following)
    assert program == "s2d-run"
    assert main_run(argv) == 0
    assert "1 of 1 outputs equal" in capsys.readouterr().out
    assert run(folders, plan_file(), *flags, "-o", report) == 0
    assert "nothing is left to run, and no report is made\n" in capsys.readouterr().err


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


def ours(prompt: EncodedPrompt, run: str = RUN) -> bytes:
    """A line as `Outputs` writes it."""
    with TemporaryDirectory() as folder:
        outputs = Outputs(Path(folder) / "texts.jsonl", run, byte_tokenizer(), (2, 4))
        outputs.add(prompt, GENERATION, "length")
        return (Path(folder) / "texts.jsonl").read_bytes()


ODD = EncodedPrompt(name='a "quoted\\" \N{CAT FACE}\n', category="c\\", token_ids=(70, 71))
EARLIER = b'{"name": "a", "category": "c", "run": "0123456789ab", "prompt_sha256": "ab", "text": "the"}\n'
FOREIGN = {
    "minified JSON": b'{"a": 1}',
    "the same keys in minified JSON": b'{"name":"a","category":"c","run":"0123456789ab"}',
    "a name alone": b'{"name": "mine"}',
    "a name and a category": b'{"name": "mine", "category": "c"}',
    "another run's text": b'{"name": "a", "category": "c", "run": "ba9876543210", "prompt_sha256": "ab", "te',
    "prose": b"the only copy of my thesis",
    "a list": b"[1, 2]",
    "bytes": bytes(range(11, 256)),
    "ours, then another": ours(ODD) + b'{"a": 1}',
    "lines of something else": b'{"name": "mine"}\n',
    "something else, then ours": b'{"name": "mine"}\n' + ours(ODD)[:40],
    "numbers for texts": b'{"name": 1, "run": 2, "prompt_sha256": 3, "text": 4}\n',
    "an empty line": b"\n" + ours(ODD),
    "brackets": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused_and_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r"is not the text of a run|has no end, and it is not one that this run would write"):
        Outputs(path, RUN, byte_tokenizer(), (2, 4))
    assert path.read_bytes() == content


def test_a_file_without_a_last_newline_is_not_emptied_by_a_run(decode, folders: Path, capsys) -> None:
    (folders / "texts.jsonl").write_bytes(b'{"a": 1}')
    code, outputs = decode()
    assert code == 2
    expected = "line 1 has no end, and it is not one that this run would write. Give a file that s2d-run --outputs wrote, or a"
    assert expected in capsys.readouterr().err
    assert outputs.read_bytes() == b'{"a": 1}'


def test_a_line_that_was_cut_off_anywhere_is_dropped_and_no_other(tmp_path: Path) -> None:
    path, plain = tmp_path / "texts.jsonl", EncodedPrompt(name="b", category="c", token_ids=(70,))
    first, second = ours(plain), ours(ODD)
    for end in range(len(second)):
        path.write_bytes(first + second[:end])
        missing, num_kept = Outputs(path, RUN, byte_tokenizer(), (2, 4)).missing([plain, ODD], lambda *_: None)
        assert (missing, num_kept) == ((ODD,), 1)
        assert path.read_bytes() == first
    path.write_bytes(first + second)
    assert Outputs(path, RUN, byte_tokenizer(), (2, 4)).missing([plain, ODD], lambda *_: None) == ((), 2)


def test_a_file_of_an_earlier_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(EARLIER)
    with pytest.raises(BadFile, match=r"line 1 has no token_ids: an earlier version of s2d-run wrote it. Give a new name with"):
        Outputs(path, RUN, byte_tokenizer(), (2, 4))
    assert path.read_bytes() == EARLIER


def test_a_second_run_on_the_same_file_is_refused_until_the_first_has_ended(decode, folders: Path, capsys) -> None:
    path = folders / "texts.jsonl"
    with locked_file(path) as is_locked:
        assert is_locked
        assert decode()[0] == 2
        assert f"{str(path)!r} is in use by another process, expected one process at a time. Wait" in capsys.readouterr().err
        assert path.read_bytes() == b""
    assert not path.exists()
    assert decode()[0] == 0
    assert len(lines_of(path)) == len(NAMES)


def test_where_there_are_no_locks_a_run_says_so_and_goes_on(decode, monkeypatch, capsys) -> None:
    monkeypatch.setattr("perfmodel.core.lock.fcntl", None)
    assert decode()[0] == 0
    assert "note: no file locks here: take care that no other s2d-run writes to" in capsys.readouterr().err


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
    assert "The partial result is in" in capsys.readouterr().err
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
