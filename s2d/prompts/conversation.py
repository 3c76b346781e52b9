"""What a model is asked: a text to go on from, or a conversation whose later turns wait for answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from perfmodel.core.errors import UserInputError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What was said by one of those who talk."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One text to go on from, and what kind of text it is; in a chat, what its user says."""

    name: str
    category: str
    text: str
    before: tuple[Message, ...] | None = None
    """What was said before the text in a conversation; None for a text that may be gone on from without one."""
    later: tuple[str, ...] = ()
    """What the user of a chat says next, each once the model has answered."""

    @property
    def first_turn(self) -> "Prompt":
        """The prompt without what waits for answers."""
        return replace(self, later=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A prompt in a chat, and what its model has answered so far: one turn less than its user has spoken."""

    prompt: Prompt
    answers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The prompt's; of several turns each has its number, from 1: `81/2`."""
        return f"{self.prompt.name}/{len(self.answers) + 1}" if self.prompt.later else self.prompt.name

    @property
    def num_later(self) -> int:
        """Turns after this one."""
        return len(self.prompt.later) - len(self.answers)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said, the user's turn that is to be answered last."""
        turns = [Message(role="user", content=text) for text in (self.prompt.text, *self.prompt.later)]
        said = list(self.prompt.before or ())
        for turn, answer in zip(turns, self.answers, strict=False):
            said += [turn, Message(role="assistant", content=answer)]
        return (*said, turns[len(self.answers)])

    def answered(self, answer: str) -> "Conversation | None":
        """The conversation at its user's next turn; None where that was the last."""
        return replace(self, answers=(*self.answers, answer)) if self.num_later else None


def check_texts(prompts: Iterable[Prompt]) -> None:
    """Refuse conversations where prompts are texts to go on from.

    Raises:
        UserInputError: one is a conversation.
    """
    for prompt in prompts:
        if prompt.before is not None:
            raise UserInputError(
                f"prompt {prompt.name!r} is a conversation: expected a text to go on from. Give --chat, with which s2d-run and "
                "s2d-profile put conversations into the tokenizer's chat template."
            )


def prompts_from_texts(prompts: Sequence[str | Prompt]) -> list[Prompt]:
    """Prompts as given; a plain text is named after its 1-based index.

    Raises:
        UserInputError: there is none.
    """
    if not prompts:
        raise UserInputError("the list of prompts is empty: expected at least one. Give a text, or a prompt file.")
    return [
        Prompt(name=str(number), category="given", text=prompt) if isinstance(prompt, str) else prompt
        for number, prompt in enumerate(prompts, start=1)
    ]
