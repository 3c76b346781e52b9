"""Conversations whose turns follow the model's own answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perfmodel.core.errors import UserInputError
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.results.report import REPORT_FILE
from s2d.decoding.encode_prompts import ConversationEncoder, encode_prompts, encode_turn
from s2d.decoding.pair import ModelPair, Pair, PairRequest, load_pair
from s2d.loading.load_model import load_tokenizer
from s2d.loading.memory import TextLimits
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Conversation, Prompt
from s2d.prompts.text import Stop, continuation_text
from s2d.running.run_prompts import RunSettings
from tests.s2d.conftest import folders_with, run
from tests.s2d.prompts.kinds_of_tokenizers import KINDS

pytestmark = pytest.mark.e2e

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
TURNS = ("the cat", "the dog then", "and the")
QUESTION = {"question_id": 81, "category": "writing", "turns": list(TURNS), "reference": ["so"]}
MESSAGES = [{"role": "system", "content": "then"}, {"role": "user", "content": "the cat and"}]
CHAT = {"name": "chat", "category": "c", "messages": MESSAGES}
NEW_TOKENS = 6
NOISE = Sampling(rule="shared-noise", temperature=0.9, top_k=None, top_p=0.9, seed=4)


@pytest.fixture
def chat(folders: Path, plan_file: Callable[..., Path]) -> Callable[..., int]:
    """Runs prompts as a chat. A later call continues with the outputs of an earlier one."""
    with_template(folders, TEMPLATE)

    def chat(lines: list[dict], *more: str, flags: tuple[str, ...] = ("--chat",), **plan: object) -> int:
        prompts = folders / "prompts.jsonl"
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        common = ["--prompts", str(prompts), "--split", "all", "--max-new-tokens", str(NEW_TOKENS)]
        return run(folders, plan_file(**plan), *common, "--outputs", str(folders / "texts.jsonl"), *flags, *more)

    return chat


def with_template(folders: Path, template: str) -> None:
    tokenizer = load_tokenizer(folders / "target")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folders / "target")


def outputs_in(folders: Path) -> list[dict]:
    return [json.loads(line) for line in (folders / "texts.jsonl").read_text("utf-8").splitlines()]


def load_folders(folders: Path, kind: str = "separate") -> Pair:
    return load_pair(
        PairRequest(
            target=str(folders / "target"),
            draft="self" if kind == "self" else str(folders / "draft"),
            dtype="fp32",
            device="cpu",
        )
    )


def conversations(pair: Pair, stop: Stop | None = None) -> ConversationEncoder:
    return ConversationEncoder(pair, max_new_tokens=NEW_TOKENS, stop=stop, special_tokens="parse")


def plain_text(pair: Pair, prompt: str, sampling: Sampling) -> tuple[int, str]:
    """The number of prompt tokens, and the plain target's text after the prompt."""
    [encoded] = encode_prompts(pair, [Prompt(name="p", category="c", text=prompt)], max_new_tokens=NEW_TOKENS)
    settings = RunSettings(policy=None, sampling=sampling, max_new_tokens=NEW_TOKENS).decoding(None, pair.eos_token_id)
    tokens = pair.session(160).generate(encoded.token_ids, settings).tokens
    return len(encoded.token_ids), continuation_text(pair.tokenizer, encoded.token_ids, tokens)


@pytest.mark.parametrize("kind", ["separate", "self"])
@pytest.mark.parametrize("sampling", [GREEDY, NOISE], ids=lambda sampling: sampling.rule)
def test_every_turn_follows_the_answers_before_it(chat, folders: Path, capsys, kind: str, sampling: Sampling) -> None:
    report_file = folders / "report.json"
    assert chat([QUESTION, CHAT], "--check", "-o", str(report_file), kind=kind, sampling=sampling) == 0
    out = capsys.readouterr().out
    assert "prompts   2 in 4 turns, at most 6 new tokens each" in out
    assert out.count("=== 81/2 (writing)") == 1
    assert "4 of 4 outputs equal the plain target's" in out
    pair, written = load_folders(folders, kind), outputs_in(folders)
    assert [line["name"] for line in written] == ["81/1", "81/2", "81/3", "chat"]
    prompt = ""
    for line, turn in zip(written, TURNS, strict=False):
        prompt += f"<user>{turn}<assistant>"
        assert (line["prompt_tokens"], line["text"]) == plain_text(pair, prompt, sampling)
        prompt += line["text"]
    last = written[-1]["prompt_tokens"], written[-1]["text"]
    assert last == plain_text(pair, "<system>then<user>the cat and<assistant>", sampling)
    report = REPORT_FILE.read(report_file).record
    assert report.plain_arm is not None
    for arm in (report.plan_arm, report.plain_arm):
        runs = [(prompt.name, prompt.prompt_tokens, prompt.rounds.num_tokens) for prompt in arm.runs]
        assert runs == [(line["name"], line["prompt_tokens"], line["num_tokens"]) for line in written]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_streamed_text_equals_the_kept_output_and_the_quote_in_the_next_turn(
    kind: str, chat, folders: Path, capsys
) -> None:
    tokenizer = KINDS[kind]()
    folders_with(folders, tokenizer)
    with_template(folders, TEMPLATE)
    assert chat([QUESTION], "--max-new-tokens", "16") == 0
    out, written = capsys.readouterr().out, outputs_in(folders)
    prompt = ""
    for line, turn in zip(written, TURNS, strict=True):
        assert f"=== {line['name']} (writing)\n{line['text']}\n" in out
        prompt += f"<user>{turn}<assistant>"
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert line["prompt_tokens"] == len(prompt_ids)
        assert line["text"] == continuation_text(tokenizer, prompt_ids, line["token_ids"])
        assert len(line["token_ids"]) == line["num_tokens"]
        prompt += line["text"]


