"""A file that cannot be read is refused with what is wrong, where, and how to correct it."""

import gzip
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perfmodel.core.errors import MAX_QUOTED_CHARS, BadFile, UserInputError
from s2d.prompt_files import decode
from s2d.prompt_files.read import read_prompts, read_text_file
from s2d.prompt_files.read_as import ReadAs

GOOD = '{"text": "fine"}\n'
USER = {"role": "user", "content": "so"}
CONVERT = "Convert it (iconv -f {} -t utf-8 "


def messages(*values: object) -> str:
    return GOOD + json.dumps({"messages": values})


REFUSALS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "the file is empty, expected at least one text. Give a file with texts in it."),
    "blank": (" \n\n", "the file contains only white space, expected at least one text"),
    "BOM alone": (b"\xef\xbb\xbf", "the file is empty"),
    "empty array": ("[]", "the file has no record, expected at least one"),
    "header alone": ("prompt,category\n", "the file has no record, expected at least one"),
    "conversations without users": ('{"conversations": []}', "every conversation is empty, expected at least one with a"),
    "Latin-1": (
        GOOD.encode() + '{"text": "café"}\n'.encode("latin1"),
        "line 2, byte offset 30: byte 0xe9 is not UTF-8; the file is probably latin1. " + CONVERT.format("latin1"),
    ),
    "Latin-1 behind a BOM": (
        b"\xef\xbb\xbfab\r\n\xe9",
        "line 2, byte offset 7: byte 0xe9 is not UTF-8; the file is probably latin1",
    ),
    "Windows": ("“so” – it".encode("cp1252"), "line 1, byte offset 0: byte 0x93 is not UTF-8; the file is probably cp1252"),
    "Latin-1 in gzip": (gzip.compress("café".encode("latin1")), "Convert it (gunzip -c "),
    "GBK": ("你好世界".encode("gbk"), "line 1, byte offset 0: byte 0xc4 is not UTF-8. " + CONVERT.format("ENCODING")),
    "cut inside a character": (
        "né café".encode()[:-1],
        "line 1, byte offset 7: the file ends inside a UTF-8 character: it was truncated",
    ),
    "UTF-16": ("ab".encode("utf-16"), "the text is encoded in UTF-16, expected UTF-8. " + CONVERT.format("utf-16")),
    "UTF-32": ("ab".encode("utf-32"), "the text is encoded in UTF-32, expected UTF-8. " + CONVERT.format("utf-32")),
    "UTF-16 without BOM": (
        "a\nb".encode("utf-16le"),
        "line 1, byte offset 1: a NUL byte, expected UTF-8 text without NUL bytes",
    ),
    "NUL": (b"a\nb\0", "line 2, byte offset 3: a NUL byte, expected UTF-8 text without NUL bytes"),
    "zip": (b"PK\x03\x04...", "this is a zip archive, expected a text file, plain or packed by gzip. Unpack or export"),
    "Parquet": (b"PAR1....", "this is a Parquet file, expected a text file"),
    "gzip twice": (gzip.compress(gzip.compress(b"a")), "this is compressed with gzip twice, expected a text file"),
    "damaged gzip": (gzip.compress(b"a" * 1000)[:-9], "a damaged gzip file (Compressed file ended before"),
    "gzip with a wrong sum": (gzip.compress(b"abc")[:-8] + bytes(8), "a damaged gzip file (CRC check failed"),
    "gzip, flipped": (b"\x1f\x8b\x08" + bytes(range(40)), "a damaged gzip file ("),
    "broken line": (
        GOOD + '{"text": ',
        "line 2, byte offset 26: not JSON (Expecting value). Write one object per line, such as ",
    ),
    "broken word": (GOOD + "{broken", "line 2, byte offset 18: not JSON (Expecting property name enclosed in double quotes)"),
    "text behind a line": (GOOD + "so", "line 2, byte offset 17: not JSON (Expecting value)"),
    "newline in a string": ('{"text": "a\nb"}', "line 1, byte offset 11: not JSON (Invalid control character at)"),
    "array without end": (
        '[{"text": "é"},\n{"text": "b"}',
        "line 2, byte offset 30: not JSON (expected ',' or ']' after an item of",
    ),
    "text behind an array": (
        '[{"text": "a"}]\n[]',
        "line 2, byte offset 16: '[]' after the end of the array, expected nothing",
    ),
    "key twice": (
        GOOD + '{"text": "a", "text": "b"}',
        "line 2, byte offset 17: the key 'text' is repeated in one object, expected once",
    ),
    "key twice inside": (
        '[{"text": "a", "x": {"y": 1, "y": 1}}]',
        "line 1, byte offset 1: the key 'y' is repeated",
    ),
    "deep": ('{"text": ' + "[" * 100_000, "line 1, byte offset 0: objects or arrays are nested too deeply"),
    "deep array": ("[" * 100_000, "line 1, byte offset 1: objects or arrays are nested too deeply"),
    "long integer": (
        GOOD + '{"id": ' + "1" * 5000 + "}",
        "line 2, byte offset 17: an integer of 5000 digits, expected at most 40",
    ),
    "surrogate": (
        r'{"text": "a\ud800"}',
        r"line 1, byte offset 0: '\ud800' is half of a surrogate pair, expected whole characters",
    ),
    "surrogate in a message": (
        messages({"role": "user", "content": "\udc00"}),
        "line 2, byte offset 17: '\\udc00' is half of a",
    ),
    "surrogate in a name": (r'{"name": "\ud800", "text": "b"}', "is half of a surrogate pair"),
    "surrogate in a category": (r'{"category": "\ud800", "text": "b"}', "is half of a surrogate pair"),
    "surrogate in a later turn": (r'{"turns": ["a", "\ud800"]}', "is half of a surrogate pair"),
    "number": (GOOD + "17", "line 2, byte offset 17: a record that is 17, expected an object or a text"),
    "null": (GOOD + "null", "line 2, byte offset 17: a record that is null, expected an object or a text"),
    "list": ("[[1]]", "line 1, byte offset 1: a record that is [1], expected an object or a text"),
    "no key": (
        GOOD + '{"txt": "a", "b": 1}',
        "line 2, byte offset 17: no known key holds a text; its keys are txt, b, expected one of body, messages, "
        "conversations, turns, instruction, prompt, question, text. Choose the one that holds the text with --prompt-column",
    ),
    "no key behind a BOM": (b'\xef\xbb\xbf["a",\n{"txt": 1}]', "line 2, byte offset 9: no known key holds a text"),
    "text before JSON lines": (
        "# exported\n" + GOOD * 2,
        "most lines are JSON objects, but the file begins with '# exported'. Remove",
    ),
    "no key at all": ("{}", "its keys are none, expected one of"),
    "null in the place of a text": (
        GOOD + '{"id": 1, "text": null}',
        "line 2, byte offset 17: text is null, expected a value. Write",
    ),
    "null in the place of messages": (
        '{"messages": null}',
        "messages is null, expected a value. Write the missing value, or leave",
    ),
    "null in the place of turns": ('{"turns": null, "category": "a"}', "turns is null, expected a value"),
    "the one array is empty": ('{"data": [], "version": 1}', "the file has no record, expected at least one"),
    "comma behind the last item": (
        '[{"text": "é"},\n {"text": "a, ]"},\n]',
        "line 2, byte offset 34: not JSON (a comma before the closing bracket). Take the comma out; or give",
    ),
    "comma behind the last key": (
        GOOD + '{"text": "a", }',
        "line 2, byte offset 29: not JSON (a comma before the closing bracket)",
    ),
    "comma and bracket in a text": ('[{"text": "a,]" "b"}]', "line 1, byte offset 16: not JSON (Expecting ',' delimiter)"),
    "Python dictionaries": (
        "{'text': 'a'}\n{'text': \"it's\"}\n",
        "line 1, byte offset 0: most lines are Python dictionaries with keys in single quotes: expected JSON. Write each line",
    ),
    "several keys": (
        GOOD + '{"text": "a", "prompt": "b"}',
        "several keys hold a text (prompt and text), expected one. Choose one",
    ),
    "two kinds": (
        GOOD + '{"instruction": "a"}',
        "line 2, byte offset 17: Alpaca instructions in a file of texts under text, expected one kind per file.",
    ),
    "two kinds in an array": (
        '["a", {"prompt": "b"}]',
        "line 1, byte offset 6: texts under prompt in a file of texts, expected",
    ),
    "text is a number": ('{"text": 5}', "text: expected a text or a list of messages, not 5"),
    "no messages": (
        GOOD + '{"messages": []}',
        'line 2, byte offset 17: messages: expected a list of {"role": …, "content": …}, at',
    ),
    "messages are a text": ('{"messages": "so"}', "messages: expected a list of "),
    "message is a text": (messages("so"), 'line 2, byte offset 17: message 1: expected {"role": …, "content": …}, not \'so\''),
    "no content": (messages({"role": "user"}), "message 1: content null: expected a text, or a list of parts of type 'text'"),
    "no role": (messages({"content": "a"}), "message 1: expected {\"role\": …, \"content\": …}, not {'content': 'a'}"),
    "tool": (messages(USER, {"role": "tool", "content": "so"}), "message 2: role 'tool': expected system, user or assistant"),
    "role is a list": (messages({"role": ["user"], "content": "so"}), "message 1: role ['user']: expected system, user or"),
    "image": (
        messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
        "line 2, byte offset 17: message 1: a part of type 'image_url': expected parts of type 'text' only. Leave",
    ),
    "part without text": (
        messages({"role": "user", "content": [{"type": "text"}]}),
        "message 1: a part {'type': 'text'}: expected a",
    ),
    "system last": (
        messages(USER, {"role": "system", "content": "so"}),
        "the last message is of role 'system': expected 'user'",
    ),
    "assistant alone": (messages({"role": "assistant", "content": "so"}), "no message precedes the answer: expected 'user'"),
    "no turns": ('{"turns": []}', "turns: expected a list of texts, at least one, not []"),
    "turns are no texts": ('{"turns": ["so", 2]}', "turns: expected a list of texts, at least one, not ['so', 2]"),
    "input is no text": ('{"instruction": "a", "input": {"b": 1}}', "input: expected a text, not {'b': 1}"),
    "batch without prompt": (
        '{"custom_id": "a", "body": {"model": "m"}}',
        "body: expected messages or a prompt; its keys are model",
    ),
    "batch of text": ('{"custom_id": "a", "body": "b"}', "body: expected an object with messages or a prompt, not 'b'"),
    "name twice": (
        '{"name": "a", "text": "b"}\n' * 2 + '{"name": "a", "text": "c"}',
        "line 2, byte offset 27: the name 'a' appears 3 times, expected once. Give every prompt its own name",
    ),
    "question_id twice": ('{"question_id": 1, "turns": ["a"]}\n' * 2, "line 2, byte offset 35: the name '1' appears 2 times"),
    "name is a list": ('{"name": ["a"], "text": "b"}', "name: expected a text or a number, not ['a']"),
    "category is an object": ('{"category": {}, "text": "b"}', "category: expected a text or a number, not {}"),
    "escapes in a name": (
        r'{"name": "\u001b[2J", "text": "b"}',
        r"name: the control character '\x1b' in '\x1b[2J', expected none",
    ),
    "unknown columns": (
        "id,body\n1,a\n2,b\n",
        "line 2, byte offset 8: no known key holds a text; its keys are id, body, expected one of",
    ),
    "two text columns": (
        "prompt,text\na,b\n",
        "several keys hold a text (prompt and text), expected one. Choose one with --prompt-column",
    ),
    "short row": (
        "prompt,b\na,b\nc\n",
        "line 3, byte offset 13: a row of 1 cells, expected 2 as in the first line (prompt, b)",
    ),
    "open quote": (
        'prompt,b\n"a,b\n',
        "line 2, byte offset 9: not a table row: a double quote is not closed. Close the quotes",
    ),
    "letter behind a quote": (
        'prompt\n"a"b\n',
        "line 2, byte offset 7: not a table row: a double quote is not closed",
    ),
    "column twice": ("prompt,prompt\na,b\n", "line 1, byte offset 0: the column 'prompt' appears 2 times"),
}


