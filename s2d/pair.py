"""A target and its draft, loaded together, and prompts as both see them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from perfmodel.errors import BadPolicy, UserInputError
from perfmodel.geometry import DraftGeometry
from perfmodel.profile import DeviceKey, Dtype
from perfmodel.units import Tokens
from s2d.compatible import context_tokens
from s2d.corpus import Prompt
from s2d.device import device_key
from s2d.generate import Session
from s2d.load import (
    LoadedModel,
    check_same_vocabulary,
    find_model,
    load_model,
    load_tokenizer,
    tokenizer_sha256,
    with_vocabulary_of,
)
from s2d.parallel import load_shared
from s2d.ranks import DRAFT, Ranks

SELF_DRAFT = "self"
"""What to give as the draft for the target's own early exits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt as the models see it."""

    name: str
    category: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPair:
    """A target and its draft, ready to run on token ids. A self-draft is the target itself."""

    target: LoadedModel
    draft: LoadedModel
    geometry: DraftGeometry
    device: torch.device

    @property
    def label(self) -> str:
        """`ref-target-16 with ref-draft, exits 1/2/4/6`, and who shares what where there are several processes."""
        who = "its own layers" if self.geometry.kind == "self" else self.geometry.model.name
        models = f"{self.target.geometry.name} with {who}, exits {'/'.join(map(str, self.geometry.exit_layers))}"
        num_devices = self.device_key.num_devices
        if num_devices == 1:
            return models
        what = "" if self.draft_device_key.num_devices > 1 else "the target "
        return f"{models}, {what}shared by {num_devices} processes"

    @property
    def device_key(self) -> DeviceKey:
        """The key of seconds measured with this pair."""
        return device_key(self.device, self.target.dtype, self.target.decoder.num_devices)

    @property
    def draft_device_key(self) -> DeviceKey:
        """The key of the draft's: one device where the first of several processes has it whole."""
        return device_key(self.device, self.target.dtype, self.draft.decoder.num_devices)

    def session(self, max_tokens: Tokens) -> Session:
        """Caches for texts of at most so many tokens."""
        return Session(self.target, None if self.geometry.kind == "self" else self.draft, max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(ModelPair):
    """Both with the tokenizer that they share."""

    tokenizer: PreTrainedTokenizerFast
    tokenizer_sha256: str
    eos_token_id: int | None


def load_pair(
    target_name: str, draft_name: str, dtype: Dtype, device: str, ranks: Ranks | None = None, *, shares_draft: bool = False
) -> Pair:
    """Load a target and a draft that share a tokenizer; their heads may be padded differently.

    Several processes share the target.

    Args:
        target_name: a folder, or a model of the reference family.
        draft_name: the same, or `SELF_DRAFT`.
        dtype: to compute in.
        device: torch's name for it.
        ranks: the processes that torchrun started, if it did.
        shares_draft: whether they share a draft with weights of its own too; rank 0 has it whole otherwise.

    Raises:
        Mismatch: their tokenizers differ.
        BadPolicy: the draft names no exits, or ones it does not have.
        UserInputError: the processes cannot share what they are to share.
    """
    target_folder = find_model(target_name)
    target = load_shared(target_folder, dtype, device, ranks) if ranks else load_model(target_folder, dtype, device)
    tokenizer = load_tokenizer(target_folder)
    draft = target
    if draft_name != SELF_DRAFT:
        draft_folder = find_model(draft_name)
        check_same_vocabulary(load_tokenizer(draft_folder), tokenizer)
        num_tokens = target.decoder.vocab_size
        if ranks and shares_draft:
            draft = load_shared(draft_folder, dtype, device, ranks, number=DRAFT, num_tokens=num_tokens)
        else:
            draft = with_vocabulary_of(load_model(draft_folder, dtype, device), num_tokens)
    if not draft.exit_layers:
        raise BadPolicy(f"draft {draft_name!r} names no exits", "an s2d.json with exit_layers beside its config.json")
    kind = "self" if draft is target else "separate"
    return Pair(
        target=target,
        draft=draft,
        geometry=DraftGeometry(kind=kind, model=draft.geometry, exit_layers=draft.exit_layers),  # type: ignore[arg-type]
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        device=torch.device(device),
    )


def encode_prompts(
    pair: Pair, prompts: Sequence[Prompt], *, max_new_tokens: Tokens, is_chat: bool = False
) -> tuple[EncodedPrompt, ...]:
    """Prompts as token ids, with the tokens that the tokenizer begins a text with.

    Args:
        pair: whose tokenizer.
        prompts: their texts are gone on from.
        max_new_tokens: to write after each.
        is_chat: each text is what a user says, put into the tokenizer's chat template; what is written is the answer.

    Raises:
        UserInputError: one is empty, or leaves no room for the tokens to write, which may leave none for any; or the tokenizer
            has no chat template.
    """
    if is_chat and not pair.tokenizer.chat_template:
        raise UserInputError(
            f"--chat: the tokenizer of {pair.target.geometry.name} has no chat template, expected one in its "
            "tokenizer_config.json. Leave --chat out, or give prompts with the template's text in them."
        )
    context = context_tokens(pair.target, pair.draft)
    longest = context - max_new_tokens
    if longest < 1:
        raise UserInputError(
            f"--max-new-tokens {max_new_tokens}: expected at most {context - 1}, as these models hold {context} tokens, prompt "
            "included. Give fewer."
        )
    encoded = []
    for prompt in prompts:
        text = _as_user(pair.tokenizer, prompt.text) if is_chat else prompt.text
        # Not verbose: the tokenizer would warn of a length that is refused here in our own words.
        ids = tuple(pair.tokenizer(text, add_special_tokens=not is_chat, verbose=False)["input_ids"])
        if not 1 <= len(ids) <= longest:
            raise UserInputError(
                f"prompt {prompt.name!r} has {len(ids)} tokens: expected 1 to {longest}, which with {max_new_tokens} new ones "
                "fill the context. Leave it out, or give a lower --max-new-tokens."
            )
        encoded.append(EncodedPrompt(name=prompt.name, category=prompt.category, token_ids=ids))
    return tuple(encoded)


def _as_user(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """A chat in which a user has said this, up to where the answer begins; its special tokens are in the template."""
    said = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False))
