"""The seconds a plan rests on, and their price by a device's datasheet (by profiles and fits: `calibrate.pricing.measured_pricing`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from calibrate.inputs.choose_device import choose_device, datasheet_evidence, named_device
from calibrate.inputs.requests import DeviceRequest
from calibrate.pricing.draft_placement import Placement, choose_draft_devices
from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.core.units import Tokens, format_bytes
from perfmodel.hardware.hardware import Hardware, num_devices_to_fit
from perfmodel.latency.latency_model import LatencyModel, RooflineLatency
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import DraftGeometry, ModelGeometry, check_degree, tensor_parallel_degrees
from perfmodel.passes.device_key import DeviceKey, EngineMode
from perfmodel.passes.flops_bytes import PassSetting, kv_cache_bytes
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import WeightFormat, model_weight_bytes
from perfmodel.results.plan import Evidence, Memory


class Pair(Protocol):
    """A draft and its target, as a trace's header and a plan name them: shapes, and weights where they are known."""

    @property
    def draft(self) -> DraftGeometry:
        """Its shapes and exits."""
        ...

    @property
    def draft_sha256(self) -> str | None:
        """Its weights."""
        ...

    @property
    def target(self) -> ModelGeometry:
        """Its shapes."""
        ...

    @property
    def target_sha256(self) -> str | None:
        """Its weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWeights:
    """How the weights of a draft and its target are stored."""

    draft: WeightFormat
    target: WeightFormat


def pair_weights(draft: DraftGeometry, target: ModelGeometry, dtype: Dtype, stored: WeightFormat | None = None) -> PairWeights:
    """Both models in a dtype, or the target as its files store it; a self-draft is the target.

    Args:
        draft: its shapes.
        target: its shapes.
        dtype: asked for, or the device's own.
        stored: how the target's files store it, where they are to be priced as they are.
    """
    of_target = stored or dtype_format(dtype, target)
    return PairWeights(target=of_target, draft=of_target if draft.kind == "self" else dtype_format(dtype, draft.model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """Latency models of a draft and its target on one device, and what they rest on."""

    draft: LatencyModel
    target: LatencyModel
    device: DeviceKey
    draft_num_devices: int
    """See `Plan`."""
    weights: PairWeights
    memory: Memory
    evidence: tuple[Evidence, ...]
    at_batch: Callable[[int, Tokens], tuple[LatencyModel, LatencyModel]] | None = None
    """Both with so many sequences in every pass, at a context; None where only single sequences were measured."""


def price_by_datasheet(
    pair: Pair, request: DeviceRequest, *, context_tokens: Tokens, stored: PairWeights | WeightFormat | None = None
) -> Pricing:
    """Roofline prices on a known device, on as few of them as hold both models unless their number was asked for.

    Args:
        pair: the models.
        request: what was asked of the device.
        context_tokens: in the caches at the end.
        stored: how the target's files store it, or both models as they were priced before; None for the request's dtype.

    Raises:
        UnknownName: the device is in no table.
        UserInputError: the device lacks the dtype or engine mode, or the models do not fit on the devices asked for.
    """
    chosen = choose_device(request.device)
    hardware, dtype, engine = chosen.hardware, *_modes(chosen.hardware, request)
    weights = stored if isinstance(stored, PairWeights) else pair_weights(pair.draft, pair.target, dtype, stored)
    needed = memory_needed(pair.draft, pair.target, weights, context_tokens=context_tokens, capacity_bytes=None)
    num_devices = _num_devices(pair.target, hardware, request, needed.total_bytes)
    check_draft_degree(pair.draft, request.draft_num_devices, num_devices)
    memory = memory_needed(
        pair.draft, pair.target, weights, context_tokens=context_tokens, capacity_bytes=num_devices * hardware.memory_bytes
    )
    _check_fit(pair.target, memory, hardware, num_devices, weights.target)

    def draft_on(number: int, batch: int, context: Tokens) -> LatencyModel:
        setting = PassSetting(
            model=pair.draft.model,
            exit_layers=pair.draft.exit_layers,
            weights=weights.draft,
            batch=batch,
            num_devices=number,
            context_tokens=context,
        )
        return RooflineLatency(setting, hardware, engine)

    draft_num_devices = request.draft_num_devices or choose_draft_devices(
        Placement(
            draft=pair.draft,
            target=pair.target,
            draft_weights=weights.draft,
            target_weights=weights.target,
            num_devices=num_devices,
            draft_num_devices=1,
        ),
        memory,
        lambda number: draft_on(number, 1, context_tokens),
        context_tokens,
    )

    def at_batch(batch: int, context: Tokens) -> tuple[LatencyModel, LatencyModel]:
        setting = PassSetting(
            model=pair.target,
            exit_layers=target_exits(pair.draft),
            weights=weights.target,
            batch=batch,
            num_devices=num_devices,
            context_tokens=context,
        )
        return draft_on(draft_num_devices, batch, context), RooflineLatency(setting, hardware, engine)

    draft, target = at_batch(1, context_tokens)
    return Pricing(
        draft=draft,
        target=target,
        device=DeviceKey(
            device=hardware.name, num_devices=num_devices, num_threads=hardware.num_threads, dtype=dtype, engine=engine
        ),
        draft_num_devices=draft_num_devices,
        weights=weights,
        memory=memory,
        evidence=datasheet_evidence(chosen, num_devices, engine),
        at_batch=at_batch,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetDevice:
    """Where a target alone is priced."""

    hardware: Hardware
    num_devices: int
    dtype: Dtype
    """Asked for, or the device's own: that of a draft."""
    engine: EngineMode


