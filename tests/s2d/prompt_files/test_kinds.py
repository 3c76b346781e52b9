"""Every kind of record in every layout gives the prompts, and the training texts, that it stands for."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from s2d.prompt_files.read import read_prompt_file, read_prompts, read_text_file
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Message, Prompt

SYSTEM = Message(role="system", content="Be brief.")
ASKED = Message(role="user", content="café?\nyes")
ANSWERED = Message(role="assistant", content="No.")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two records of one kind, and what they are."""

    records: list
    prompts: list[Prompt]
    texts: list[str]
    label: str


def prompt(name: str, text: str, category: str = "prompts", **more: object) -> Prompt:
    return Prompt(name=name, category=category, text=text, **more)


def openai(*messages: Message) -> list[dict]:
    return [{"role": message.role, "content": message.content} for message in messages]


def sharegpt(*messages: Message) -> list[dict]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[message.role], "value": message.content} for message in messages]


PARTS = [{"type": "text", "text": "café?"}, {"type": "text", "text": "yes"}]
CHAT = prompt("1", ASKED.content, earlier_messages=(SYSTEM,))
LONGER = prompt("2", "So?", earlier_messages=(ASKED, ANSWERED))
SO = Message(role="user", content="So?")
CHAT_TEXTS = ["Be brief.\ncafé?\nyes\nNo.", "café?\nyes\nNo.\nSo?"]

