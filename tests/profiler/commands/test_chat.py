"""Traces of chats: whole conversations, and the first of several user turns."""

import json
import shutil
from pathlib import Path

import pytest

from perfmodel.acceptance.trace import TRACE_FILE
from profiler.commands.profile_cli import main_profile
from s2d.loading.load_model import load_tokenizer
from tests.profiler.conftest import WORDS, Folders
from tests.stubs import EOS

LINES = (
    {"question_id": 81, "category": "a", "turns": ["w6 w7", "w8"]},
    {
        "name": "chat",
        "category": "b",
        "messages": [{"role": "system", "content": "w9"}, {"role": "user", "content": "w10 w11"}],
    },
)


def test_a_chat_is_traced_up_to_its_first_answer(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, prompts, out = tmp_path / "target", tmp_path / "prompts.jsonl", tmp_path / "out"
    shutil.copytree(folders.target, target)
    tokenizer = load_tokenizer(target)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}w20"
    tokenizer.save_pretrained(target)
    prompts.write_text("\n".join(map(json.dumps, LINES)), encoding="utf-8")
    argv = ["acceptance", "--target", str(target), "--draft", str(folders.draft), "--prompts", str(prompts)]
    argv += ["--split", "all", "--max-new-tokens", "8", "--draft-cap", "3", "-o", str(out)]
    assert main_profile(argv) == 2
    assert "prompt 'chat' is a conversation: expected a text to continue. Give --chat" in capsys.readouterr().err
    assert main_profile([*argv, "--chat"]) == 0
    traced = TRACE_FILE.read(out / "trace.npz").record.header.prompts
    assert [(prompt.name, prompt.prompt_tokens) for prompt in traced] == [("81", 3), ("chat", 4)]


def test_the_text_of_special_tokens_is_noted_and_read_as_requested(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    line = {"name": "a", "category": "c", "text": f"w6{WORDS[EOS]}w7"}  # the tokenizer cuts at special tokens and at spaces
    prompts.write_text(json.dumps(line) + "\n", encoding="utf-8")
    lengths = []
    for special_tokens, note in (("parse", "read as these tokens"), ("text", "read as text")):
        out = tmp_path / special_tokens
        argv = ["acceptance", "--target", str(folders.target), "--draft", str(folders.draft), "--prompts", str(prompts)]
        argv += ["--split", "all", "--max-new-tokens", "8", "--special-tokens", special_tokens, "-o", str(out)]
        assert main_profile(argv) == 0
        assert f"note: 1 of 1 prompts contains the text of special tokens ('{WORDS[EOS]}'), {note}" in capsys.readouterr().err
        stored = TRACE_FILE.read(out / "trace.npz")
        assert f"--special-tokens {special_tokens}" in stored.provenance.command
        lengths.append(stored.record.header.prompts[0].prompt_tokens)
    assert lengths == [3, 1]