def test_a_conversation_continues_after_the_kept_answers(chat, folders: Path, capsys) -> None:
    assert chat([QUESTION, CHAT]) == 0
    path, whole = folders / "texts.jsonl", outputs_in(folders)
    path.write_text(json.dumps(whole[0]) + "\n" + json.dumps(whole[1])[:30], encoding="utf-8")  # killed in the second turn
    capsys.readouterr()
    assert chat([QUESTION, CHAT]) == 0
    out, err = capsys.readouterr()
    assert f"continuing after 1 output in {path}" in err
    assert "prompts   2 in 3 turns" in out
    assert [line["text"] for line in outputs_in(folders)] == [line["text"] for line in whole]
    assert chat([QUESTION, CHAT]) == 0
    assert "nothing to do" in capsys.readouterr().err
    path.write_text(json.dumps(whole[0] | {"text": "dog"}) + "\n", encoding="utf-8")
    assert chat([QUESTION]) == 0
    expected = plain_text(load_folders(folders), f"<user>{TURNS[0]}<assistant>dog<user>{TURNS[1]}<assistant>", GREEDY)
    assert (outputs_in(folders)[1]["prompt_tokens"], outputs_in(folders)[1]["text"]) == expected


def test_a_conversation_that_outgrows_the_context_ends_early_and_the_others_finish(chat, folders: Path, capsys) -> None:
    long = QUESTION | {"turns": [TURNS[0], "zig zag " * 30, TURNS[1]]}
    for _ in range(2):
        assert chat([long, CHAT]) == 0
        assert [line["name"] for line in outputs_in(folders)] == ["81/1", "chat"]
        err = capsys.readouterr().err
        assert "a conversation is cut short: prompt '81/2' has " in err
        assert "tokens: expected 1 to 154, which with 6 new ones fill the context" in err
    assert "nothing to do" in err


def test_memory_is_checked_before_caches_grow_for_a_longer_conversation(chat, folders: Path, monkeypatch) -> None:
    checked: list[TextLimits] = []
    monkeypatch.setattr(ModelPair, "check_memory", lambda pair, text, free_bytes=None: checked.append(text))
    assert chat([QUESTION]) == 0
    assert len(checked) > 1
    sizes = [text.max_tokens for text in checked]
    assert sizes == sorted(set(sizes))
    lines = outputs_in(folders)
    assert sizes[-1] >= max(line["prompt_tokens"] for line in lines) + NEW_TOKENS


def test_without_chat_the_first_turn_is_continued_and_messages_are_refused(chat, folders: Path, capsys) -> None:
    assert chat([QUESTION], flags=()) == 0
    [line] = outputs_in(folders)
    assert line["name"] == "81"
    assert (line["prompt_tokens"], line["text"]) == plain_text(load_folders(folders), TURNS[0], GREEDY)
    assert chat([CHAT], flags=()) == 2
    assert "prompt 'chat' is a conversation: expected a text to continue. Give --chat," in capsys.readouterr().err


def test_a_stop_string_is_not_part_of_an_answer(chat, folders: Path) -> None:
    pair = load_folders(folders)
    question = Prompt(name="81", category="c", text=TURNS[0], later_turns=(TURNS[1],))
    [first] = encode_prompts(pair, [question], max_new_tokens=NEW_TOKENS, is_chat=True)
    stopped = conversations(pair, Stop(["dog", "END"], pair.tokenizer)).next_turn(first, "the catEND and the dog")
    unstopped = conversations(pair).next_turn(first, "the catEND")
    assert stopped is not None
    assert unstopped is not None
    assert stopped.conversation == Conversation(prompt=question, answers=("the cat",))
    assert unstopped.conversation == Conversation(prompt=question, answers=("the catEND",))
    assert conversations(pair).next_turn(stopped, "the cat") is None


def test_a_conversation_that_the_template_refuses_is_refused_or_ends_early(chat, folders: Path, capsys) -> None:
    with_template(folders, "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}" + TEMPLATE)
    assert chat([CHAT]) == 2
    refusal = "the chat template of target refuses it (one at a time): expected roles in an order that the template accepts."
    assert f"prompt 'chat': {refusal}" in capsys.readouterr().err
    assert chat([QUESTION]) == 0
    assert f"a conversation is cut short: prompt '81/2': {refusal}" in capsys.readouterr().err
    with pytest.raises(UserInputError, match="refuses it"):
        encode_turn(load_folders(folders), Conversation(prompt=read_prompts(folders / "prompts.jsonl")[0], answers=("so",)), 6)
