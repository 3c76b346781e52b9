"""Choose where a draft runs when its target has several devices.

On all devices, each reads its share of the weights, and every pass pays for the all-reduces. On the first, one device reads
all of the weights while the others wait. Both draft and accept the same tokens, so the faster placement is better for every
policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Bytes, Seconds, Tokens
from perfmodel.hardware.hardware import MEMORY_HEADROOM_FRAC
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.models.geometry import DraftGeometry, ModelGeometry, check_degree, tensor_parallel_degrees
from perfmodel.quantisation.weight_format import WeightFormat, embedding_bytes
from perfmodel.results.plan import Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A pair on some devices, as the runtime splits it."""

    draft: DraftGeometry
    target: ModelGeometry
    draft_weights: WeightFormat
    target_weights: WeightFormat
    num_devices: int
    draft_num_devices: int
    """All of them, or 1."""

    def fits(self, memory: Memory) -> bool:
        """Whether both models split into equal shares, and the first device holds its shares with some memory to spare.

        Args:
            memory: of the pair with these weights, all devices together.
        """
        splits = ((self.target, self.num_devices), (self.draft.model, self.draft_num_devices))
        if any(degree not in tensor_parallel_degrees(model) for model, degree in splits):
            return False
        if memory.capacity_bytes is None:
            return True
        usable_bytes = memory.capacity_bytes / self.num_devices * (1 - MEMORY_HEADROOM_FRAC)
        return self._first_device_bytes(memory) <= usable_bytes

    def _first_device_bytes(self, memory: Memory) -> float:
        target_bytes = memory.target_weight_bytes + memory.target_kv_bytes
        needed_bytes = _share_bytes(embedding_bytes(self.target, self.target_weights), target_bytes, self.num_devices)
        if self.draft.kind == "separate":
            draft_bytes = memory.draft_weight_bytes + memory.draft_kv_bytes
            draft_embedding_bytes = embedding_bytes(self.draft.model, self.draft_weights)
            needed_bytes += _share_bytes(draft_embedding_bytes, draft_bytes, self.draft_num_devices)
        return needed_bytes


def _share_bytes(embedding_bytes: float, model_bytes: Bytes, num_shares: int) -> float:
    """A device's share of a model. Every device has the whole embedding."""
    return embedding_bytes + (model_bytes - embedding_bytes) / num_shares


def choose_draft_devices(
    placement: Placement,
    memory: Memory,
    latency_on: Callable[[int], LatencyModel],
    context_tokens: Tokens,
    *,
    requested: int | None,
) -> int:
    """The number of devices for a draft: the requested number, else 1 or all, whichever fits and drafts a token faster.

    If neither fits, the pair cannot run. It is then priced with a shared draft, or with a whole one if the draft cannot be
    shared.

    Args:
        placement: the pair with the whole draft on the first device.
        memory: of the pair, all devices together.
        latency_on: number of devices -> latency model of the draft.
        context_tokens: at which the token is drafted.
        requested: None: choose the number.

    Raises:
        UserInputError: the runtime cannot place the draft on the requested number.
    """
    if requested is not None:
        _check_requested(placement.draft, requested, placement.num_devices)
        return requested
    if placement.draft.kind == "self" or placement.num_devices == 1:
        return placement.num_devices
    fitting = [number for number in (1, placement.num_devices) if replace(placement, draft_num_devices=number).fits(memory)]
    exits = len(placement.draft.exit_layers)
    can_share = placement.num_devices in tensor_parallel_degrees(placement.draft.model)
    return min(
        fitting,
        key=lambda number: drafted_token_s(latency_on(number), exits, context_tokens),
        default=placement.num_devices if can_share else 1,
    )


def _check_requested(draft: DraftGeometry, draft_num_devices: int, num_devices: int) -> None:
    """Refuse a number that is neither 1 nor all of the target's devices, or that cannot share the draft.

    A self-draft runs on all of its target's devices.
    """
    allowed = [num_devices] if draft.kind == "self" else sorted({1, num_devices})
    if draft_num_devices not in allowed:
        expected = " or ".join(map(str, allowed))
        raise UserInputError(
            f"draft {draft.model.name} on {draft_num_devices} of {num_devices} devices: expected {expected}. Give "
            f"--draft-num-devices {allowed[0]}."
        )
    check_degree(draft.model, draft_num_devices, noun="devices", fix="Give --draft-num-devices 1")


def drafted_token_s(draft: LatencyModel, num_exits: int, context_tokens: Tokens) -> Seconds:
    """Time of a drafted token that passes all segments and only the last exit."""
    segments_s = sum(draft.line("segment", stage, 1).at(context_tokens) for stage in range(num_exits))
    return segments_s + draft.line("exit", num_exits - 1, 1).at(0)
