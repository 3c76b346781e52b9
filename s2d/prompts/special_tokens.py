"""Special tokens written out in a prompt, such as `</s>`: read as the tokens that they name, or as text like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from perfmodel.core.errors import UserInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from s2d.prompts.conversation import Prompt

SpecialTokens = Literal["parse", "text"]
"""`parse` reads a special token's text as that token, `text` reads it as text. The tokens that a chat template or the tokenizer
adds are special in both cases."""
SPECIAL_TOKENS: tuple[SpecialTokens, ...] = get_args(SpecialTokens)
_MAX_NAMED = 3


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The id of every special token, by its text."""
    return {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def text_ids(
    tokenizer: PreTrainedTokenizerFast, text: str, special_tokens: SpecialTokens, *, adds_special_tokens: bool
) -> list[int]:
    """A text's tokens.

    Args:
        tokenizer: cuts it up.
        text: anything.
        special_tokens: how it is read.
        adds_special_tokens: whether the tokenizer adds those that a text begins and ends with.

    Raises:
        UserInputError: a special token's text is to be read as text, and this tokenizer has no other token for it.
    """
    as_text = special_tokens == "text"

    def encode(*, adds: bool) -> list[int]:
        # Not verbose: the tokenizer would warn of a length that is refused later in our own words.
        options = {"add_special_tokens": adds, "split_special_tokens": as_text, "verbose": False}
        return list(tokenizer(text, **options)["input_ids"])

    if as_text:
        ids = set(encode(adds=False))
        for name, index in special_token_ids(tokenizer).items():
            if name in text and index in ids:
                raise UserInputError(cannot_be_text(name))
    return encode(adds=adds_special_tokens)


def cannot_be_text(name: str) -> str:
    """Why a special token's text cannot be read as text."""
    return (
        f"--special-tokens text: the tokenizer has no other token for the text {name!r} than the special token itself. Leave "
        "that out of the prompt, or give --special-tokens parse."
    )


def special_tokens_note(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt], special_tokens: SpecialTokens
) -> str | None:
    """How many prompts contain the text of special tokens, and what is done with it; None where none does."""
    names = special_token_ids(tokenizer)
    found = [[name for name in names if any(name in text for text in _texts(prompt))] for prompt in prompts]
    num_prompts = sum(map(bool, found))
    if not num_prompts:
        return None
    listed = list(dict.fromkeys(name for one in found for name in one))
    named = ", ".join(map(repr, listed[:_MAX_NAMED])) + (" …" if len(listed) > _MAX_NAMED else "")
    contain = "contains" if num_prompts == 1 else "contain"
    where = f"note: {num_prompts} of {len(prompts)} prompts {contain} the text of special tokens ({named})"
    if special_tokens == "text":
        return f"{where}, read as text"
    return f"{where}, read as these tokens; --special-tokens text reads it as text"


def _texts(prompt: Prompt) -> tuple[str, ...]:
    return (prompt.text, *prompt.later, *(message.content for message in prompt.before or ()))
