"""The kinds of records: the keys that identify each, and how to read its contents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from perfmodel.core.errors import quoted
from s2d.prompt_files.contents import Chat, Content, Text, read_chat, read_text_or_chat, read_turns
from s2d.prompt_files.problems import BadRecord, shown_keys
from s2d.prompt_files.read_as import ReadAs

Fields: TypeAlias = Mapping[str, Any]

NAME_KEYS = ("name", "question_id", "task_id", "custom_id", "id")
"""Keys of a record's name. The first present key applies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of record."""

    label: str
    """The name of the kind in messages."""
    keys: tuple[str, ...]
    """A record is of this kind if all of these are present and not null."""
    read: Callable[[Any], Content | None]
    """Reads the contents; None for an empty record, as in some public files. Raises BadRecord."""
    extra_keys: frozenset[str] = frozenset()
    """Further keys that belong to the kind."""
    answers: frozenset[str] = frozenset()
    """Keys of the answer, which only training reads."""
    name_keys: tuple[str, ...] = NAME_KEYS
    is_mixable: bool = False
    """Whether a file may mix this kind with other mixable kinds."""

    def ignored_keys(self, fields: Fields, *, with_answers: bool) -> set[str]:
        """The keys of a record that are not read."""
        known = {*self.keys, *self.extra_keys, *NAME_KEYS, "category"} | (self.answers if with_answers else set())
        return set(fields) - known


def record_kind(value: object, options: ReadAs) -> Kind:
    """The kind of a record.

    Args:
        value: the record.
        options: how to read it. A chosen column holds its text.

    Raises:
        BadRecord: the kind is unknown, or the record has several texts and none was chosen. The error lists its keys.
    """
    if isinstance(value, str) and options.column is None:
        return STRINGS
    if not isinstance(value, dict):
        expected = "an object" if options.column else "an object or a text"
        raise BadRecord(f"a record that is {quoted(value)}, expected {expected}")
    keys = shown_keys(value)
    if options.column is not None:
        if value.get(options.column) is None:
            raise BadRecord(
                f"there is no {quoted(options.column)}; its keys are {keys}", f"Choose one of these with {options.column_flag}"
            )
        return _single(options.column)
    kind = recognised(value)
    if kind is None and (nulls := [key for key in EXPECTED_KEYS if key in value and value[key] is None]):
        raise BadRecord(f"{nulls[0]} is null, expected a value", "Write the missing value, or leave the record out")
    if kind is None:
        fix = f"Choose the one that holds the text with {options.column_flag}, or rename it"
        raise BadRecord(f"no known key holds a text; its keys are {keys}, expected one of {', '.join(EXPECTED_KEYS)}", fix)
    texts = [key for key in SINGLE_KEYS if value.get(key) is not None]
    if len(texts) > 1 and kind.keys[-1] in SINGLE_KEYS:
        problem = f"several keys hold a text ({' and '.join(texts)}), expected one"
        raise BadRecord(problem, f"Choose one with {options.column_flag}")
    return kind


def recognised(fields: Fields) -> Kind | None:
    """The first kind whose keys are all present."""
    return next((kind for kind in KINDS if all(fields.get(key) is not None for key in kind.keys)), None)


def _text(fields: Fields, *, key: str, answers: Mapping[str, str]) -> Content:
    """A text or messages under a key, and their answer."""
    return _answered(read_text_or_chat(key, fields[key]), fields, answers)


def _instruction(fields: Fields, *, answers: Mapping[str, str]) -> Content:
    """The instruction, a blank line and the input (if any), and their answer."""
    instruction = fields["instruction"]
    context = next((fields[key] for key in ("input", "context") if fields.get(key)), "")
    for key, value in (("instruction", instruction), ("input", context)):
        if not isinstance(value, str):
            raise BadRecord(f"{key}: expected a text, not {quoted(value)}")
    return _answered(Text(text="\n\n".join(filter(None, (instruction, context)))), fields, answers)


