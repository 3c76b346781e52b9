"""Latency of drafts of one size in other shapes, and the tokens per round they need.

The latency of a draft, and so its depth, decides the gain from speculation ("Decoding Speculative Decoding", arXiv
2402.01528). A layer costs its launches or its overhead at any width, so of two drafts with equally many weights the
shallower is faster. The latency law does not predict how much agreement a shallower draft loses. Every shape therefore has a
break-even: the tokens per round it needs to beat plain decoding, and to keep up with the fastest shape. A given draft has a
break-even at every draft length. A round of K drafted tokens yields at most K + 1 tokens, so a larger break-even is impossible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from calibrate.inputs.device import resolve_device
from calibrate.inputs.draft import Draft, resolve_draft
from calibrate.inputs.requests import DeviceRequest, check_counts
from calibrate.inputs.target import Target, resolve_target
from calibrate.planning.draft_geometries import candidate_geometries
from calibrate.pricing.datasheet import num_devices_for
from calibrate.pricing.draft_placement import drafted_token_s
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Bytes, Seconds, Tokens, format_bytes, format_number
from perfmodel.hardware.hardware import Hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import unpublished_note
from perfmodel.models.geometry import DraftGeometry, ModelGeometry, with_reduced_head
from perfmodel.passes.device_key import DeviceKey, LaunchMode
from perfmodel.passes.flops_bytes import PassSetting, kv_bytes_per_token, kv_cache_bytes
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import WeightFormat, model_weight_bytes
from perfmodel.results.draft_shapes import DraftedTarget, DraftLength, DraftLengths, DraftShape, DraftShapes

DEFAULT_DRAFT_TOKENS = 5
DEFAULT_CONTEXT_TOKENS: Tokens = 768
DRAFT_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
"""Draft lengths at which a given draft is priced."""
MAX_PARAMS = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesRequest:
    """The target of a draft, and where both run."""

    target: str | ModelGeometry
    """A name, a path or `org/name` as for a plan, or shapes."""
    draft_vocab: Tokens | None = None
    """Tokens in the draft's LM head. None: the whole vocabulary."""
    context_tokens: Tokens = DEFAULT_CONTEXT_TOKENS
    """Cached tokens."""
    device: DeviceRequest = field(default_factory=DeviceRequest)

    def __post_init__(self) -> None:
        check_counts({"--context-tokens": self.context_tokens})


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSetting:
    """A target on its devices. A draft for it runs whole on one of them."""

    target: ModelGeometry
    hardware: Hardware
    num_devices: int
    dtype: Dtype
    """Of models that are not stored otherwise."""
    mode: LaunchMode
    context_tokens: Tokens
    stored_target: WeightFormat | None = None
    """How the files of the target store it. None: plain."""
    stored_draft: WeightFormat | None = None
    """How the files of a given draft store it. None: plain."""

    @property
    def target_weights(self) -> WeightFormat:
        """Weight format of the target."""
        return self.stored_target or dtype_format(self.dtype, self.target)

    def draft_weights(self, geometry: ModelGeometry) -> WeightFormat:
        """Weight format of a draft."""
        return self.stored_draft or dtype_format(self.dtype, geometry)


