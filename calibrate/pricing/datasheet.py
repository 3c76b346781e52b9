"""Price a pair by a device's datasheet and public kernel times."""

from __future__ import annotations

from dataclasses import replace

from calibrate.inputs.device import Device
from calibrate.pricing.draft_placement import Placement, choose_draft_devices
from calibrate.pricing.pricing import Pair, PairWeights, Pricing, memory_needed, target_exits
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens, format_bytes, format_frac
from perfmodel.hardware.hardware import Hardware, num_devices_to_fit
from perfmodel.latency.latency_model import LatencyModel, RooflineLatency
from perfmodel.models.geometry import ModelGeometry, check_degree, tensor_parallel_degrees
from perfmodel.passes.device_key import DeviceKey, LaunchMode
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.quantisation.weight_format import WeightFormat
from perfmodel.results.plan import Evidence, EvidenceRole, Memory


def price_by_datasheet(pair: Pair, device: Device, weights: PairWeights, *, context_tokens: Tokens) -> Pricing:
    """Roofline prices of a pair on a device.

    Unless the request fixes them, the number of devices is the smallest that holds both models, and the draft runs where it
    drafts faster.

    Args:
        pair: the models.
        device: resolved.
        weights: how both models are stored.
        context_tokens: cached at the end of the output.

    Raises:
        OutOfDomain: no number of these devices holds the models.
        UserInputError: the models do not fit on the requested number of devices, or cannot be shared by it.
    """
    hardware, mode = device.hardware, device.mode
    memory = memory_needed(pair.draft, pair.target, weights, context_tokens=context_tokens, capacity_bytes=None)
    target_cuts = target_exits(pair.draft)
    num_devices = num_devices_for(pair.target, device, memory.total_bytes)
    memory = replace(memory, capacity_bytes=num_devices * hardware.memory_bytes)
    _check_fits(pair.target, memory, hardware, num_devices, weights.target)

    def draft_latency(degree: int, batch: int, context_tokens: Tokens) -> LatencyModel:
        setting = PassSetting(
            model=pair.draft.model,
            exit_layers=pair.draft.exit_layers,
            weights=weights.draft,
            batch=batch,
            num_devices=degree,
            context_tokens=context_tokens,
        )
        return RooflineLatency(setting, hardware, mode)

    draft_num_devices = choose_draft_devices(
        Placement(
            draft=pair.draft,
            target=pair.target,
            draft_weights=weights.draft,
            target_weights=weights.target,
            num_devices=num_devices,
            draft_num_devices=1,
        ),
        memory,
        lambda degree: draft_latency(degree, 1, context_tokens),
        context_tokens,
        requested=device.draft_num_devices,
    )

    def at_batch(batch: int, *, context_tokens: Tokens) -> tuple[LatencyModel, LatencyModel]:
        setting = PassSetting(
            model=pair.target,
            exit_layers=target_cuts,
            weights=weights.target,
            batch=batch,
            num_devices=num_devices,
            context_tokens=context_tokens,
        )
        return draft_latency(draft_num_devices, batch, context_tokens), RooflineLatency(setting, hardware, mode)

    draft, target = at_batch(1, context_tokens=context_tokens)
    return Pricing(
        draft=draft,
        target=target,
        device=DeviceKey(
            device=hardware.name,
            num_devices=num_devices,
            num_threads=hardware.num_threads,
            dtype=device.dtype,
            mode=mode,
        ),
        draft_num_devices=draft_num_devices,
        weights=weights,
        memory=memory,
        evidence=_evidence(device, num_devices),
        at_batch=at_batch,
    )


def num_devices_for(target: ModelGeometry, device: Device, needed_bytes: float) -> int:
    """The requested number of devices, or the smallest that holds some bytes and can share the target.

    Raises:
        UserInputError: the requested number cannot share it.
        OutOfDomain: no number that can share it is enough.
    """
    hardware = device.hardware
    if device.num_devices is None:
        return num_devices_to_fit(hardware, needed_bytes, degrees=tensor_parallel_degrees(target))
    fix = "Give one of these as --num-devices, or leave it out"
    check_degree(target, device.num_devices, noun="devices", fix=fix, max_degree=hardware.max_devices)
    return device.num_devices


def _check_fits(target: ModelGeometry, memory: Memory, hardware: Hardware, num_devices: int, weights: WeightFormat) -> None:
    capacity_bytes = num_devices * hardware.memory_bytes
    if memory.total_bytes > capacity_bytes:
        enough = num_devices_to_fit(hardware, memory.total_bytes, degrees=tensor_parallel_degrees(target))
        raise UserInputError(
            f"target, draft and their caches take {format_bytes(memory.total_bytes)} in {weights.label}, and {num_devices} x "
            f"{hardware.name} hold {format_bytes(capacity_bytes)}. Give --num-devices {enough}, a larger --device or a smaller "
            "--dtype."
        )


def _evidence(device: Device, num_devices: int) -> tuple[Evidence, ...]:
    """How the device was chosen, unless it was requested by name, and the source of its prices."""
    roles: tuple[EvidenceRole, ...] = ("draft latency", "target latency")
    text = _datasheet_text(device.hardware, device.mode)
    latency = tuple(Evidence(role=role, level="roofline", description=text, sha256=device.sha256) for role in roles)
    if device.choice is None:
        return latency
    description = device.choice.description
    if device.num_present is not None and device.num_present < num_devices:
        description += f"; {num_devices} are needed"
    return (replace(device.choice, description=description), *latency)


def _datasheet_text(hardware: Hardware, mode: LaunchMode) -> str:
    """Sources of a row of the device table, with its error: a datasheet and kernel times, or facts read from a CPU."""
    host_error_frac = hardware.launch_costs(mode).host_error_frac
    error = f"± {format_frac(hardware.error_frac)} (one sigma)"
    error += f"; where launches bind, the host's speed ± {format_frac(host_error_frac)}" if host_error_frac else ""
    if hardware.num_threads is not None:
        return f"{hardware.spec_source}; {hardware.kernels_label}, {error}"
    joint = " and" if hardware.similarity == "itself" else ","
    return f"{hardware.name} datasheet{joint} {hardware.kernels_label}, {error}"
