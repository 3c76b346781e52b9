"""Prompts from a file, and which of them are used."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfmodel.disk import PathLike, read_whole
from perfmodel.errors import BadFile, UserInputError
from perfmodel.halves import Split, document_of, half_of
from s2d.config import FAMILY_FOLDER
from s2d.conversation import ROLES, Message, Prompt

FAMILY_PROMPTS: Path = FAMILY_FOLDER / "prompts.jsonl"
_KEYS = {"name", "category", "text"}
_MESSAGE = '{"role": …, "content": …}'
_EXPECTED = "expected an object with the texts category, name, text, or with messages in the place of text"
_FIX = f'Write one {{"name": …, "category": …, "text": …}} a line; a conversation has "messages": [{_MESSAGE}, …] for its text'


def read_prompts(path: PathLike) -> list[Prompt]:
    """Prompts from a JSONL file: on every line an object with the texts name, category and text.

    A conversation has `messages` in the place of its text, the user's last. Questions of Spec-Bench and MT-Bench are read as
    they are: `question_id` names them, and the later ones of their `turns` wait for answers.

    Raises:
        BadFile: a line that is none, or a name that comes twice; says which.
    """
    # Lines of bytes: a text may hold characters that end a line of a `str`.
    lines = [line.decode("utf-8", errors="replace") for line in read_whole(path).splitlines()]
    prompts = [_prompt(path, number, line) for number, line in enumerate(lines, start=1)]
    if not prompts:
        raise BadFile(path, "there is no prompt in it", _FIX)
    name, count = Counter(prompt.name for prompt in prompts).most_common(1)[0]
    if count > 1:
        raise BadFile(path, f"the name {name!r} comes {count} times", "Give every prompt its own name")
    return prompts


def chosen_prompts(prompts: Sequence[Prompt], split: Split, most: int) -> list[Prompt]:
    """Prompts of a half, so ordered that a few of them are a mixture too: of categories, then of documents.

    Each is of the category taken least before it, of those of the document taken least, of those the first in the file.

    Raises:
        UserInputError: no prompt is in that half.
    """
    left = [prompt for prompt in prompts if split in ("all", half_of(prompt.name))]
    if not left:
        raise UserInputError(f"none of the {len(prompts)} prompts is in the {split} half: give more prompts, or --split all")
    categories: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    chosen: list[Prompt] = []
    while left and len(chosen) < most:
        prompt = min(left, key=lambda one: (categories[one.category], documents[document_of(one.name)]))
        left.remove(prompt)
        chosen.append(prompt)
        categories[prompt.category] += 1
        documents[document_of(prompt.name)] += 1
    return chosen


def _prompt(path: PathLike, number: int, line: str) -> Prompt:
    try:
        found = json.loads(line)
    except ValueError as err:
        raise BadFile(path, f"line {number} is not JSON ({err})", _FIX) from err
    try:
        return _prompt_of(found)
    except ValueError as err:
        raise BadFile(path, f"line {number}: {err}", _FIX) from err


def _prompt_of(found: object) -> Prompt:
    """The prompt that one line of a file holds.

    Raises:
        ValueError: it holds none; says what was expected.
    """
    if not isinstance(found, dict):
        raise ValueError(_EXPECTED)
    if "turns" in found:
        return _question(found)
    if "messages" in found and "text" not in found:
        others = {key: value for key, value in found.items() if key != "messages"}
        *before, last = _messages(found["messages"])
        return replace(_text(others | {"text": last.content}), before=tuple(before))
    return _text(found)


def _text(found: dict[str, Any]) -> Prompt:
    if set(found) != _KEYS or not all(isinstance(text, str) for text in found.values()):
        raise ValueError(_EXPECTED)
    return Prompt(**found)


def _question(found: dict[str, Any]) -> Prompt:
    """One of Spec-Bench or MT-Bench; what else it tells, such as reference answers, is passed over."""
    turns = found["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise ValueError("turns: expected a list of texts, at least one")
    named = {"name": str(found["question_id"])} if "question_id" in found else {}
    return replace(_text(named | {"category": found.get("category"), "text": turns[0]}), later=tuple(turns[1:]))


def _messages(found: object) -> list[Message]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"messages: expected a list of {_MESSAGE}, at least one")
    messages = [_message(place, one) for place, one in enumerate(found, start=1)]
    if messages[-1].role != "user":
        raise ValueError(f"the last message is of role {messages[-1].role!r}: expected 'user', whom the model is to answer")
    return messages


def _message(place: int, found: object) -> Message:
    if not isinstance(found, dict) or set(found) != {"role", "content"}:
        raise ValueError(f"message {place}: expected {_MESSAGE}")
    if found["role"] not in ROLES:
        raise ValueError(f"message {place}: role {found['role']!r}: expected {', '.join(ROLES[:-1])} or {ROLES[-1]}")
    if not isinstance(found["content"], str):
        raise ValueError(f"message {place}: content {found['content']!r}: expected a text")
    return Message(**found)