def draft_shapes(
    target: str | ModelGeometry,
    *,
    params: float,
    draft_vocab: Tokens | None = None,
    draft_tokens: Tokens = DEFAULT_DRAFT_TOKENS,
    context_tokens: Tokens = DEFAULT_CONTEXT_TOKENS,
    device: str | None = None,
    num_devices: int | None = None,
    dtype: Dtype | None = None,
    mode: LaunchMode | None = None,
) -> DraftShapes:
    """Drafts of one size in several shapes: time per drafted token, and tokens per round needed to beat plain decoding.

    `s2d-plan design --params` calls the same code.

    Args:
        target: a name, a path or `org/name` as for a plan, or a `ModelGeometry`.
        params: weights of the draft, embeddings and LM head included.
        draft_vocab: tokens in the draft's LM head. None: the whole vocabulary.
        draft_tokens: drafted in a round.
        context_tokens: cached tokens.
        device: a known name, `cpu`, or a `.toml` or `.json` file. None: the GPU of this machine, else an A100.
        num_devices: tensor-parallel degree of the target; the draft runs on one device. None: the fewest that hold the target.
        dtype: of the weights. None: as the files store them, else the device's default.
        mode: `eager` or `graph`. None: the device's default.

    Returns:
        Every shape, fastest first; times in seconds.

    Raises:
        UserInputError: an unknown name, a number below 1, or a size that no shape has.

    Example:
        >>> fastest = s2d.draft_shapes("llama-2-70b", params=1.3e9, device="h100").shapes[0]
        >>> fastest.can_pay
        True
    """
    device_request = DeviceRequest(device=device, num_devices=num_devices, dtype=dtype, mode=mode)
    request = ShapesRequest(target=target, draft_vocab=draft_vocab, context_tokens=context_tokens, device=device_request)
    return make_draft_shapes(request, params, draft_tokens)


def draft_lengths(
    target: str | ModelGeometry,
    *,
    draft: str,
    draft_vocab: Tokens | None = None,
    lengths: Iterable[Tokens] = DRAFT_LENGTHS,
    context_tokens: Tokens = DEFAULT_CONTEXT_TOKENS,
    device: str | None = None,
    num_devices: int | None = None,
    dtype: Dtype | None = None,
    mode: LaunchMode | None = None,
) -> DraftLengths:
    """One draft at several draft lengths: time of a round, and tokens per round needed to beat plain decoding.

    `s2d-plan design --draft` calls the same code.

    Args:
        target: as for `draft_shapes`.
        draft: a known draft, or anything that names a target.
        draft_vocab: as for `draft_shapes`.
        lengths: tokens drafted in a round.
        context_tokens: cached tokens.
        device: as for `draft_shapes`.
        num_devices: as for `draft_shapes`.
        dtype: as for `draft_shapes`.
        mode: as for `draft_shapes`.

    Returns:
        Every draft length in the order given; times in seconds.

    Raises:
        UserInputError: an unknown name, or a number below 1.

    Example:
        >>> s2d.draft_lengths("llama-3.1-70b", draft="llama-3.2-1b", device="h100").lengths[0].can_pay
        True
    """
    device_request = DeviceRequest(device=device, num_devices=num_devices, dtype=dtype, mode=mode)
    request = ShapesRequest(target=target, draft_vocab=draft_vocab, context_tokens=context_tokens, device=device_request)
    return make_draft_lengths(request, draft, lengths)


def make_draft_shapes(request: ShapesRequest, params: float, draft_tokens: Tokens) -> DraftShapes:
    """Resolve a request and price every shape of a size.

    Args:
        request: target, head, context and device.
        params: weights of the draft.
        draft_tokens: drafted in a round.

    Raises:
        UserInputError: see `draft_shapes`.
    """
    check_counts({"--draft-tokens": draft_tokens})
    if not 1 <= params < MAX_PARAMS:
        raise UserInputError(f"--params {params:g}: expected a number of weights, such as 350e6.")
    setting = _resolve_setting(request, _resolve_target(request), None)
    _check_context(setting, draft_tokens)
    return shapes_of_size(setting, round(params), request.draft_vocab, draft_tokens)


def make_draft_lengths(request: ShapesRequest, draft: str, lengths: Iterable[Tokens]) -> DraftLengths:
    """Resolve a request and price one draft at several draft lengths.

    Args:
        request: target, head, context and device.
        draft: its name or path.
        lengths: tokens drafted in a round.

    Raises:
        UserInputError: see `draft_lengths`.
    """
    lengths = tuple(lengths)
    if not lengths:
        raise UserInputError("no draft length is given: expected at least one, such as lengths=(4, 8).")
    for length in lengths:
        check_counts({"--draft-tokens": length})
    target = _resolve_target(request)
    given = resolve_draft(draft, request.draft_vocab, reads_format=request.device.dtype is None)
    setting = _resolve_setting(request, target, given)
    _check_context(setting, max(lengths))
    return priced_lengths(given.geometry, setting, lengths)


