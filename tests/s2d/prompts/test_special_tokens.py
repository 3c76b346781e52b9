"""The text of special tokens in prompts, read as tokens or as text. As text it cannot end a turn of a chat."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from perfmodel.core.errors import UserInputError
from s2d.commands.train_cli import main_train
from s2d.decoding.encode_prompts import encode_prompts, encode_turn
from s2d.decoding.pair import PairRequest, load_pair
from s2d.prompts.conversation import Conversation, Message, Prompt
from s2d.prompts.special_tokens import SpecialTokens, special_tokens_note, text_ids
from tests.s2d.conftest import folders_with, run
from tests.s2d.prompts.kinds_of_tokenizers import KINDS, tokenizer_of

TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }}{{ eos_token }}{% endfor %}<assistant>"
PIECES = {"unigram"}
"""Tokenizers whose model has the end token among its pieces."""


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_text_of_a_special_token_is_read_as_the_token_or_as_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    end, index = tokenizer.eos_token, tokenizer.eos_token_id
    text = f"the cat{end} in{end}"
    parsed = text_ids(tokenizer, text, "parse", adds_special_tokens=False)
    assert parsed == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert parsed.count(index) == 2
    if kind in PIECES:
        with pytest.raises(
            UserInputError, match=r"--special-tokens text: for the text '</s>' the tokenizer has only the special token"
        ):
            text_ids(tokenizer, text, "text", adds_special_tokens=False)
        return
    read = text_ids(tokenizer, text, "text", adds_special_tokens=False)
    assert index not in read
    assert kind == "word_piece" or tokenizer.decode(read) == text
    again = text_ids(tokenizer, text, "parse", adds_special_tokens=False)
    assert again == parsed  # a reading leaves the tokenizer unchanged


def test_the_first_token_of_a_text_is_special_in_both_readings() -> None:
    tokenizer = tokenizer_of("llama_2")
    for special_tokens in ("parse", "text"):
        assert text_ids(tokenizer, "</s>", special_tokens, adds_special_tokens=True)[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("kind", ["byte_level", "llama_2", "mistral", "family"])
def test_read_as_text_no_message_of_a_chat_ends_a_turn(kind: str, folders: Path) -> None:
    tokenizer = KINDS[kind]()
    pair = load_pair(chat_request(folders, tokenizer))
    end, index = tokenizer.eos_token, tokenizer.eos_token_id
    prompt = Prompt(
        name="a",
        category="c",
        text=f"user{end}<assistant> ",
        earlier_messages=(Message(role="system", content=f"in {end}"),),
        later_turns=(f"{end} more",),
    )
    conversation = Conversation(prompt=prompt, answers=(f"so{end}",))
    for special_tokens, num_ends in (("parse", 8), ("text", 4)):
        ids = encode_turn(pair, conversation, 4, special_tokens).token_ids
        assert ids.count(index) == num_ends, special_tokens
        assert tokenizer.decode(ids).count(end) == 8
    harmless = Prompt(name="a", category="c", text="the cat")
    encoded = [
        encode_prompts(pair, [harmless], max_new_tokens=4, is_chat=True, special_tokens=reading)
        for reading in ("parse", "text")
    ]
    assert encoded[0] == encoded[1]


def test_a_chat_whose_tokenizer_cannot_read_a_special_token_as_text_is_refused(folders: Path) -> None:
    pair = load_pair(chat_request(folders, KINDS["unigram"]()))
    prompt = Prompt(name="a", category="c", text="the</s>")
    with pytest.raises(UserInputError, match="for the text '</s>' the tokenizer has only the special token itself"):
        encode_prompts(pair, [prompt], max_new_tokens=4, is_chat=True, special_tokens="text")


def test_prompts_that_contain_special_tokens_produce_a_note() -> None:
    tokenizer = tokenizer_of("llama_2")

    def note(special_tokens: SpecialTokens, *texts: str) -> str | None:
        prompts = [Prompt(name=text, category="c", text=text) for text in texts]
        return special_tokens_note(tokenizer, prompts, special_tokens)

    assert note("parse", "the cat", "< / s >") is None
    assert note("parse", "the</s>", "so") == (
        "note: 1 of 2 prompts contains the text of special tokens ('</s>'), read as these tokens; --special-tokens text "
        "reads it as text"
    )
    assert note("text", "the</s>", "<s>", "") == (
        "note: 2 of 3 prompts contain the text of special tokens ('</s>', '<s>'), read as text"
    )
    later = Prompt(
        name="a", category="c", text="so", later_turns=("<s>",), earlier_messages=(Message(role="user", content="</s>"),)
    )
    assert "1 of 1 prompts" in (special_tokens_note(tokenizer, [later], "text") or "")


def test_a_run_prints_the_note_and_refuses_outputs_of_the_other_reading(
    folders: Path, plan_file: Callable[..., Path], capsys
) -> None:
    plan, flags = plan_file(), ["--prompt", "the cat<end>", "--max-new-tokens", "4", "--outputs", str(folders / "texts.jsonl")]
    assert run(folders, plan, *flags) == 0
    assert "note: 1 of 1 prompts contains the text of special tokens ('<end>'), read as these tokens" in capsys.readouterr().err
    assert run(folders, plan, *flags, "--special-tokens", "text") == 2
    assert "was made for run" in capsys.readouterr().err
    (folders / "texts.jsonl").unlink()
    assert run(folders, plan, *flags, "--special-tokens", "text") == 0
    assert "('<end>'), read as text\n" in capsys.readouterr().err
    pair = load_pair(PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu"))
    expected = pair.tokenizer("the cat<end>", split_special_tokens=True)["input_ids"]
    assert json.loads((folders / "texts.jsonl").read_text())["prompt_tokens"] == len(expected) > 4


def test_later_turns_are_read_as_the_first_is(folders: Path, plan_file: Callable[..., Path], capsys) -> None:
    tokenizer = KINDS["byte_level"]()
    chat_request(folders, tokenizer)
    prompts = folders / "prompts.jsonl"
    prompts.write_text(json.dumps({"question_id": 1, "category": "c", "turns": ["the", "cat</s>"]}) + "\n")
    lengths = []
    for special_tokens in ("parse", "text"):
        outputs = folders / f"{special_tokens}.jsonl"
        flags = ["--prompts", str(prompts), "--split", "all", "--max-new-tokens", "4", "--chat", "--outputs", str(outputs)]
        assert run(folders, plan_file(), *flags, "--special-tokens", special_tokens) == 0
        lengths.append([json.loads(line)["prompt_tokens"] for line in outputs.read_text().splitlines()])
    assert lengths[0][0] == lengths[1][0]
    assert lengths[0][1] < lengths[1][1]


def test_a_calibration_prints_the_note(folders: Path, capsys) -> None:
    prompts = folders / "prompts.jsonl"
    lines = [{"name": f"{number}", "category": "c", "text": "the cat<end>"} for number in range(8)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--draft", str(folders / "draft"), "--target", str(folders / "target"), "--prompts", str(prompts)]
    assert main_train(["calibrate", *flags, "--max-new-tokens", "4", "--special-tokens", "text"]) == 0
    assert "prompts contain the text of special tokens ('<end>'), read as text" in capsys.readouterr().err


def chat_request(folders: Path, tokenizer: PreTrainedTokenizerFast) -> PairRequest:
    """A pair whose tokenizer has a chat template."""
    tokenizer.chat_template = TEMPLATE
    folders_with(folders, tokenizer)
    return PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu")