def test_bad_content_is_refused_with_its_position_and_a_correction(tmp_path: Path) -> None:
    path, wrong = tmp_path / "prompts.jsonl", []
    for name, (content, message) in REFUSALS.items():
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(BadFile) as refused:
            read_prompts(path)
        text = str(refused.value)
        if not (text.startswith(f"'{path}': ") and message in text and text.endswith(".")):
            wrong.append(f"{name}: {text}")
    assert not wrong


def test_refusals_of_training_texts_name_their_own_flags(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    for content, message in (
        ('{"txt": "a"}', "with --text-column, or rename it"),
        ('{"a": ', "or give --text-format file, if this is plain text."),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ('{"text": "a"}\n{"instruction": "b"}', "expected one kind per file"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(BadFile, match=re.escape(message)):
            read_text_file(path)


def test_the_command_in_a_refusal_converts_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for encoding, is_packed in (("latin1", False), ("latin1", True), ("utf-16", False), ("utf-16le", False)):
        data = "né a\n".encode(encoding)
        Path("my prompts").write_bytes(gzip.compress(data) if is_packed else data)
        with pytest.raises(BadFile) as refused:
            read_prompts("my prompts")
        command = str(refused.value).partition("Convert it ")[2].partition(" and give the new file")[0]
        subprocess.run(["sh", "-c", command], check=True)
        assert [prompt.text for prompt in read_prompts("my prompts.utf8")] == ["né a"]


def test_missing_files_folders_pipes_and_impossible_names_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "this is a folder, expected a file"),
        (pipe, "this is a named pipe, expected a file. Write its output to a file and give that."),
        ("a\0b", "this is not a valid file name"),
    ):
        with pytest.raises(BadFile, match=message):
            read_prompts(path)


def test_a_file_above_the_size_limit_is_refused_without_reading_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 2000)
    path = tmp_path / "bomb"
    for content, message in (
        (gzip.compress(b"a" * 2001), "unpacks to more than 2.00 kB"),
        (gzip.compress(b"a" * 1500) * 2, "unpacks to more than 2.00 kB"),
        (b"a" * 2001, "the file is too large, expected at most 2.00 kB"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=message):
            read_prompts(path)
    path.write_bytes(gzip.compress(b"a" * 2000))
    assert len(read_prompts(path)) == 1
    with pytest.raises(BadFile, match=r"at most 2\.00 kB"):
        read_prompts("/dev/zero")


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    how = ReadAs(use="prompt", column="body")
    for content, message in (
        (
            "id,prompt\n1,a\n",
            "line 2, byte offset 10: there is no 'body'; its keys are id, prompt. Choose one of these with --prompt-c",
        ),
        ('{"prompt": "a"}', "there is no 'body'; its keys are prompt"),
        ('["a"]', "a record that is 'a', expected an object"),
        (
            "Roses are red.\n",
            "there is no column 'body' in the first line, which is 'Roses are red.'. Leave --prompt-column out",
        ),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(BadFile, match=re.escape(message)):
            read_prompts(path, how)


def test_a_column_of_plain_text_is_refused() -> None:
    with pytest.raises(UserInputError, match="--text-column 'a' and --text-format file: expected one of them"):
        ReadAs(use="text", form="file", column="a")


LONG = "x\x1b" * 20_000


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"name": [LONG], "text": "a"}),
        json.dumps({"name": LONG, "text": "a"}),
        json.dumps({LONG: 1, "b" + LONG: 2}),
        json.dumps({"messages": LONG}),
        json.dumps({"messages": [{"role": LONG, "content": "a"}]}),
        json.dumps({"messages": [{"role": "user", "content": [{"type": LONG}]}]}),
        json.dumps({"turns": [[LONG]]}),
        json.dumps([[LONG]]),
        json.dumps({"prompt": {str(number): LONG for number in range(50)}}),
        "prompt,b\n" + ",".join(["x"] * 50_000),
        f'{{"{"x" * 20_000}": 1, "{"x" * 20_000}": 2}}',
        json.dumps(["a"]) + LONG,
    ],
)
def test_a_message_quotes_little_of_a_file_and_no_control_characters(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadFile) as refused:
        read_prompts(path)
    text = str(refused.value)
    assert len(text) < len(str(path)) + 500
    assert text.isprintable()
    assert not re.search(rf"x{{{MAX_QUOTED_CHARS},}}", text)


