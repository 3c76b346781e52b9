"""Draft shapes and lengths: the tokens per round that each needs to pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.units import Bytes, Seconds, Tokens
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.quantisation.weight_format import WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedTarget:
    """The target that a draft is for, on its devices."""

    model: ModelGeometry
    weights: WeightFormat
    device: DeviceKey
    context_tokens: Tokens
    """Tokens in the caches."""
    plain_token_s: Seconds
    """One token of plain decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftShape:
    """One shape of a draft."""

    geometry: ModelGeometry
    token_s: Seconds
    """To draft one token: all layers and the head."""
    kv_bytes_per_token: Bytes
    break_even_tokens: float
    """Tokens per round, the target's own included, at which it is as fast as plain decoding."""
    over_fastest: float
    """Tokens per round it needs for each token per round of the fastest shape."""
    can_pay: bool
    """Whether a round can yield more than the break-even."""
    is_frontier: bool
    """Whether no shape at least as deep is faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftShapes(Printable):
    """Drafts of one size in several shapes."""

    target: DraftedTarget
    num_params: int
    """Weights of the draft, embeddings and head included."""
    draft_tokens: Tokens
    """Drafted in a round."""
    shapes: tuple[DraftShape, ...]
    """Fastest first."""

    @property
    def max_round_tokens(self) -> Tokens:
        """The most tokens of a round: every drafted token, and the target's own."""
        return self.draft_tokens + 1

    @property
    def frontier(self) -> tuple[DraftShape, ...]:
        """The fastest shape at each depth, shallow first."""
        shapes = (shape for shape in self.shapes if shape.is_frontier)
        return tuple(sorted(shapes, key=lambda shape: shape.geometry.num_layers))

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The result as blocks of text."""
        from perfmodel.results.draft_shapes_text import draft_shapes_blocks

        return draft_shapes_blocks(self, explain=explain)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftLength:
    """Rounds of one draft length by a given draft."""

    draft_tokens: Tokens
    round_s: Seconds
    break_even_tokens: float
    """Tokens per round, the target's own included, at which it is as fast as plain decoding."""
    can_pay: bool
    """Whether a round can yield more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftLengths(Printable):
    """One draft at several draft lengths."""

    target: DraftedTarget
    draft: DraftGeometry
    draft_weights: WeightFormat
    token_s: Seconds
    """To draft one token on one device."""
    lengths: tuple[DraftLength, ...]
    notes: tuple[str, ...]
    """Reasons why the draft may not run with the target, and how to train one that is not published."""

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The result as blocks of text."""
        from perfmodel.results.draft_shapes_text import draft_lengths_blocks

        return draft_lengths_blocks(self, explain=explain)