def target_device(
    target: ModelGeometry, request: DeviceRequest, *, context_tokens: Tokens, stored: WeightFormat | None = None
) -> TargetDevice:
    """The device asked for or found, and as few of it as hold a target, unless their number was asked for.

    Args:
        target: its shapes.
        request: what was asked of the device.
        context_tokens: in its cache.
        stored: how its files store it; None where it is priced in the request's dtype.

    Raises:
        UnknownName: the device is in no table.
        UserInputError: it lacks the dtype or engine mode, or no number of it holds the target.
    """
    hardware = choose_device(request.device).hardware
    dtype, engine = _modes(hardware, request)
    weights = stored or dtype_format(dtype, target)
    needed_bytes = model_weight_bytes(target, weights) + kv_cache_bytes(target, weights, context_tokens)
    num_devices = _num_devices(target, hardware, request, needed_bytes)
    return TargetDevice(hardware=hardware, num_devices=num_devices, dtype=dtype, engine=engine)


def _num_devices(target: ModelGeometry, hardware: Hardware, request: DeviceRequest, needed_bytes: float) -> int:
    """As many as were asked for, or as few as hold some bytes, that can share the target.

    Raises:
        UserInputError: so many cannot share it.
        OutOfDomain: none that can are enough.
    """
    if request.num_devices is None:
        return num_devices_to_fit(hardware, needed_bytes, degrees=tensor_parallel_degrees(target))
    fix = "Give one of these as --num-devices, or leave it out"
    check_degree(target, request.num_devices, noun="devices", fix=fix, max_degree=hardware.max_devices)
    return request.num_devices


def check_draft_degree(draft: DraftGeometry, draft_num_devices: int | None, num_devices: int) -> None:
    """Refuse a place for a draft where the runtime cannot have it.

    Args:
        draft: a self-draft is where its target is.
        draft_num_devices: asked for; None where that is left open.
        num_devices: of the target.

    Raises:
        UserInputError: it is neither one device nor all of the target's, or so many cannot share the draft.
    """
    if draft_num_devices is None:
        return
    places = [num_devices] if draft.kind == "self" else sorted({1, num_devices})
    if draft_num_devices not in places:
        expected = " or ".join(map(str, places))
        raise UserInputError(
            f"draft {draft.model.name} on {draft_num_devices} of {num_devices} devices: expected {expected}. Give "
            f"--draft-num-devices {places[0]}."
        )
    check_degree(draft.model, draft_num_devices, noun="devices", fix="Give --draft-num-devices 1")


def _modes(hardware: Hardware, request: DeviceRequest) -> tuple[Dtype, EngineMode]:
    """The dtype and engine mode asked for, or the device's own; refused where it has none such."""
    dtype, engine = request.dtype or hardware.default_dtype, request.engine or hardware.default_engine
    hardware.compute_dtype(dtype)
    hardware.engine_costs(engine)
    return dtype, engine


def target_exits(draft: DraftGeometry) -> tuple[int, ...]:
    """A self-draft's target starts to verify above its last exit."""
    return draft.exit_layers if draft.kind == "self" else ()


def memory_needed(
    draft: DraftGeometry, target: ModelGeometry, weights: PairWeights, *, context_tokens: Tokens, capacity_bytes: int | None
) -> Memory:
    """Bytes of weights and caches at a context; a self-draft shares its target's."""
    alone = draft.kind == "separate"
    return Memory(
        target_weight_bytes=model_weight_bytes(target, weights.target),
        draft_weight_bytes=model_weight_bytes(draft.model, weights.draft) if alone else 0,
        target_kv_bytes=kv_cache_bytes(target, weights.target, context_tokens),
        draft_kv_bytes=kv_cache_bytes(draft.model, weights.draft, context_tokens) if alone else 0,
        capacity_bytes=capacity_bytes,
    )


def _check_fit(target: ModelGeometry, memory: Memory, hardware: Hardware, num_devices: int, weights: WeightFormat) -> None:
    capacity = num_devices * hardware.memory_bytes
    if memory.total_bytes > capacity:
        enough = num_devices_to_fit(hardware, memory.total_bytes, degrees=tensor_parallel_degrees(target))
        raise UserInputError(
            f"target, draft and their caches take {format_bytes(memory.total_bytes)} in {weights.label}, and {num_devices} x "
            f"{hardware.name} hold {format_bytes(capacity)}. Give --num-devices {enough}, a larger --device or a smaller "
            "--dtype."
        )


def same_device(one: str, other: str) -> bool:
    """Two names of one kind of device, by their letters, by the table, by a file or as this machine's CPU."""
    if one.casefold() == other.casefold():
        return True
    try:
        hardware, _ = named_device(one)
    except UnknownName:
        return False
    return other.casefold() in hardware.names
