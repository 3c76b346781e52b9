"""Prompt and text files for field.py in common formats, each with the right reading."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass

ONE, TWO = "Name three primes.", "Où est la gare ?\nRéponds."
"""Two prompts: plain text, and two lines with non-ASCII letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCase:
    """One file."""

    name: str
    """Of the file."""
    data: bytes
    prompts: tuple[str, ...] = ()
    """The users' first turns, in order; empty for a file that is refused."""
    refused: tuple[str, ...] = ()
    """Words that the refusal must contain."""
    column: str | None = None
    """The requested key or column; None to detect it."""


def _lines(rows: Sequence[object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _array(rows: Sequence[object]) -> bytes:
    return json.dumps(list(rows), ensure_ascii=False, indent=1).encode()


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


_SAID = {"role": "assistant", "content": "2, 3, 5."}
BOTH = (ONE, TWO)
_PROMPT = [{"prompt": text} for text in BOTH]
_OWN = [{"name": str(number), "category": "mixed", "text": text} for number, text in enumerate(BOTH)]
_MESSAGES = [{"messages": [_user(text)]} for text in BOTH]
_SFT = [{"messages": [_user(text), _SAID]} for text in BOTH]
_SHAREGPT = [
    {"id": f"c{number}", "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "Yes."}]}
    for number, text in enumerate(BOTH)
]
_BATCH = [
    {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [_user(text)]}}
    for number, text in enumerate(BOTH)
]
_HUMANEVAL = [
    {"task_id": f"HumanEval/{number}", "prompt": text, "canonical_solution": "    pass\n", "test": "", "entry_point": "f"}
    for number, text in enumerate(BOTH)
]
_MT_BENCH = [
    {"question_id": 81 + number, "category": "writing", "turns": [text, "Go on."], "reference": ["", ""]}
    for number, text in enumerate(BOTH)
]
_CSV = 'id,question,topic\r\n1,Name three primes.,maths\r\n2,"Où est la gare ?\nRéponds.",travel\r\n'.encode()

READ = (
    PromptCase(name="own.jsonl", data=_lines(_OWN), prompts=BOTH),
    PromptCase(name="prompt.jsonl", data=_lines(_PROMPT), prompts=BOTH),
    PromptCase(name="text.jsonl", data=_lines([{"text": text} for text in BOTH]), prompts=BOTH),
    PromptCase(name="question.jsonl", data=_lines([{"question": text, "answer": "7"} for text in BOTH]), prompts=BOTH),
    PromptCase(name="messages.jsonl", data=_lines(_MESSAGES), prompts=BOTH),
    PromptCase(name="sft.jsonl", data=_lines(_SFT), prompts=BOTH),
    PromptCase(name="sharegpt.json", data=_array(_SHAREGPT), prompts=BOTH),
    PromptCase(name="batch.jsonl", data=_lines(_BATCH), prompts=BOTH),
    PromptCase(name="humaneval.jsonl", data=_lines(_HUMANEVAL), prompts=BOTH),
    PromptCase(name="mt_bench.jsonl", data=_lines(_MT_BENCH), prompts=BOTH),
    PromptCase(name="prompts.json", data=_array(_PROMPT), prompts=BOTH),
    PromptCase(name="texts.json", data=_array(BOTH), prompts=BOTH),
    PromptCase(name="extra_keys.jsonl", data=_lines([row | {"source": "x", "n": 1} for row in _OWN]), prompts=BOTH),
    PromptCase(name="bom.jsonl", data=b"\xef\xbb\xbf" + _lines(_PROMPT), prompts=BOTH),
    PromptCase(name="crlf.jsonl", data=_lines(_PROMPT).replace(b"\n", b"\r\n"), prompts=BOTH),
    PromptCase(name="blank_last_line.jsonl", data=_lines(_PROMPT) + b"\n", prompts=BOTH),
    PromptCase(name="prompts.jsonl.gz", data=gzip.compress(_lines(_PROMPT), mtime=0), prompts=BOTH),
    PromptCase(name="questions.csv", data=_CSV, prompts=BOTH),
    PromptCase(name="chosen_column.csv", data=b"title,body,n\nx,One.,1\ny,Two.,2\n", prompts=("One.", "Two."), column="body"),
    PromptCase(name="semicolons.csv", data=b"prompt;n\nOne, or two?;1\nThree?;2\n", prompts=("One, or two?", "Three?")),
    PromptCase(name="tabs.tsv", data=b"prompt\tn\nOne?\t1\nTwo?\t2\n", prompts=("One?", "Two?")),
    PromptCase(
        name="chosen_key.jsonl", data=_lines([{"colour": "red", "ask": text} for text in BOTH]), prompts=BOTH, column="ask"
    ),
    PromptCase(
        name="parts.jsonl",
        data=_lines([{"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]} for text in BOTH]),
        prompts=BOTH,
    ),
    PromptCase(name="lines.txt", data=f"{ONE}\nAnd then?\n".encode(), prompts=(ONE, "And then?")),
    PromptCase(
        name="alpaca.json",
        data=_array([{"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}]),
        prompts=("Add the numbers.\n\n2 and 3",),
    ),
)

REFUSED = (
    PromptCase(name="latin1.jsonl", data='{"prompt": "café"}\n'.encode("latin-1"), refused=("line 1", "byte", "UTF-8")),
    PromptCase(name="empty.jsonl", data=b"", refused=("empty",)),
    PromptCase(name="same_name.jsonl", data=_lines([_OWN[0], _OWN[0]]), refused=("'0'",)),
    PromptCase(name="no_known_key.jsonl", data=_lines([{"colour": "red"}]), refused=("colour", "prompt")),
    PromptCase(name="cut.jsonl", data=_lines(_PROMPT)[:-9], refused=("line 2", "JSON")),
    PromptCase(name="utf16.jsonl", data='{"prompt": "a"}'.encode("utf-16"), refused=("UTF-16", "iconv")),
    PromptCase(name="two_columns.csv", data=b"one,two\na,b\nc,d\n", refused=("one", "two", "column")),
    PromptCase(name="no_such_column.csv", data=_CSV, column="colour", refused=("colour", "question")),
    PromptCase(name="binary.bin", data=bytes(range(256)), refused=("text",)),
)