BYTES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(alphabet='{}[]",:\\ud80 \n\r\tptexrom1é', max_size=80).map(str.encode),
    st.binary(max_size=60).map(gzip.compress),
)
KEYS = [
    "name",
    "category",
    "text",
    "prompt",
    "question",
    "messages",
    "conversations",
    "turns",
    "role",
    "content",
    "type",
    "from",
    "value",
    "custom_id",
    "body",
    "instruction",
    "input",
    "output",
    "id",
    "task_id",
    "data",
    "completion",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
JSONL = st.lists(VALUES, max_size=3).map(lambda values: "\n".join(map(json.dumps, values)).encode())


@settings(max_examples=600, deadline=None)
@given(data=BYTES | JSONL, column=st.sampled_from([None, "text", "b"]))
@example(data=b"\x1f\x8b", column=None)
@example(data=b'"\n', column=None)
@example(data=b"a,b\n\r,\r", column="b")
def test_any_bytes_give_records_or_a_bad_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, column: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    for read in (
        lambda: read_prompts(path, ReadAs(use="prompt", column=column)),
        lambda: read_text_file(path, ReadAs(use="text", column=column)).texts,
        lambda: read_prompts(path, ReadAs(use="prompt", form="lines")),
        lambda: read_prompts(path, ReadAs(use="prompt", form="file")),
    ):
        try:
            records: Sequence = read()
        except BadFile as err:
            assert str(err).isprintable()  # noqa: PT017
        else:
            assert records