def _resolve_target(request: ShapesRequest) -> Target:
    if isinstance(request.target, ModelGeometry):
        return Target(text=request.target.name, geometry=request.target, stored=None)
    return resolve_target(request.target, reads_format=request.device.dtype is None)


def _resolve_setting(request: ShapesRequest, target: Target, draft: Draft | None) -> DraftSetting:
    """The target on the fewest devices that hold it, unless their number was requested."""
    device = resolve_device(request.device)
    weights = target.stored or dtype_format(device.dtype, target.geometry)
    needed_bytes = model_weight_bytes(target.geometry, weights)
    needed_bytes += kv_cache_bytes(target.geometry, weights, request.context_tokens)
    return DraftSetting(
        target=target.geometry,
        hardware=device.hardware,
        num_devices=num_devices_for(target.geometry, device, needed_bytes),
        dtype=device.dtype,
        mode=device.mode,
        context_tokens=request.context_tokens,
        stored_target=target.stored,
        stored_draft=None if draft is None else draft.stored,
    )


def _check_context(setting: DraftSetting, draft_tokens: Tokens) -> None:
    limit = setting.target.max_context_tokens
    if setting.context_tokens + draft_tokens > limit:
        raise UserInputError(
            f"--context-tokens {setting.context_tokens} and {draft_tokens} drafted tokens: expected at most the {limit} tokens "
            f"of context of {setting.target.name}. Give fewer."
        )


def shapes_of_size(
    setting: DraftSetting,
    num_params: int,
    draft_vocab: Tokens | None = None,
    draft_tokens: Tokens = DEFAULT_DRAFT_TOKENS,
) -> DraftShapes:
    """Every shape of a size.

    Raises:
        UserInputError: no shape has that size, or the vocabulary has fewer tokens than the head.
    """
    target = setting.target
    head_vocab_size = with_reduced_head(target, draft_vocab).head_vocab_size
    geometries = list(candidate_geometries(target, num_params, head_vocab_size))
    if not geometries:
        raise UserInputError(
            f"--params {format_number(num_params)}: no draft with {target.name}'s {target.vocab_size} tokens has so few or so "
            "many weights. Give a size between its embeddings and the target."
        )
    plain_s = plain_token_s(setting)
    token_s = [draft_token_s(geometry, setting) for geometry in geometries]
    round_s = [_round_s(seconds, setting, draft_tokens) for seconds in token_s]
    shapes = [
        DraftShape(
            geometry=geometry,
            token_s=shape_token_s,
            kv_bytes_per_token=round(kv_bytes_per_token(geometry, dtype_format(setting.dtype, geometry))),
            break_even_tokens=shape_round_s / plain_s,
            over_fastest=shape_round_s / min(round_s),
            can_pay=shape_round_s / plain_s < draft_tokens + 1,
            is_frontier=all(
                other_s >= shape_token_s
                for other, other_s in zip(geometries, token_s, strict=True)
                if other.num_layers >= geometry.num_layers
            ),
        )
        for geometry, shape_token_s, shape_round_s in zip(geometries, token_s, round_s, strict=True)
    ]
    return DraftShapes(
        target=_drafted_target(setting),
        num_params=num_params,
        draft_tokens=draft_tokens,
        shapes=tuple(sorted(shapes, key=lambda shape: shape.token_s)),
    )


def priced_lengths(draft: DraftGeometry, setting: DraftSetting, lengths: Iterable[Tokens]) -> DraftLengths:
    """One draft at several draft lengths.

    Args:
        draft: its real shapes.
        setting: its target and devices.
        lengths: tokens drafted in a round.
    """
    plain_s, token_s = plain_token_s(setting), draft_token_s(draft.model, setting)
    priced = [(length, _round_s(token_s, setting, length)) for length in lengths]
    return DraftLengths(
        target=_drafted_target(setting),
        draft=draft,
        draft_weights=setting.draft_weights(draft.model),
        token_s=token_s,
        lengths=tuple(
            DraftLength(
                draft_tokens=length,
                round_s=round_s,
                break_even_tokens=round_s / plain_s,
                can_pay=round_s / plain_s < length + 1,
            )
            for length, round_s in priced
        ),
        notes=tuple(_draft_notes(draft, setting)),
    )


