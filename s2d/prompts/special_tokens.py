"""Read special tokens in the text of a prompt (`</s>`) as tokens or as ordinary text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from perfmodel.core.errors import UserInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from s2d.prompts.conversation import Prompt

SpecialTokens = Literal["parse", "text"]
"""`parse` reads the text of a special token as that token, `text` reads it as ordinary text. Tokens that a chat template or the
tokenizer adds are special in both cases."""
SPECIAL_TOKENS: tuple[SpecialTokens, ...] = get_args(SpecialTokens)
_MAX_NAMED = 3


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The id of every special token, by its text."""
    return {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def text_ids(
    tokenizer: PreTrainedTokenizerFast, text: str, special_tokens: SpecialTokens, *, adds_special_tokens: bool
) -> list[int]:
    """The token ids of a text.

    Args:
        tokenizer: the tokenizer.
        text: any text.
        special_tokens: how to read the text of special tokens.
        adds_special_tokens: whether the tokenizer adds its own tokens at the start and end of a text.

    Raises:
        UserInputError: `special_tokens` is `text`, and the tokenizer has only the special token for such a text.
    """
    as_text = special_tokens == "text"

    def encode(*, adds: bool) -> list[int]:
        # verbose would warn about the length, which is checked later.
        options = {"add_special_tokens": adds, "split_special_tokens": as_text, "verbose": False}
        return list(tokenizer(text, **options)["input_ids"])

    if as_text:
        ids = set(encode(adds=False))
        for name, index in special_token_ids(tokenizer).items():
            if name in text and index in ids:
                raise UserInputError(cannot_be_text(name))
    return encode(adds=adds_special_tokens)


def cannot_be_text(name: str) -> str:
    """The error message for a special token that cannot be read as text."""
    return (
        f"--special-tokens text: for the text {name!r} the tokenizer has only the special token itself. Leave it out of the "
        "prompt, or give --special-tokens parse."
    )


def special_tokens_note(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt], special_tokens: SpecialTokens
) -> str | None:
    """A note about prompts that contain the text of special tokens; None if there are no such prompts."""
    names = special_token_ids(tokenizer)
    contained = [[name for name in names if any(name in text for text in _texts(prompt))] for prompt in prompts]
    num_prompts = sum(map(bool, contained))
    if not num_prompts:
        return None
    listed = list(dict.fromkeys(name for names_of_prompt in contained for name in names_of_prompt))
    named = ", ".join(map(repr, listed[:_MAX_NAMED])) + (" …" if len(listed) > _MAX_NAMED else "")
    contain = "contains" if num_prompts == 1 else "contain"
    note = f"note: {num_prompts} of {len(prompts)} prompts {contain} the text of special tokens ({named})"
    if special_tokens == "text":
        return f"{note}, read as text"
    return f"{note}, read as these tokens; --special-tokens text reads it as text"


def _texts(prompt: Prompt) -> tuple[str, ...]:
    return (prompt.text, *prompt.later_turns, *(message.content for message in prompt.earlier_messages or ()))
