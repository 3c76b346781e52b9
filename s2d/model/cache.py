"""What a decoder remembers of a text: keys and values per layer, and the states that deeper segments still owe work on.

The ladder: a token that left at an exit has no KV beyond it. Its state at that boundary is kept, and when a deeper
segment is needed, everything it has not seen yet (its backlog, always a contiguous suffix) goes through it in one
causal pass. So lengths never increase with depth, and rollback only shortens them.

Symbols: S tokens, L layers, D hidden, K kv heads, H head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from perfmodel.core.units import Tokens
from perfmodel.models.geometry import ModelGeometry
from s2d.model.rotary import RotationTable

LayerViews = tuple[Tensor, ...]
"""One view of the cache per layer of a segment."""
PreparedPass = Callable[[Tensor, int], None]
"""A pass of rows [T, D + PAD] that begin at a position, through some segments of this cache: see `s2d.model.cuda_graphs`."""
PassKey = tuple[int, int, int, Tokens]
"""Of a prepared pass: the numbers of its first and last segment, its rows, and the context it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Layers between two exits: `start` counts the layers before it, `end` those up to its own last one."""

    index: int
    start: int
    end: int


def segments_of(segment_ends: tuple[int, ...]) -> tuple[Segment, ...]:
    """The segments that end after these layer counts, the first starting at the embedding."""
    starts = (0, *segment_ends[:-1])
    return tuple(Segment(index=i, start=a, end=b) for i, (a, b) in enumerate(zip(starts, segment_ends, strict=True)))


class Cache:
    """KV and boundary states of one decoder over one text, preallocated, with a length per segment.

    Args:
        geometry: the decoder's.
        segments: from its embedding to the deepest layer that will ever run.
        max_tokens: S, the longest text it can hold.
        padding: what follows the D components of a state, [S, PAD].
        rotations: rotations of S positions or more.
        num_padding_rows: rows after the text that passes may write and read with weight 0. None of these may be infinite, as 0
            times infinity is NaN: where there are such rows, whatever is forgotten is set to 0.
    """

    def __init__(
        self,
        geometry: ModelGeometry,
        segments: tuple[Segment, ...],
        max_tokens: int,
        *,
        padding: Tensor,
        rotations: RotationTable,
        num_padding_rows: int = 0,
    ) -> None:
        self.segments = segments
        self.max_tokens = max_tokens
        self.rotations = rotations
        self.prepared: dict[PassKey, PreparedPass | None] = {}
        """None for a pass that the device has no memory for."""
        self._num_padding_rows = num_padding_rows
        self.lengths = [0] * len(segments)
        shape = (segments[-1].end, max_tokens, 2, geometry.num_kv_heads, geometry.head_dim)
        self._kv = padding.new_zeros(shape)  # [L, S, 2, K, H], finite wherever it is read, masked or not
        # Rows are written by a complex product where there are complex numbers: see s2d.model.decoder.
        written = self._kv.unflatten(-1, (-1, 2))
        self._written = torch.view_as_complex(written) if padding.dtype == torch.float32 else self._kv
        self._keys = self._kv[:, :, 0].permute(0, 2, 3, 1)  # [L, K, H, S]
        self._values = self._kv[:, :, 1].permute(0, 2, 1, 3)  # [L, K, S, H]
        width = geometry.hidden_size + padding.shape[1]
        self.states = [padding.new_zeros(max_tokens, width) for _ in segments]  # a [S, D + PAD] per segment: what left it
        for states in self.states:
            states[:, geometry.hidden_size :] = padding

    def reset(self) -> None:
        """Forget the text; the memory stays."""
        self.lengths = [0] * len(self.segments)
        if self._num_padding_rows:
            self._kv.zero_()

    def crop(self, num_tokens: int) -> None:
        """Forget everything after the first tokens, in every segment; those that are behind stay where they are."""
        if self._num_padding_rows and num_tokens < self.lengths[0]:
            self._kv[:, num_tokens : self.lengths[0] + self._num_padding_rows].zero_()
        self.lengths = [min(length, num_tokens) for length in self.lengths]

    def backlog(self, index: int, end: int) -> Tensor:
        """States that a segment (not the first) has not seen yet, up to position `end`: [T, D + PAD]."""
        return self.states[index - 1][self.lengths[index] : end]

    def rows(self, segment: Segment) -> LayerViews:
        """Per layer of a segment: all of its rows, a [S, 2, K, H]."""
        return self._kv[segment.start : segment.end].unbind(0)

    def views(self, segment: Segment, start: int, rows: int) -> tuple[LayerViews, LayerViews, LayerViews]:
        """Per layer of a segment: where new rows are written, and the keys and values to attend to, those included.

        One slice and one unbind for all layers: slicing layer by layer costs as much as the arithmetic.

        Returns:
            a [T, 2, K, H] (complex: [T, 2, K, H / 2]), a [K, H, S] and a [K, S, H] per layer.
        """
        layers = slice(segment.start, segment.end)
        end = start + rows
        return (
            self._written[layers, start:end].unbind(0),
            self._keys[layers, :, :, :end].unbind(0),
            self._values[layers, :, :end].unbind(0),
        )