CASES = {
    "s2d": Case(
        records=[{"name": "a.py:3", "category": "c", "text": "one\u2028two"}, {"name": "b", "category": "d", "text": "three"}],
        prompts=[prompt("a.py:3", "one\u2028two", "c"), prompt("b", "three", "d")],
        texts=["one\u2028two", "three"],
        label="texts under text",
    ),
    "s2d conversations": Case(
        records=[
            {"name": "a", "category": "c", "messages": openai(SYSTEM, ASKED)},
            {"name": "b", "category": "c", "messages": openai(SO)},
        ],
        prompts=[prompt("a", ASKED.content, "c", earlier_messages=(SYSTEM,)), prompt("b", "So?", "c", earlier_messages=())],
        texts=["Be brief.\ncafé?\nyes", "So?"],
        label="conversations under messages",
    ),
    "text": Case(
        records=[{"text": " one"}, {"text": "two\n"}],
        prompts=[prompt("1", " one"), prompt("2", "two\n")],
        texts=[" one", "two\n"],
        label="texts under text",
    ),
    "prompt": Case(
        records=[{"prompt": "1 +", "completion": " 1"}, {"prompt": "two", "category": "c", "response": "drei"}],
        prompts=[prompt("1", "1 +"), prompt("2", "two", "c")],
        texts=["1 + 1", "two\ndrei"],
        label="texts under prompt",
    ),
    "prompt as messages": Case(
        records=[
            {"prompt": openai(SYSTEM, ASKED), "completion": openai(ANSWERED)},
            {"prompt": openai(ASKED, ANSWERED, SO)},
        ],
        prompts=[CHAT, LONGER],
        texts=CHAT_TEXTS,
        label="texts under prompt",
    ),
    "question": Case(
        records=[{"id": 7, "question": "2 + 2?", "answer": "4"}, {"id": "b:8", "question": "why?"}],
        prompts=[prompt("7", "2 + 2?"), prompt("b/8", "why?")],
        texts=["2 + 2?\n4", "why?"],
        label="texts under question",
    ),
    "Alpaca": Case(
        records=[
            {"instruction": "Translate.", "input": "cat", "output": "Katze"},
            {"instruction": "Go on.", "input": "", "output": ""},
        ],
        prompts=[prompt("1", "Translate.\n\ncat"), prompt("2", "Go on.")],
        texts=["Translate.\n\ncat\n\nKatze", "Go on."],
        label="Alpaca instructions",
    ),
    "Dolly": Case(
        records=[
            {"instruction": "Translate.", "context": "cat", "response": "Katze", "category": "closed_qa"},
            {"instruction": "Go on.", "context": "", "response": "On.", "category": "open_qa"},
        ],
        prompts=[prompt("1", "Translate.\n\ncat", "closed_qa"), prompt("2", "Go on.", "open_qa")],
        texts=["Translate.\n\ncat\n\nKatze", "Go on.\n\nOn."],
        label="Alpaca instructions",
    ),
    "messages with an answer": Case(
        records=[{"messages": openai(SYSTEM, ASKED, ANSWERED)}, {"messages": openai(ASKED, ANSWERED, SO)}],
        prompts=[CHAT, LONGER],
        texts=CHAT_TEXTS,
        label="conversations under messages",
    ),
    "messages in parts": Case(
        records=[
            {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": PARTS}]},
            {"messages": [{"role": "user", "content": ["So?"]}]},
        ],
        prompts=[CHAT, prompt("2", "So?", earlier_messages=())],
        texts=["Be brief.\ncafé?\nyes", "So?"],
        label="conversations under messages",
    ),
    "ShareGPT": Case(
        records=[
            {"id": "x_0", "conversations": sharegpt(SYSTEM, ASKED, ANSWERED)},
            {"id": "x_1", "conversations": sharegpt(ASKED, ANSWERED, SO)},
        ],
        prompts=[
            prompt("x_0", ASKED.content, earlier_messages=(SYSTEM,)),
            prompt("x_1", "So?", earlier_messages=(ASKED, ANSWERED)),
        ],
        texts=CHAT_TEXTS,
        label="ShareGPT conversations",
    ),
    "OpenAI batch": Case(
        records=[
            {"custom_id": "a:1", "method": "POST", "url": "/v1", "body": {"model": "m", "messages": openai(SYSTEM, ASKED)}},
            {"custom_id": "a:2", "method": "POST", "url": "/v1", "body": {"model": "m", "prompt": "Once"}},
        ],
        prompts=[prompt("a/1", ASKED.content, earlier_messages=(SYSTEM,)), prompt("a/2", "Once")],
        texts=["Be brief.\ncafé?\nyes", "Once"],
        label="OpenAI batch requests",
    ),
    "HumanEval": Case(
        records=[
            {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n"},
            {"task_id": "HumanEval/1", "prompt": "def g():\n", "canonical_solution": "    return 2\n"},
        ],
        prompts=[prompt("HumanEval/0", "def f():\n"), prompt("HumanEval/1", "def g():\n")],
        texts=["def f():\n    return 1\n", "def g():\n    return 2\n"],
        label="HumanEval problems",
    ),
    "MT-Bench": Case(
        records=[
            {"question_id": 81, "category": "writing", "turns": ["first", "second"]},
            {"question_id": 82, "category": "math", "turns": ["only"]},
        ],
        prompts=[prompt("81", "first", "writing", later_turns=("second",)), prompt("82", "only", "math")],
        texts=["first\nsecond", "only"],
        label="MT-Bench questions",
    ),
    "strings": Case(
        records=["one", "two, and"],
        prompts=[prompt("1", "one"), prompt("2", "two, and")],
        texts=["one", "two, and"],
        label="texts",
    ),
}

LAYOUTS: dict[str, Callable[[list], str]] = {
    "JSONL": lambda records: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
    "JSONL, one record spread over lines": lambda records: "\n".join(json.dumps(record, indent=1) for record in records),
    "array": lambda records: json.dumps(records, ensure_ascii=False),
    "indented array": lambda records: json.dumps(records, indent=2) + "\n",
    "array in an object": lambda records: json.dumps({"version": 1, "data": records}),
}

WRITTEN: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "blank last line": lambda text: (text + "\n\n \n").encode(),
    "blank lines between": lambda text: text.replace("\n", "\n\n").encode(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", CASES)
def test_each_kind_gives_the_same_prompts_and_texts_in_every_layout_and_encoding(
    tmp_path: Path, kind: str, layout: str
) -> None:
    case = CASES[kind]
    path = tmp_path / "file.dat"  # the suffix does not matter
    for how, write in WRITTEN.items():
        path.write_bytes(write(LAYOUTS[layout](case.records)))
        file = read_prompt_file(path)
        assert list(file.prompts) == case.prompts, how
        assert file.label.partition(",")[0] == case.label, how
        assert list(read_text_file(path).texts) == case.texts, how


def table(rows: list[list[str]], delimiter: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


TABLES = {
    "prompt": ([["prompt"], ['say "a, b"'], ["c"]], ['say "a, b"', "c"]),
    "prompt and more": (
        [["id", "Prompt", "source"], ["x", "a,\tb; c", "web"], ["y", "two\nlines", ""]],
        ["a,\tb; c", "two\nlines"],
    ),
    "question": ([["category", "question"], ["c", "why?"], ["d", "how?"]], ["why?", "how?"]),
    "Alpaca": ([["instruction", "input", "output"], ["Add.", "1, 2", "3"], ["Go.", "", ""]], ["Add.\n\n1, 2", "Go."]),
    "quoted names": ([["category", "text"], ["c", "a"], ["d", "b"]], ["a", "b"]),
}


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_its_rows(tmp_path: Path, name: str, delimiter: str) -> None:
    rows, texts = TABLES[name]
    path = tmp_path / "file.dat"
    for how, write in WRITTEN.items():
        if how != "blank lines between" or name != "prompt and more":  # the blank line would be inside a cell
            path.write_bytes(write(table(rows, delimiter)))
            assert [prompt.text for prompt in read_prompts(path)] == texts, how


def test_a_table_names_and_categorises_its_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("name,category,text\na.py:1,code,x\nb,prose,y\n", encoding="utf-8")
    assert read_prompts(path) == [prompt("a.py:1", "x", "code"), prompt("b", "y", "prose")]


def test_a_column_or_key_can_be_chosen(tmp_path: Path) -> None:
    how = ReadAs(use="prompt", column="body text")
    for content in (
        "title,body text\nt,one\nu,two\n",
        "title\tbody text\nt\tone\nu\ttwo\n",
        '{"body text": "one", "prompt": "no"}\n{"body text": "two"}\n',
        '[{"body text": "one"}, {"body text": "two"}]',
    ):
        path = tmp_path / "file.dat"
        path.write_text(content, encoding="utf-8")
        assert read_prompts(path, how) == [prompt("1", "one"), prompt("2", "two")]


PLAIN = "Roses, red\n\n  violets\t\n[1] Sugar\n"
FORMS = [
    ("auto", ["Roses, red", "  violets\t", "[1] Sugar"], "plain text, one prompt per line", [PLAIN]),
    (
        "lines",
        ["Roses, red", "  violets\t", "[1] Sugar"],
        "plain text, one prompt per line",
        ["Roses, red", "  violets\t", "[1] Sugar"],
    ),
    ("file", [PLAIN.rstrip("\n")], "plain text, the whole file", [PLAIN]),
]


@pytest.mark.parametrize(("form", "prompts", "label", "texts"), FORMS)
def test_plain_text_has_one_prompt_per_line_and_one_training_text_by_default(
    tmp_path: Path, form: str, prompts: list[str], label: str, texts: list[str]
) -> None:
    path = tmp_path / "poem.jsonl"
    for write in (WRITTEN["plain"], WRITTEN["BOM"], WRITTEN["CRLF"], WRITTEN["gzip"]):
        path.write_bytes(write(PLAIN))
        file = read_prompt_file(path, ReadAs(use="prompt", form=form))
        assert ([prompt.text for prompt in file.prompts], file.label) == (prompts, label)
        assert list(read_text_file(path, ReadAs(use="text", form=form)).texts) == texts


def test_a_file_that_looks_like_records_is_plain_text_on_request(tmp_path: Path) -> None:
    path = tmp_path / "code.txt"
    for content in ('{"a": 1}\n{"b": 2}\n', "id,prompt\n1,x\n", '"quoted"\n"lines"\n'):
        path.write_text(content, encoding="utf-8")
        assert read_text_file(path, ReadAs(use="text", form="file")).texts == (content,)
        lines = [prompt.text for prompt in read_prompts(path, ReadAs(use="prompt", form="lines"))]
        assert lines == content.splitlines()


def test_kinds_with_our_own_keys_may_be_mixed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    kinds = ("s2d", "messages with an answer", "MT-Bench")
    path.write_text("".join(LAYOUTS["JSONL"](CASES[kind].records[:1]) for kind in kinds), encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(path)] == [CASES[kind].prompts[0].text for kind in kinds]


@pytest.mark.parametrize(
    ("records", "understood"),
    [
        (
            [{"question_id": 1, "category": "c", "turns": ["a", "b"], "reference": ["x"]}],
            "prompts: 1 of file.json (MT-Bench questions, first turns; ignored: reference)",
        ),
        (
            [{"conversations": sharegpt(ASKED, ANSWERED)}, {"conversations": []}, {"conversations": sharegpt(ANSWERED)}],
            "prompts: 1 of file.json (ShareGPT conversations, last answers dropped; 2 without a user turn left out)",
        ),
        (
            [{"messages": [{"role": "user", "content": "a", "name": "me"}], "prompt": "b", "odd key\x1b[2J": 1}],
            r"prompts: 1 of file.json (conversations under messages; ignored: messages.name, 'odd key\x1b[2J', prompt)",
        ),
        (
            [{"custom_id": "a", "method": "POST", "url": "/v1", "body": {"model": "m", "prompt": "b"}}],
            "prompts: 1 of file.json (OpenAI batch requests; ignored: body.model)",
        ),
        (
            [{"instruction": "a", "input": "b", "output": "c", "text": "d"}],
            "prompts: 1 of file.json (Alpaca instructions; ignored: output, text)",
        ),
    ],
)
def test_one_line_summarises_what_was_read_and_what_was_not(tmp_path: Path, records: list, understood: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    assert read_prompt_file(path).summary(first_turns=True) == understood


def test_the_summary_mentions_first_turns_only_if_the_later_ones_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question_id": 1, "turns": ["a", "b"]}), encoding="utf-8")
    assert read_prompt_file(path).summary(first_turns=False) == "prompts: 1 of q.jsonl (MT-Bench questions)"
    assert read_text_file(path).summary == "texts: 1 of q.jsonl (MT-Bench questions)"


def test_the_list_of_ignored_keys_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps({"text": "a"} | {f"column_{number}": number for number in range(200)}), encoding="utf-8")
    assert len(read_prompt_file(path).summary(first_turns=True)) < 160


def test_answers_that_are_not_texts_are_ignored_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "open.jsonl"
    for record, text in (
        ({"question": "who?", "answer": ["she", "he"]}, "who?"),
        ({"instruction": "Go.", "output": {"a": 1}, "response": "On."}, "Go.\n\nOn."),
        ({"prompt": openai(ASKED), "completion": "No."}, ASKED.content),
    ):
        path.write_text(json.dumps(record), encoding="utf-8")
        assert len(read_prompts(path)) == 1
        file = read_text_file(path)
        assert file.texts == (text,)
        assert re.search(r"; ignored: (answer|output|completion)\)$", file.summary)