def _drafted_target(setting: DraftSetting) -> DraftedTarget:
    device = DeviceKey(
        device=setting.hardware.name,
        num_devices=setting.num_devices,
        num_threads=None,
        dtype=setting.dtype,
        mode=setting.mode,
    )
    return DraftedTarget(
        model=setting.target,
        weights=setting.target_weights,
        device=device,
        context_tokens=setting.context_tokens,
        plain_token_s=plain_token_s(setting),
    )


def _draft_notes(draft: DraftGeometry, setting: DraftSetting) -> Iterator[str]:
    """Reasons why a draft may not run with its target, and how to train one that is not published."""
    model, target, memory_bytes = draft.model, setting.target, setting.hardware.memory_bytes
    if model.vocab_size != target.vocab_size:
        yield (
            f"the draft's vocabulary has {model.vocab_size} tokens, the target's {target.vocab_size}. A draft needs the "
            "target's tokenizer; only unused rows may differ"
        )
    if model.num_params >= target.num_params:
        yield "the draft is not smaller than its target"
    if setting.context_tokens >= model.max_context_tokens:
        yield f"the draft's context ends at {model.max_context_tokens} tokens"
    needed_bytes = _first_device_bytes(model, setting)
    if memory_bytes is not None and needed_bytes > memory_bytes:
        yield (
            f"the draft and its share of the target take {format_bytes(needed_bytes)}, and one {setting.hardware.name} holds "
            f"{format_bytes(memory_bytes)}. Give more --num-devices, a larger --device or a smaller --dtype"
        )
    if (note := unpublished_note(draft)) is not None:
        yield note


def _first_device_bytes(draft: ModelGeometry, setting: DraftSetting) -> Bytes:
    """Bytes on the device that holds the whole draft and its share of the target, caches included."""
    shares = (
        (draft, setting.draft_weights(draft), 1),
        (setting.target, setting.target_weights, setting.num_devices),
    )
    return round(
        sum(
            (model_weight_bytes(model, weights) + kv_cache_bytes(model, weights, setting.context_tokens)) / num_shares
            for model, weights, num_shares in shares
        )
    )


def plain_token_s(setting: DraftSetting) -> Seconds:
    """Time of one token of plain decoding."""
    return _target_s(setting, draft_tokens=0)


def _round_s(token_s: Seconds, setting: DraftSetting, draft_tokens: Tokens) -> Seconds:
    """Time of a round whose drafted tokens take `token_s` each."""
    return draft_tokens * token_s + _target_s(setting, draft_tokens=draft_tokens)


def _target_s(setting: DraftSetting, *, draft_tokens: Tokens) -> Seconds:
    """Time of a round without its drafting: verification and the host's work."""
    passes = PassSetting(
        model=setting.target,
        weights=setting.target_weights,
        num_devices=setting.num_devices,
        context_tokens=setting.context_tokens,
    )
    target = RooflineLatency(passes, setting.hardware, setting.mode)
    verify, host = target.line("verify", 0, draft_tokens + 1), target.line("round", 0, draft_tokens)
    return verify.at(setting.context_tokens) + host.at(setting.context_tokens)


def draft_token_s(geometry: ModelGeometry, setting: DraftSetting) -> Seconds:
    """Time to draft one token on one device: one segment of all layers, and one exit check."""
    passes = PassSetting(model=geometry, exit_layers=(geometry.num_layers,), weights=setting.draft_weights(geometry))
    latency = RooflineLatency(passes, setting.hardware, setting.mode)
    return drafted_token_s(latency, 1, setting.context_tokens)


def token_s_by_depth(shapes: Iterable[DraftShape]) -> dict[int, Seconds]:
    """Time of a drafted token of the fastest shape at every depth."""
    fastest: dict[int, Seconds] = {}
    for shape in shapes:
        depth = shape.geometry.num_layers
        fastest[depth] = min(shape.token_s, fastest.get(depth, shape.token_s))
    return fastest