def _answered(content: Text | Chat, fields: Fields, answers: Mapping[str, str]) -> Content:
    """Add the answer: for a text the first one that is a text, for a conversation the first one that is messages.

    Args:
        content: the text or conversation.
        fields: the record.
        answers: the possible keys of the answer, each with the separator between text and answer.
    """
    form = str if isinstance(content, Text) else list
    present = [key for key in answers if fields.get(key) not in (None, "")]
    key = next((key for key in present if isinstance(fields[key], form)), None)
    ignored = content.ignored | (set(present) - {key})
    if key is None:
        return replace(content, ignored=ignored)
    if isinstance(content, Text):
        return replace(content, answer=answers[key] + fields[key], ignored=ignored)
    answer = read_chat(key, fields[key])
    return replace(content, messages=content.messages + answer.messages, ignored=ignored | answer.ignored)


def _batch_request(fields: Fields) -> Content:
    body = fields["body"]
    if not isinstance(body, Mapping):
        raise BadRecord(f"body: expected an object with messages or a prompt, not {quoted(body)}")
    key = next((key for key in ("messages", "prompt", "input") if body.get(key) is not None), None)
    if key is None:
        raise BadRecord(f"body: expected messages or a prompt; its keys are {shown_keys(body)}")
    content = read_text_or_chat(f"body.{key}", body[key])
    others = frozenset(f"body.{other}" for other in body if other != key)
    return replace(content, ignored=content.ignored | others)


def _shared_conversation(fields: Fields, *, key: str) -> Content | None:
    """A ShareGPT conversation; None if it is empty or has no user turn. Public files contain such conversations."""
    if fields[key] == []:
        return None
    chat = read_chat(key, fields[key])
    return chat if any(message.role == "user" for message in chat.messages) else None


def _single(key: str, **answers: str) -> Kind:
    """Records whose text is under one key; `answers` maps keys of the answer to the separator between text and answer."""
    return Kind(
        label=f"texts under {shown_keys([key])}",
        keys=(key,),
        read=partial(_text, key=key, answers=answers),
        answers=frozenset(answers),
        is_mixable=key == "text",
    )


STRINGS = Kind(label="texts", keys=(), read=lambda text: Text(text=str(text)))
"""Records that are texts, not objects."""

KINDS: tuple[Kind, ...] = (
    Kind(
        label="OpenAI batch requests",
        keys=("custom_id", "body"),
        read=_batch_request,
        extra_keys=frozenset({"method", "url"}),
    ),
    Kind(
        label="conversations under messages",
        keys=("messages",),
        read=lambda fields: read_chat("messages", fields["messages"]),
        is_mixable=True,
    ),
    *(
        Kind(label="ShareGPT conversations", keys=(key,), read=partial(_shared_conversation, key=key))
        for key in ("conversations", "conversation")
    ),
    Kind(
        label="MT-Bench questions",
        keys=("turns",),
        read=lambda fields: read_turns("turns", fields["turns"]),
        name_keys=("question_id", *NAME_KEYS),
        is_mixable=True,
    ),
    Kind(
        label="Alpaca instructions",
        keys=("instruction",),
        read=partial(_instruction, answers={"output": "\n\n", "response": "\n\n"}),
        extra_keys=frozenset({"input", "context"}),
        answers=frozenset({"output", "response"}),
    ),
    Kind(
        label="HumanEval problems",
        keys=("task_id", "prompt"),
        read=partial(_text, key="prompt", answers={"canonical_solution": ""}),
        answers=frozenset({"canonical_solution"}),
    ),
    _single("prompt", completion="", response="\n"),
    _single("question", answer="\n"),
    _single("text"),
)
"""In the order of recognition: kinds with more specific keys come first."""

SINGLE_KEYS = ("prompt", "question", "text")
TEXT_KEYS = frozenset(key for kind in KINDS for key in kind.keys) - {*NAME_KEYS, "body"}
"""Keys of texts and messages."""
EXPECTED_KEYS = tuple(dict.fromkeys(kind.keys[-1] for kind in KINDS if kind.keys[-1] != "conversation"))
