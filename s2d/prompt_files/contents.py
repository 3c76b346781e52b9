"""The contents of a record (a text or a conversation), as a prompt and as a training text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from perfmodel.core.errors import quoted
from s2d.prompt_files.problems import BadRecord
from s2d.prompts.conversation import ROLES, Message, Prompt, Role

_MESSAGE = '{"role": …, "content": …}'
_ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
"""Role names in OpenAI, ShareGPT and Gemini files."""
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value")
_TEXT_PARTS = ("text", "input_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to continue, and its answer in the file."""

    text: str
    answer: str = ""
    """Includes the white space that separates it from the text. Empty if the file has no answer."""
    ignored: frozenset[str] = frozenset()
    """Keys of the object around the text that were not read."""

    def prompt(self, name: str, category: str) -> Prompt:
        """The text without its answer."""
        return Prompt(name=name, category=category, text=self.text)

    @property
    def training_text(self) -> str:
        """The text with its answer."""
        return self.text + self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation."""

    messages: tuple[Message, ...]
    ignored: frozenset[str] = frozenset()
    """Keys that were not read, of messages and of the object around them."""

    @property
    def ends_in_answer(self) -> bool:
        """Whether the last turn is the assistant's."""
        return bool(self.messages) and self.messages[-1].role == "assistant"

    def prompt(self, name: str, category: str) -> Prompt:
        """The conversation up to the last user turn, without its answer in the file.

        Raises:
            BadRecord: the last message before the answer is not the user's.
        """
        messages = list(self.messages)
        while messages and messages[-1].role == "assistant":
            messages.pop()
        if not messages or messages[-1].role != "user":
            problem = f"the last message is of role {messages[-1].role!r}" if messages else "no message precedes the answer"
            raise BadRecord(f"{problem}: expected 'user', whose message the model answers")
        *before, last = messages
        return Prompt(name=name, category=category, text=last.content, earlier_messages=tuple(before))

    @property
    def training_text(self) -> str:
        """All messages, one per line."""
        return "\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The user turns of a conversation without answers."""

    turns: tuple[str, ...]
    ignored: frozenset[str] = frozenset()
    """Always empty: the texts have no keys."""

    def prompt(self, name: str, category: str) -> Prompt:
        """The first turn. The later ones follow the model's answers."""
        return Prompt(name=name, category=category, text=self.turns[0], later_turns=self.turns[1:])

    @property
    def training_text(self) -> str:
        """The turns, one per line."""
        return "\n".join(self.turns)


Content: TypeAlias = Text | Chat | Questions


def read_chat(where: str, value: object) -> Chat:
    """A list of messages.

    Args:
        where: the key of the value.
        value: the value.

    Raises:
        BadRecord: the value is not a list of messages. The error names the first bad message.
    """
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{where}: expected a list of {_MESSAGE}, at least one, not {quoted(value)}")
    messages = tuple(_message(f"message {number}", message) for number, message in enumerate(value, start=1))
    known = {*_ROLE_KEYS, *_CONTENT_KEYS}
    return Chat(
        messages=messages, ignored=frozenset(f"{where}.{key}" for message in value for key in message if key not in known)
    )


def read_text_or_chat(where: str, value: object) -> Text | Chat:
    """A text, or a list of messages.

    Raises:
        BadRecord: the value is neither.
    """
    if isinstance(value, str):
        return Text(text=value)
    if isinstance(value, list):
        return read_chat(where, value)
    raise BadRecord(f"{where}: expected a text or a list of messages, not {quoted(value)}")


def read_turns(where: str, value: object) -> Questions:
    """A list of texts.

    Raises:
        BadRecord: the value is not a list of texts.
    """
    if not isinstance(value, list) or not value or not all(isinstance(turn, str) for turn in value):
        raise BadRecord(f"{where}: expected a list of texts, at least one, not {quoted(value)}")
    return Questions(turns=tuple(value))


def _message(where: str, value: object) -> Message:
    if not isinstance(value, Mapping):
        raise BadRecord(f"{where}: expected {_MESSAGE}, not {quoted(value)}")
    role, content = (_first(value, keys) for keys in (_ROLE_KEYS, _CONTENT_KEYS))
    if role is None:
        raise BadRecord(f"{where}: expected {_MESSAGE}, not {quoted(value)}")
    if not isinstance(role, str) or role.lower() not in _ROLE_NAMES:
        raise BadRecord(f"{where}: role {quoted(role)}: expected {', '.join(ROLES[:-1])} or {ROLES[-1]}")
    return Message(role=_ROLE_NAMES[role.lower()], content=_content(where, content))


def _content(where: str, value: object) -> str:
    """The text of a message. Several parts are joined by newlines."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "\n".join(_part(where, part) for part in value)
    raise BadRecord(f"{where}: content {quoted(value)}: expected a text, or a list of parts of type 'text'")


def _part(where: str, value: object) -> str:
    if isinstance(value, str):
        return value
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind not in (None, *_TEXT_PARTS):
        fix = "Leave the record out, or keep only its text"
        raise BadRecord(f"{where}: a part of type {quoted(kind)}: expected parts of type 'text' only", fix)
    if isinstance(value, Mapping) and kind is not None and isinstance(value.get("text"), str):
        return str(value["text"])
    raise BadRecord(f"{where}: a part {quoted(value)}: expected a text, or type 'text' with a text")


def _first(value: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((value[key] for key in keys if value.get(key) is not None), None)
