"""A target and its draft, loaded together, and prompts and conversations as both see them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import SELF_DRAFT, DraftGeometry
from perfmodel.passes.device_key import DeviceKey, EngineMode
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels
from s2d.decoding.generate import Session
from s2d.loading.compatible import context_tokens
from s2d.loading.exits import DraftExits, RequestedExits, find_exits, format_exits
from s2d.loading.load_model import (
    LoadedModel,
    check_same_vocabulary,
    load_model,
    load_tokenizer,
    read_geometry_with_head,
    tokenizer_sha256,
    with_target_vocab,
)
from s2d.loading.memory import FreeBytes, PairPlacement, TextLimits, check_memory, memory_need
from s2d.loading.model_folder import find_model
from s2d.model.torch_device import device_key
from s2d.parallel.parallel_decoder import load_sharded
from s2d.parallel.ranks import DRAFT, Ranks
from s2d.prompts.conversation import Conversation, Prompt, check_texts
from s2d.prompts.special_tokens import SpecialTokens, cannot_be_text, special_token_ids, text_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt as the models see it."""

    name: str
    category: str
    token_ids: tuple[int, ...]
    conversation: Conversation | None = None
    """Where this is its user's turn; None without a chat."""

    @property
    def num_turns(self) -> int:
        """This one and those that wait for the answer to it."""
        return 1 + (self.conversation.num_later if self.conversation else 0)


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
        models = f"{self.target.geometry.name} with {who}, {self.exits_label}"
        num_devices = self.device_key.num_devices
        if num_devices == 1:
            return models
        what = "" if self.draft_device_key.num_devices > 1 else "the target "
        return f"{models}, {what}shared by {num_devices} processes"

    @property
    def exits_label(self) -> str:
        """`exits 1/2/4/6`."""
        return f"exits {format_exits(self.geometry.exit_layers)}"

    @property
    def device_key(self) -> DeviceKey:
        """The key of seconds measured with this pair."""
        decoder = self.target.decoder
        return device_key(self.device, self.target.dtype, decoder.engine, decoder.num_devices, kernels=decoder.kernels)

    @property
    def draft_device_key(self) -> DeviceKey:
        """The key of the draft's: one device where the first of several processes has it whole."""
        decoder = self.draft.decoder
        return device_key(self.device, self.target.dtype, decoder.engine, decoder.num_devices, kernels=decoder.kernels)

    def check_memory(self, text: TextLimits, free_bytes: FreeBytes | None = None) -> None:
        """Refuse texts whose caches, tables and buffers do not fit beside the weights.

        Args:
            text: the longest; one that is longer than the context is counted as long as that.
            free_bytes: memory that is free on a device; the device is asked when None.

        Raises:
            UserInputError: says how much is needed, for what, and how much is free.
        """
        target, draft = self.target.decoder, self.draft.decoder
        models = PairPlacement(
            target=self.target.geometry,
            draft=self.geometry,
            dtype=self.target.dtype,
            device=self.device,
            engine=target.engine,
            target_ranks=target.num_devices,
            draft_ranks=draft.num_devices,
        )
        held = replace(text, max_tokens=min(text.max_tokens, context_tokens(self.target, self.draft)))
        fix = "Give fewer --max-new-tokens or shorter prompts, or use a device with more memory."
        check_memory(memory_need(models, held, reads_files=False).without_weights, models, free_bytes, fix=fix)

    def session(self, max_tokens: Tokens) -> Session:
        """Caches for texts of at most so many tokens."""
        return Session(self.target, None if self.geometry.kind == "self" else self.draft, max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(ModelPair):
    """Both with the tokenizer that they share."""

    tokenizer: PreTrainedTokenizerFast
    tokenizer_sha256: str
    eos_token_id: int | None
    exits: DraftExits

    @property
    def exits_label(self) -> str:
        """`exits 1/2/4/6 (s2d.json)`: the exits, and who named them."""
        return self.exits.label


def load_pair(
    target_name: str,
    draft_name: str,
    dtype: Dtype,
    device: str,
    ranks: Ranks | None = None,
    *,
    requested_exits: RequestedExits | None = None,
    engine: EngineMode = "eager",
    kernels: Kernels = STANDARD_KERNELS,
    shares_draft: bool = False,
    free_bytes: FreeBytes | None = None,
) -> Pair:
    """Load a target and a draft that share a tokenizer; their heads may be padded differently.

    Several processes share the target.

    Args:
        target_name: a folder, or a model of the reference family.
        draft_name: the same, or `SELF_DRAFT`.
        dtype: to compute in.
        device: torch's name for it.
        ranks: the processes that torchrun started, if it did.
        requested_exits: of the draft; those of its folder, else its full depth, when None.
        engine: how passes are launched; of several processes, eagerly.
        kernels: what both compute with.
        shares_draft: whether they share a draft with weights of its own too; rank 0 has it whole otherwise.
        free_bytes: memory that is free on a device; the device is asked when None.

    Raises:
        Mismatch: their tokenizers differ.
        BadPolicy: exits that the draft does not have.
        UserInputError: a self-draft without exits, too little memory, or processes that cannot share what they are to share.
    """
    target_folder = find_model(target_name)
    exits = draft_exits(target_folder, draft_name, requested_exits)
    models = placement_of(
        target_folder, draft_name, dtype, device, ranks, exits=exits, engine=engine, shares_draft=shares_draft
    )
    dtype_hint = "--dtype bf16, " if dtype == "fp32" else ""
    fix = f"Use a device with more memory, {dtype_hint}a smaller model, or more processes that share the target (torchrun)."
    check_memory(memory_need(models, None, reads_files=True), models, free_bytes, fix=fix)
    load = partial(load_model, dtype=dtype, device=device, engine=engine, kernels=kernels)
    target = load_sharded(target_folder, dtype, device, ranks, kernels=kernels) if ranks else load(target_folder)
    tokenizer = load_tokenizer(target_folder)
    draft = target
    if draft_name != SELF_DRAFT:
        draft_folder = find_model(draft_name)
        check_same_vocabulary(load_tokenizer(draft_folder), tokenizer)
        num_tokens = target.decoder.vocab_size
        if ranks and shares_draft:
            draft = load_sharded(draft_folder, dtype, device, ranks, kernels=kernels, model_id=DRAFT, num_tokens=num_tokens)
        else:
            draft = with_target_vocab(load(draft_folder), num_tokens)
    draft = replace(draft, exit_layers=exits.layers, calibration=exits.calibration)
    return Pair(
        target=draft if draft_name == SELF_DRAFT else target,
        draft=draft,
        geometry=replace(models.draft, model=draft.geometry),
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        device=torch.device(device),
        exits=exits,
    )


def draft_exits(target_folder: Path, draft_name: str, named: RequestedExits | None) -> DraftExits:
    """The exits of a draft by name, or of a target's own layers: see `find_exits`."""
    is_self = draft_name == SELF_DRAFT
    folder = target_folder if is_self else find_model(draft_name)
    return find_exits(folder, read_geometry_with_head(folder).num_layers, named, is_self=is_self)


def placement_of(
    target_folder: Path,
    draft_name: str,
    dtype: Dtype,
    device: str,
    ranks: Ranks | None,
    *,
    exits: DraftExits,
    engine: EngineMode,
    shares_draft: bool,
) -> PairPlacement:
    """What a pair is known by before its weights are read."""
    is_self = draft_name == SELF_DRAFT
    target = read_geometry_with_head(target_folder)
    model = target if is_self else read_geometry_with_head(find_model(draft_name))
    num_ranks = ranks.num_ranks if ranks else 1
    return PairPlacement(
        target=target,
        draft=DraftGeometry(kind="self" if is_self else "separate", model=model, exit_layers=exits.layers),
        dtype=dtype,
        device=torch.device(device),
        engine=engine,
        target_ranks=num_ranks,
        draft_ranks=num_ranks if is_self or shares_draft else 1,
    )


def encode_prompts(
    pair: Pair,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: Tokens,
    is_chat: bool = False,
    special_tokens: SpecialTokens = "parse",
) -> tuple[EncodedPrompt, ...]:
    """Prompts as token ids, with the tokens that the tokenizer begins a text with.

    Args:
        pair: whose tokenizer.
        prompts: their texts are gone on from.
        max_new_tokens: to write after each.
        is_chat: each text is what a user says, put into the tokenizer's chat template after what was said before; what is
            written is the answer, and later turns wait for it.
        special_tokens: how the text of special tokens in a prompt is read; those of the template are special in any case.

    Raises:
        UserInputError: one is empty, or leaves no room for the tokens to write, which may leave none for any; or the tokenizer
            has no chat template, or one that refuses a conversation; or one is a conversation, and this is no chat.
    """
    if is_chat and not pair.tokenizer.chat_template:
        raise UserInputError(
            f"--chat: the tokenizer of {pair.target.geometry.name} has no chat template, expected one in its "
            "tokenizer_config.json. Leave --chat out, or give prompts with the template's text in them."
        )
    if is_chat:
        return tuple(encode_turn(pair, Conversation(prompt=prompt), max_new_tokens, special_tokens) for prompt in prompts)
    return tuple(_encode_text(pair, prompt, max_new_tokens, special_tokens) for prompt in prompts)


def encode_turn(
    pair: Pair, conversation: Conversation, max_new_tokens: Tokens, special_tokens: SpecialTokens = "parse"
) -> EncodedPrompt:
    """A conversation up to where the answer to its user's present turn begins; special tokens are in the template.

    Raises:
        UserInputError: it leaves no room for the answer, or the template refuses it.
    """
    from jinja2 import TemplateError

    said = [{"role": message.role, "content": message.content} for message in conversation.messages]
    try:
        ids = _chat_ids(pair.tokenizer, said, special_tokens)
    except TemplateError as err:
        raise UserInputError(
            f"prompt {conversation.name!r}: the chat template of {pair.target.geometry.name} refuses it ({err}): expected "
            "roles in an order that it takes. Write its messages so, or leave it out."
        ) from err
    return EncodedPrompt(
        name=conversation.name,
        category=conversation.prompt.category,
        token_ids=_fitting(pair, conversation.name, ids, max_new_tokens),
        conversation=conversation,
    )


def _chat_ids(tokenizer: PreTrainedTokenizerFast, said: list[dict[str, str]], special_tokens: SpecialTokens) -> list[int]:
    """Messages in the tokenizer's chat template, which adds all special tokens."""
    if special_tokens == "parse":
        text = str(tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False))
        return text_ids(tokenizer, text, "parse", adds_special_tokens=False)
    options = {"add_generation_prompt": True, "return_dict": False, "verbose": False}
    try:
        return list(tokenizer.apply_chat_template(said, sanitize_control_tokens=True, **options))
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
    """A prompt's tokens, refused where they do not fit the context together with those to write."""
    context = context_tokens(pair.target, pair.draft)
    longest = context - max_new_tokens
    if longest < 1:
        raise UserInputError(
            f"--max-new-tokens {max_new_tokens}: expected at most {context - 1}, as these models hold {context} tokens, prompt "
            "included. Give fewer."
        )
    if not ids:
        raise UserInputError(
            f"prompt {name!r} has 0 tokens: expected at least 1, as this tokenizer adds none of its own. Give some "
            "text, or leave it out."
        )
    if len(ids) > longest:
        raise UserInputError(
            f"prompt {name!r} has {len(ids)} tokens: expected 1 to {longest}, which with {max_new_tokens} new ones "
            "fill the context. Leave it out, or give a lower --max-new-tokens."
        )
    return tuple(ids)
