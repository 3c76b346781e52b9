"""Prompts and conversations as token ids that fit the context of a pair."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from s2d.decoding.pair import Pair
from s2d.loading.load_model import context_tokens
from s2d.prompts.conversation import Conversation, Prompt, check_texts
from s2d.prompts.special_tokens import SpecialTokens, cannot_be_text, special_token_ids, text_ids
from s2d.prompts.text import Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt as token ids."""

    name: str
    category: str
    token_ids: tuple[int, ...]
    conversation: Conversation | None = None
    """The conversation whose current user turn this prompt ends with; None for plain text."""

    @property
    def num_turns(self) -> int:
        """This turn and the later turns of its conversation."""
        return 1 + (self.conversation.num_later if self.conversation else 0)


def encode_prompts(
    pair: Pair,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: Tokens,
    is_chat: bool = False,
    special_tokens: SpecialTokens = "parse",
) -> tuple[EncodedPrompt, ...]:
    """Encode prompts, including the tokens that the tokenizer adds at the start of a text.

    Args:
        pair: the models. Their tokenizer encodes the prompts, and their context limits the length.
        prompts: texts to continue, or user turns to answer.
        max_new_tokens: the number of tokens that must fit after each prompt.
        is_chat: whether to put each prompt into the tokenizer's chat template as a user turn, after the earlier messages of
            its conversation. Later turns are encoded once the model has answered.
        special_tokens: how to read the text of special tokens in a prompt. Those of the template are always special.

    Raises:
        UserInputError: a prompt is empty or too long; `max_new_tokens` fills the context alone; the tokenizer has no chat
            template, or its template refuses a conversation; or a prompt is a conversation and `is_chat` is false.
    """
    if not is_chat:
        return tuple(_encode_text(pair, prompt, max_new_tokens, special_tokens) for prompt in prompts)
    if not pair.tokenizer.chat_template:
        raise UserInputError(
            f"--chat: the tokenizer of {pair.target.geometry.name} has no chat template, expected one in its "
            "tokenizer_config.json. Leave --chat out, or give prompts that contain the template's text."
        )
    return tuple(encode_turn(pair, Conversation(prompt=prompt), max_new_tokens, special_tokens) for prompt in prompts)


def encode_turn(
    pair: Pair, conversation: Conversation, max_new_tokens: Tokens, special_tokens: SpecialTokens = "parse"
) -> EncodedPrompt:
    """Encode a conversation up to the start of the answer to its current user turn.

    Raises:
        UserInputError: the conversation leaves no room for the answer, or the chat template refuses it.
    """
    from jinja2 import TemplateError

    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    try:
        ids = _chat_ids(pair.tokenizer, messages, special_tokens)
    except TemplateError as err:
        raise UserInputError(
            f"prompt {conversation.name!r}: the chat template of {pair.target.geometry.name} refuses it ({err}): expected "
            "roles in an order that the template accepts. Reorder its messages, or leave it out."
        ) from err
    return EncodedPrompt(
        name=conversation.name,
        category=conversation.prompt.category,
        token_ids=_fitting(pair, conversation.name, ids, max_new_tokens),
        conversation=conversation,
    )


class ConversationEncoder:
    """Encodes the next turn of a conversation once the model has answered.

    Args:
        pair: the models.
        max_new_tokens: the maximum length of an answer.
        stop: the strings that end an answer.
        special_tokens: how to read the text of special tokens.
    """

    def __init__(self, pair: Pair, *, max_new_tokens: Tokens, stop: Stop | None, special_tokens: SpecialTokens) -> None:
        self._pair = pair
        self._max_new_tokens = max_new_tokens
        self._stop = stop
        self._special_tokens = special_tokens
        self.cut_short: list[str] = []
        """Why conversations ended early: they outgrew the context, or the template refused an answer."""

    def next_turn(self, prompt: EncodedPrompt, answer: str) -> EncodedPrompt | None:
        """The turn after an answer; None at the end of the conversation, or if the turn cannot be encoded.

        A stop string ends an answer and is not part of it.
        """
        conversation = prompt.conversation and prompt.conversation.answered(self._stop.before(answer) if self._stop else answer)
        if conversation is None:
            return None
        try:
            return encode_turn(self._pair, conversation, self._max_new_tokens, self._special_tokens)
        except UserInputError as err:
            self.cut_short.append(f"a conversation is cut short: {err}")
            return None


def _chat_ids(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], special_tokens: SpecialTokens) -> list[int]:
    """The token ids of messages in the tokenizer's chat template. The template adds all special tokens."""
    if special_tokens == "parse":
        text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        return text_ids(tokenizer, text, "parse", adds_special_tokens=False)
    options = {"add_generation_prompt": True, "return_dict": False, "verbose": False}
    try:
        return list(tokenizer.apply_chat_template(messages, sanitize_control_tokens=True, **options))
    except ValueError as err:
        for name in special_token_ids(tokenizer):
            if repr(name) in str(err):
                raise UserInputError(cannot_be_text(name)) from err
        raise


def _encode_text(pair: Pair, prompt: Prompt, max_new_tokens: Tokens, special_tokens: SpecialTokens) -> EncodedPrompt:
    check_texts([prompt])
    ids = text_ids(pair.tokenizer, prompt.text, special_tokens, adds_special_tokens=True)
    return EncodedPrompt(name=prompt.name, category=prompt.category, token_ids=_fitting(pair, prompt.name, ids, max_new_tokens))


def _fitting(pair: Pair, name: str, ids: Sequence[int], max_new_tokens: Tokens) -> tuple[int, ...]:
    """The token ids of a prompt.

    Raises:
        UserInputError: the prompt is empty, or does not fit the context together with the new tokens.
    """
    context = context_tokens(pair.target, pair.draft)
    max_tokens = context - max_new_tokens
    if max_tokens < 1:
        raise UserInputError(
            f"--max-new-tokens {max_new_tokens}: expected at most {context - 1}, as the context of these models is {context} "
            "tokens including the prompt. Give fewer."
        )
    if not ids:
        raise UserInputError(
            f"prompt {name!r} has 0 tokens: expected at least 1, as this tokenizer adds none of its own. Give some text, or "
            "leave it out."
        )
    if len(ids) > max_tokens:
        raise UserInputError(
            f"prompt {name!r} has {len(ids)} tokens: expected 1 to {max_tokens}, which with {max_new_tokens} new ones fill "
            "the context. Leave it out, or give a lower --max-new-tokens."
        )
    return tuple(ids)
