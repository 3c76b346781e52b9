import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from perfmodel.errors import BadFile
from s2d.cli import main_train
from s2d.load import load_model
from s2d.train_draft import read_texts
from tests.stubs import TinySpec, tiny_llama

WORDS = [*"abcdefghijklmnopqrstuv", "<end>"]
FEW_STEPS = ["--steps", "3", "--batch-sequences", "2", "--sequence-tokens", "16"]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    tiny_llama(TinySpec(vocab_size=len(WORDS))).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<end>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a b c d e f g h " * 40, encoding="utf-8")
    return path


def test_a_trained_draft_is_a_folder_that_the_runtime_loads_with_its_exits(target, text, tmp_path, capsys):
    out = tmp_path / "draft"
    flags = ["--target", str(target), "--teacher", str(target), "--exits", "1,3", "--text", str(text), "-o", str(out)]
    assert main_train(["draft", *flags, *FEW_STEPS]) == 0
    assert "exits 1/3; next: s2d-profile" in capsys.readouterr().out
    draft = load_model(out, "fp32")
    assert (draft.geometry.num_layers, draft.exit_layers) == (3, (1, 3))
    assert not (tmp_path / "draft.partial").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--exits", "1,9"], "a draft of 9 layers from a target of 6: give --exits up to 6"),
        (["--exits", "3,1"], "'3,1' is not a rising list of layer counts such as 6,9,12"),
        (["--exits", "1,3", "--sequence-tokens", "4000"], "give more text with --text, or a smaller --sequence-tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_what_to_do(target, text, tmp_path, capsys, flags, message):
    out = tmp_path / "draft"
    assert main_train(["draft", "--target", str(target), "--text", str(text), "-o", str(out), *FEW_STEPS, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_output_that_exists_is_not_overwritten(target, text, tmp_path, capsys):
    assert main_train(["draft", "--target", str(target), "--exits", "1,3", "--text", str(text), "-o", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_texts_come_from_the_formats_people_have(tmp_path):
    path = tmp_path / "mixed.jsonl"
    lines = [
        {"text": "plain"},
        {"turns": ["first", "second"]},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]},
        {"conversations": [{"role": "user", "content": "hi"}]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_texts([path]) == ["plain", "first\nsecond", "ask\nanswer", "hi"]


@pytest.mark.parametrize("line", ["{broken", '{"prompt": "x"}', "[1]"])
def test_a_line_without_text_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line, encoding="utf-8")
    with pytest.raises(BadFile, match="line 2"):
        read_texts([path])
