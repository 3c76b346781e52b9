"""Prompts: texts to continue, and conversations of several turns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from perfmodel.core.errors import UserInputError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text to continue and its category; in a chat, a user turn."""

    name: str
    category: str
    text: str
    earlier_messages: tuple[Message, ...] | None = None
    """The messages before the text in a conversation; None for a plain text."""
    later_turns: tuple[str, ...] = ()
    """The later user turns of a chat. Each follows the model's answer to the turn before it."""

    @property
    def first_turn(self) -> "Prompt":
        """The prompt without its later turns."""
        return replace(self, later_turns=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A prompt in a chat, and the model's answers so far."""

    prompt: Prompt
    answers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The prompt's name. With several turns, the 1-based number of the current turn is appended: `81/2`."""
        return f"{self.prompt.name}/{len(self.answers) + 1}" if self.prompt.later_turns else self.prompt.name

    @property
    def num_later(self) -> int:
        """The number of turns after the current one."""
        return len(self.prompt.later_turns) - len(self.answers)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages so far. The last is the user turn to answer."""
        turns = [Message(role="user", content=text) for text in (self.prompt.text, *self.prompt.later_turns)]
        messages = list(self.prompt.earlier_messages or ())
        for turn, answer in zip(turns, self.answers, strict=False):
            messages += [turn, Message(role="assistant", content=answer)]
        return (*messages, turns[len(self.answers)])

    def answered(self, answer: str) -> "Conversation | None":
        """The conversation at its next user turn; None after the last."""
        return replace(self, answers=(*self.answers, answer)) if self.num_later else None


def check_texts(prompts: Iterable[Prompt]) -> None:
    """Check that no prompt is a conversation.

    Raises:
        UserInputError: a prompt is a conversation.
    """
    for prompt in prompts:
        if prompt.earlier_messages is not None:
            raise UserInputError(
                f"prompt {prompt.name!r} is a conversation: expected a text to continue. Give --chat, with which s2d-run and "
                "s2d-profile put conversations into the tokenizer's chat template."
            )


def prompts_from_texts(prompts: Sequence[str | Prompt]) -> list[Prompt]:
    """Prompts as given; a plain text is named after its 1-based index.

    Raises:
        UserInputError: there are no prompts.
    """
    if not prompts:
        raise UserInputError("the list of prompts is empty: expected at least one. Give a text, or a prompt file.")
    return [
        Prompt(name=str(number), category="given", text=prompt) if isinstance(prompt, str) else prompt
        for number, prompt in enumerate(prompts, start=1)
    ]
