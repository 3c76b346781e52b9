"""The outputs file: its fields, how a run continues with it, and which files it refuses."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from perfmodel.core.errors import BadFile, OutOfSpace
from perfmodel.core.lock import locked_file
from perfmodel.passes.passes import PassSamples
from s2d.commands.run_cli import main_run
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Generation
from s2d.running.outputs import Outputs
from tests.s2d.conftest import ROUNDS, run
from tests.s2d.loading.test_load_model import byte_tokenizer

pytestmark = pytest.mark.e2e

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


def test_each_output_is_kept_with_its_figures(decode, folders: Path, capsys) -> None:
    code, outputs = decode("--json")
    assert code == 0
    report = json.loads(capsys.readouterr().out)["body"]
    kept = lines_of(outputs)
    assert [line["name"] for line in kept] == list(NAMES)
    runs = {run["name"]: run for run in report["plan_arm"]["runs"]}
    for line in kept:
        measured = runs[line["name"]]
        assert line["num_rounds"] == measured["rounds"]["num_rounds"]
        assert line["tokens_per_round"] == pytest.approx(line["num_tokens"] / line["num_rounds"])
        assert (line["decode_s"], line["prefill_s"]) == (measured["decode_s"], measured["prefill_s"])
        assert sum(line["exits_taken"].values()) == measured["rounds"]["num_drafted"]
        assert set(line["exits_taken"]) == {"2", "4"}
        assert line["ending"] == ("length" if line["num_tokens"] == 12 else "end of text")
        assert isinstance(line["text"], str)
    assert len({line["run"] for line in kept}) == 1


def test_an_interrupted_run_continues_with_the_missing_prompts(decode, capsys) -> None:
    _, outputs = decode()
    whole = outputs.read_text("utf-8")
    first, second, third = whole.splitlines(keepends=True)
    outputs.write_text(first + second + third[:25], encoding="utf-8")  # killed while writing
    capsys.readouterr()
    code, _ = decode()
    out, err = capsys.readouterr()
    assert code == 0
    assert f"continuing after 2 outputs in {outputs}" in err
    assert out.count("=== ") == 1
    again = lines_of(outputs)
    assert [line["text"] for line in again] == [json.loads(line)["text"] for line in (first, second, third)]
    assert outputs.read_text("utf-8").startswith(first + second)


def test_a_complete_file_leaves_nothing_to_do(decode, capsys) -> None:
    _, outputs = decode()
    before = outputs.read_bytes()
    capsys.readouterr()
    assert decode()[0] == 0
    out, err = capsys.readouterr()
    assert (out, outputs.read_bytes()) == ("", before)
    assert "nothing to do" in err


@pytest.mark.parametrize("changed", [("--max-new-tokens", "11"), ("--stop", "zq")])
def test_outputs_of_another_run_are_refused(decode, capsys, changed: tuple[str, str]) -> None:
    _, outputs = decode()
    before = outputs.read_bytes()
    assert decode(*changed)[0] == 2
    assert (
        "(another plan, model, length, --stop, --chat, --special-tokens or --adapt). Give another --outputs"
        in capsys.readouterr().err
    )
    assert outputs.read_bytes() == before


@pytest.mark.parametrize("form", [("--outputs", "{}"), ("--outputs={}",)])
def test_the_suggested_next_command_measures_the_speedup(folders: Path, plan_file, capsys, form: tuple[str, ...]) -> None:
    outputs, report = str(folders / "texts.jsonl"), str(folders / "report.json")
    flags = ["--prompt", "the cat", "--max-new-tokens", "4", *(word.format(outputs) for word in form)]
    assert run(folders, plan_file(), *flags, "-o", report) == 0
    suggested = capsys.readouterr().err.rpartition("to measure the speedup: ")[2]
    program, *argv = shlex.split(suggested)
    assert program == "s2d-run"
    assert main_run(argv) == 0
    assert "1 of 1 outputs equal" in capsys.readouterr().out
    assert run(folders, plan_file(), *flags, "-o", report) == 0
    assert "nothing to do, and no report is made\n" in capsys.readouterr().err


def test_another_prompt_of_the_same_name_has_no_output_yet(folders: Path, plan_file, capsys) -> None:
    plan, outputs = plan_file(), folders / "texts.jsonl"
    for number, prompt in enumerate(("the cat", "the dog", "the cat"), start=1):
        assert run(folders, plan, "--prompt", prompt, "--max-new-tokens", "4", "--outputs", str(outputs)) == 0
        assert len(lines_of(outputs)) == min(number, 2)
    assert "nothing to do" in capsys.readouterr().err


def test_a_path_that_cannot_be_written_is_refused_before_decoding(decode, folders: Path, capsys) -> None:
    code, _ = decode("--outputs", str(folders / "nowhere" / "texts.jsonl"))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "its folder does not exist" in err


def output_line(prompt: EncodedPrompt, run: str = RUN) -> bytes:
    """A line as `Outputs` writes it."""
    with TemporaryDirectory() as folder:
        outputs = Outputs(Path(folder) / "texts.jsonl", run, byte_tokenizer(), (2, 4))
        outputs.add(prompt, GENERATION, "length")
        return (Path(folder) / "texts.jsonl").read_bytes()


ODD = EncodedPrompt(name='a "quoted\\" \N{CAT FACE}\n', category="c\\", token_ids=(70, 71))
FOREIGN = {
    "no token ids": b'{"name": "a", "category": "c", "run": "0123456789ab", "prompt_sha256": "ab", "text": "the"}\n',
    "minified JSON": b'{"a": 1}',
    "the same keys in minified JSON": b'{"name":"a","category":"c","run":"0123456789ab"}',
    "a name alone": b'{"name": "mine"}',
    "a name and a category": b'{"name": "mine", "category": "c"}',
    "another run's text": b'{"name": "a", "category": "c", "run": "ba9876543210", "prompt_sha256": "ab", "te',
    "prose": b"the only copy of my thesis",
    "a list": b"[1, 2]",
    "bytes": bytes(range(11, 256)),
    "an output, then JSON": output_line(ODD) + b'{"a": 1}',
    "other JSON lines": b'{"name": "mine"}\n',
    "JSON, then the start of an output": b'{"name": "mine"}\n' + output_line(ODD)[:40],
    "numbers for texts": b'{"name": 1, "run": 2, "prompt_sha256": 3, "text": 4}\n',
    "an empty line": b"\n" + output_line(ODD),
    "brackets": b"[" * 100_000 + b"\n",
}


def test_a_file_of_other_content_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    message = r"is not an output of s2d-run|is incomplete, and not the beginning of an output of this run"
    for name, content in FOREIGN.items():
        path.write_bytes(content)
        with pytest.raises(BadFile, match=message):
            Outputs(path, RUN, byte_tokenizer(), (2, 4))
        assert path.read_bytes() == content, name


def test_a_file_of_other_content_without_a_last_newline_is_left_unchanged_by_a_run(decode, folders: Path, capsys) -> None:
    (folders / "texts.jsonl").write_bytes(b'{"a": 1}')
    code, outputs = decode()
    assert code == 2
    expected = (
        "line 1 is incomplete, and not the beginning of an output of this run. Give a file that s2d-run --outputs wrote, or a"
    )
    assert expected in capsys.readouterr().err
    assert outputs.read_bytes() == b'{"a": 1}'


def test_a_last_line_cut_at_any_byte_is_dropped_and_no_other_line_is(tmp_path: Path) -> None:
    path, plain = tmp_path / "texts.jsonl", EncodedPrompt(name="b", category="c", token_ids=(70,))
    first, second = output_line(plain), output_line(ODD)
    for end in range(len(second)):
        path.write_bytes(first + second[:end])
        missing, num_kept = Outputs(path, RUN, byte_tokenizer(), (2, 4)).missing([plain, ODD], lambda *_: None)
        assert (missing, num_kept) == ((ODD,), 1)
        assert path.read_bytes() == first
    path.write_bytes(first + second)
    assert Outputs(path, RUN, byte_tokenizer(), (2, 4)).missing([plain, ODD], lambda *_: None) == ((), 2)


def test_a_second_run_on_the_same_file_is_refused_until_the_first_ends(decode, folders: Path, capsys) -> None:
    path = folders / "texts.jsonl"
    with locked_file(path) as is_locked:
        assert is_locked
        assert decode()[0] == 2
        assert f"{str(path)!r} is in use by another process, expected one process at a time. Wait" in capsys.readouterr().err
        assert path.read_bytes() == b""
    assert not path.exists()
    assert decode()[0] == 0
    assert len(lines_of(path)) == len(NAMES)


def test_without_file_locks_a_run_prints_a_note_and_continues(decode, monkeypatch, capsys) -> None:
    monkeypatch.setattr("perfmodel.core.lock.fcntl", None)
    assert decode()[0] == 0
    assert "note: this file system has no file locks: do not let another s2d-run write to" in capsys.readouterr().err


def test_a_run_refuses_a_file_of_other_content(decode, folders: Path, capsys) -> None:
    (folders / "texts.jsonl").write_text('{"name": "mine"}\n', encoding="utf-8")
    code, outputs = decode()
    assert code == 2
    assert "line 1 is not an output of s2d-run" in capsys.readouterr().err
    assert outputs.read_text("utf-8") == '{"name": "mine"}\n'


def test_a_full_disk_keeps_the_finished_outputs(decode, monkeypatch, capsys) -> None:
    add, added = Outputs.add, []

    def second_fails(outputs: Outputs, *args):
        added.append(args)
        if len(added) > 1:
            raise OutOfSpace("texts.jsonl")
        return add(outputs, *args)

    monkeypatch.setattr(Outputs, "add", second_fails)
    code, outputs = decode()
    assert code == 2
    assert "The partial result is in" in capsys.readouterr().err
    assert [line["name"] for line in lines_of(outputs)] == [NAMES[0]]
