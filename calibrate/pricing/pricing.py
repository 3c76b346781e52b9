"""Pricing: a pair of models, their weight formats, and the cost of their passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from perfmodel.core.units import Tokens
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.engine_profile import EngineSetting
from perfmodel.engines.round_shape import DEFAULT_SHAPE
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.flops_bytes import kv_cache_bytes
from perfmodel.policies.policy import Policy
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import WeightFormat, model_weight_bytes
from perfmodel.results.plan import Evidence, Memory


class Pair(Protocol):
    """A draft and its target, as the header of a trace and a plan name them; a hash is None if the weights are not known."""

    @property
    def draft(self) -> DraftGeometry:
        """Shapes and exits."""
        ...

    @property
    def draft_sha256(self) -> str | None:
        """Hash of its weights."""
        ...

    @property
    def target(self) -> ModelGeometry:
        """Shapes."""
        ...

    @property
    def target_sha256(self) -> str | None:
        """Hash of its weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWeights:
    """How the weights of a draft and its target are stored."""

    draft: WeightFormat
    target: WeightFormat


class PriceAtBatch(Protocol):
    """Prices of larger batches."""

    def __call__(self, batch: int, *, context_tokens: Tokens) -> tuple[LatencyModel, LatencyModel]:
        """Latency models of draft and target with this number of sequences in every pass, at a context."""
        ...


class PriceForPolicy(Protocol):
    """Prices with the error that holds for one policy."""

    def __call__(self, policy: Policy | None) -> tuple[LatencyModel, LatencyModel]:
        """Latency models of draft and target for a policy; None is plain decoding."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """Latency models of a draft and its target on one device, and the evidence for them."""

    draft: LatencyModel
    target: LatencyModel
    device: DeviceKey
    draft_num_devices: int
    """All of the devices, or 1."""
    weights: PairWeights
    memory: Memory
    evidence: tuple[Evidence, ...]
    at_batch: PriceAtBatch | None = None
    """None: only single sequences were measured."""
    round_shape: RoundShape = DEFAULT_SHAPE
    """Passes of a round of the engine, where they differ from those of the bundled runtime."""
    for_policy: PriceForPolicy | None = None
    """None: the error of the prices is the same for all policies."""
    engine_setting: EngineSetting | None = None
    """How the engine was profiled; None if it was not."""

    def models_for(self, policy: Policy | None) -> tuple[LatencyModel, LatencyModel]:
        """Latency models of draft and target for a policy."""
        return (self.draft, self.target) if self.for_policy is None else self.for_policy(policy)


def pair_weights(draft: DraftGeometry, target: ModelGeometry, dtype: Dtype, stored: WeightFormat | None = None) -> PairWeights:
    """Weight formats of both models. A self-draft has its target's.

    Args:
        draft: its shapes.
        target: its shapes.
        dtype: of both models.
        stored: how the target's files store it; takes the place of the dtype.
    """
    target_weights = stored or dtype_format(dtype, target)
    draft_weights = target_weights if draft.kind == "self" else dtype_format(dtype, draft.model)
    return PairWeights(draft=draft_weights, target=target_weights)


def memory_needed(
    draft: DraftGeometry, target: ModelGeometry, weights: PairWeights, *, context_tokens: Tokens, capacity_bytes: int | None
) -> Memory:
    """Bytes of weights and KV caches on all devices at a context. A self-draft has its target's weights and cache."""
    is_separate = draft.kind == "separate"
    return Memory(
        target_weight_bytes=model_weight_bytes(target, weights.target),
        draft_weight_bytes=model_weight_bytes(draft.model, weights.draft) if is_separate else 0,
        target_kv_bytes=kv_cache_bytes(target, weights.target, context_tokens),
        draft_kv_bytes=kv_cache_bytes(draft.model, weights.draft, context_tokens) if is_separate else 0,
        capacity_bytes=capacity_bytes,
    )


def target_exits(draft: DraftGeometry) -> tuple[int, ...]:
    """Layers that cut a target into segments: a self-draft's exits, above the last of which verification starts."""
    return draft.exit_layers if draft.kind == "self" else ()
