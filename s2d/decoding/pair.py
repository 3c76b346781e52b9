"""A target and its draft: load them together, and check their memory."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedTokenizerFast

from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import SELF_DRAFT, DraftGeometry, DraftKind
from perfmodel.passes.device_key import DeviceKey, LaunchMode
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels
from s2d.decoding.generate import Session
from s2d.loading.exits import DraftExits, RequestedExits, find_exits, format_exits
from s2d.loading.load_model import (
    LoadedModel,
    check_same_vocabulary,
    context_tokens,
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
from s2d.parallel.ranks import DRAFT, TARGET, LoadRequest, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPair:
    """A target and its draft, ready to decode token ids. A self-draft is the target itself."""

    target: LoadedModel
    draft: LoadedModel
    geometry: DraftGeometry
    device: torch.device

    @property
    def label(self) -> str:
        """`ref-target-16 with ref-draft, exits 1/2/4/6`, and what is shared if there are several processes."""
        draft = "its own layers" if self.geometry.kind == "self" else self.geometry.model.name
        models = f"{self.target.geometry.name} with {draft}, {self.exits_label}"
        num_devices = self.device_key.num_devices
        if num_devices == 1:
            return models
        shared = "" if self.draft_device_key.num_devices > 1 else "the target "
        return f"{models}, {shared}shared by {num_devices} processes"

    @property
    def exits_label(self) -> str:
        """`exits 1/2/4/6`."""
        return f"exits {format_exits(self.geometry.exit_layers)}"

    @property
    def device_key(self) -> DeviceKey:
        """The device key of the target's pass times."""
        return self._device_key(self.target)

    @property
    def draft_device_key(self) -> DeviceKey:
        """The device key of the draft's pass times: one device if rank 0 holds all of the draft."""
        return self._device_key(self.draft)

    def _device_key(self, model: LoadedModel) -> DeviceKey:
        decoder = model.decoder
        return device_key(self.device, self.target.dtype, decoder.mode, decoder.num_devices, kernels=decoder.kernels)

    def check_memory(self, text: TextLimits, free_bytes: FreeBytes | None = None) -> None:
        """Check that caches, tables and buffers fit in the memory left by the weights.

        Args:
            text: the limits of the longest text. `max_tokens` beyond the context is cut to the context.
            free_bytes: returns the free memory of a device; None queries the device.

        Raises:
            UserInputError: too little memory. The message states the need, its largest parts and the free memory.
        """
        target, draft = self.target.decoder, self.draft.decoder
        models = PairPlacement(
            target=self.target.geometry,
            draft=self.geometry,
            dtype=self.target.dtype,
            device=self.device,
            mode=target.mode,
            target_ranks=target.num_devices,
            draft_ranks=draft.num_devices,
        )
        limits = replace(text, max_tokens=min(text.max_tokens, context_tokens(self.target, self.draft)))
        fix = "Give fewer --max-new-tokens or shorter prompts, or use a device with more memory."
        check_memory(memory_need(models, limits, reads_files=False).without_weights, models, free_bytes, fix=fix)

    def session(self, max_tokens: Tokens) -> Session:
        """A session for texts of at most `max_tokens` tokens, prompt included."""
        return Session(self.target, None if self.geometry.kind == "self" else self.draft, max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(ModelPair):
    """A target and its draft with the tokenizer that they share."""

    tokenizer: PreTrainedTokenizerFast
    tokenizer_sha256: str
    eos_token_id: int | None
    exits: DraftExits

    @property
    def exits_label(self) -> str:
        """`exits 1/2/4/6 (s2d.json)`: the exits and their source."""
        return self.exits.label


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRequest:
    """Which target and draft to load, and how they compute."""

    target: str
    """A model folder, a name of the reference family, or `org/name` on the Hugging Face hub."""
    draft: str
    """The same, or `SELF_DRAFT` for the target's own first layers."""
    dtype: Dtype
    device: str
    """torch's name: `cpu`, `cuda`, `cuda:1`."""
    exits: RequestedExits | None = None
    """The draft's exits; None takes those of its folder, or its full depth."""
    mode: LaunchMode = "eager"
    """How passes are launched. Several processes launch eagerly."""
    kernels: Kernels = STANDARD_KERNELS
    shares_draft: bool = False
    """Whether several processes share a separate draft; otherwise rank 0 holds all of it."""

    @property
    def is_self_draft(self) -> bool:
        """Whether the target drafts for itself."""
        return self.draft == SELF_DRAFT

    def with_folders(self) -> "PairRequest":
        """The same request with each model as a local folder; downloads those of the hub."""
        draft = self.draft if self.is_self_draft else str(find_model(self.draft))
        return replace(self, target=str(find_model(self.target)), draft=draft)


def load_pair(request: PairRequest, ranks: Ranks | None = None, *, free_bytes: FreeBytes | None = None) -> Pair:
    """Load a target and a draft that share a tokenizer. Their heads may be padded differently.

    Args:
        request: which models, and how they compute.
        ranks: the processes started by torchrun, which share the target; None for one process.
        free_bytes: returns the free memory of a device; None queries the device.

    Raises:
        Mismatch: the tokenizers differ.
        BadPolicy: the draft has no such exits.
        UserInputError: a self-draft without exits, too little memory, or a model that the processes cannot share.
    """
    request = request.with_folders()
    target_folder, dtype, device, kernels = find_model(request.target), request.dtype, request.device, request.kernels
    exits, models = draft_exits(request), pair_placement(request, ranks)
    dtype_hint = "--dtype bf16, " if dtype == "fp32" else ""
    fix = f"Use a device with more memory, {dtype_hint}a smaller model, or more processes that share the target (torchrun)."
    check_memory(memory_need(models, None, reads_files=True), models, free_bytes, fix=fix)
    load = partial(load_model, dtype=dtype, device=device, mode=request.mode, kernels=kernels)
    load_request = LoadRequest(model_id=TARGET, folder=str(target_folder), dtype=dtype, device=device, kernels=kernels.label)
    target = load_sharded(load_request, ranks) if ranks else load(target_folder)
    tokenizer = load_tokenizer(target_folder)
    draft = target
    if not request.is_self_draft:
        draft_folder = find_model(request.draft)
        check_same_vocabulary(load_tokenizer(draft_folder), tokenizer)
        num_tokens = target.decoder.vocab_size
        if ranks and request.shares_draft:
            draft_request = replace(load_request, model_id=DRAFT, folder=str(draft_folder), num_tokens=num_tokens)
            draft = load_sharded(draft_request, ranks)
        else:
            draft = with_target_vocab(load(draft_folder), num_tokens)
    draft = replace(draft, exit_layers=exits.layers, calibration=exits.calibration)
    return Pair(
        target=draft if request.is_self_draft else target,
        draft=draft,
        geometry=replace(models.draft, model=draft.geometry),
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        device=torch.device(device),
        exits=exits,
    )


def draft_exits(request: PairRequest) -> DraftExits:
    """The exits of the draft; for a self-draft, those of the target (`find_exits`)."""
    folder = find_model(request.target if request.is_self_draft else request.draft)
    return find_exits(folder, read_geometry_with_head(folder).num_layers, request.exits, is_self=request.is_self_draft)


def pair_placement(request: PairRequest, ranks: Ranks | None = None) -> PairPlacement:
    """The shapes of a pair and the devices it uses, read without its weights."""
    target = read_geometry_with_head(find_model(request.target))
    model = target if request.is_self_draft else read_geometry_with_head(find_model(request.draft))
    kind: DraftKind = "self" if request.is_self_draft else "separate"
    num_ranks = ranks.num_ranks if ranks else 1
    return PairPlacement(
        target=target,
        draft=DraftGeometry(kind=kind, model=model, exit_layers=draft_exits(request).layers),
        dtype=request.dtype,
        device=torch.device(request.device),
        mode=request.mode,
        target_ranks=num_ranks,
        draft_ranks=num_ranks if request.is_self_draft or request.shares_draft else 1,
    )
