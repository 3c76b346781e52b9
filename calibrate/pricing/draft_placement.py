"""Where a draft runs beside a target on several devices: shared by all of them, or whole on the first.

Shared, it reads a part of its weights on each device and pays for the sums; whole, it reads all of them, and the others wait.
What is drafted and accepted is the same, so the faster draft is the better one, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from perfmodel.core.units import Bytes, Seconds, Tokens
from perfmodel.hardware.hardware import MEMORY_HEADROOM_FRAC
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.models.geometry import DraftGeometry, ModelGeometry, tensor_parallel_degrees
from perfmodel.quantisation.weight_format import WeightFormat, embedding_bytes
from perfmodel.results.plan import Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A pair on some devices, as the runtime would deal it out."""

    draft: DraftGeometry
    target: ModelGeometry
    draft_weights: WeightFormat
    target_weights: WeightFormat
    num_devices: int
    draft_num_devices: int
    """All of them, or 1."""

    def fits(self, memory: Memory) -> bool:
        """Whether all layers can be dealt out in equal shares, and the first device holds its part with some headroom.

        Args:
            memory: of the pair with weights stored so, all devices together.
        """
        dealt = ((self.target, self.num_devices), (self.draft.model, self.draft_num_devices))
        if any(shares not in tensor_parallel_degrees(model) for model, shares in dealt):
            return False
        if memory.capacity_bytes is None:
            return True
        usable_bytes = memory.capacity_bytes / self.num_devices * (1 - MEMORY_HEADROOM_FRAC)
        return self._first_device_bytes(memory) <= usable_bytes

    def _first_device_bytes(self, memory: Memory) -> float:
        of_target = memory.target_weight_bytes + memory.target_kv_bytes
        needed_bytes = _share_bytes(embedding_bytes(self.target, self.target_weights), of_target, self.num_devices)
        if self.draft.kind == "separate":
            of_draft = memory.draft_weight_bytes + memory.draft_kv_bytes
            of_embedding = embedding_bytes(self.draft.model, self.draft_weights)
            needed_bytes += _share_bytes(of_embedding, of_draft, self.draft_num_devices)
        return needed_bytes


def _share_bytes(of_embedding: float, of_model: Bytes, num_shares: int) -> float:
    """The first share of a model, with the embedding, which is not dealt out."""
    return of_embedding + (of_model - of_embedding) / num_shares


def choose_draft_devices(
    whole: Placement, memory: Memory, latency_on: Callable[[int], LatencyModel], context_tokens: Tokens
) -> int:
    """How many devices a draft is to run on: of one and all, those that fit and draft a token sooner.

    Where neither fits, nothing can be run, and the draft is priced as shared, or as whole where it cannot be shared.

    Args:
        whole: the pair, its draft whole on the first device.
        memory: of the pair, all devices together.
        latency_on: the draft's passes on so many devices.
        context_tokens: at which the token is drafted.
    """
    if whole.draft.kind == "self" or whole.num_devices == 1:
        return whole.num_devices
    fitting = [number for number in (1, whole.num_devices) if replace(whole, draft_num_devices=number).fits(memory)]
    exits = len(whole.draft.exit_layers)
    can_share = whole.num_devices in tensor_parallel_degrees(whole.draft.model)
    return min(
        fitting,
        key=lambda number: drafted_token_s(latency_on(number), exits, context_tokens),
        default=whole.num_devices if can_share else 1,
    )


def drafted_token_s(draft: LatencyModel, num_exits: int, context_tokens: Tokens) -> Seconds:
    """Seconds of a token that passes all segments and is answered by the last exit alone."""
    segments_s = sum(draft.line("segment", stage, 1).at(context_tokens) for stage in range(num_exits))
    return segments_s + draft.line("exit", num_exits - 1, 1).at(0)
