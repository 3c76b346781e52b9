"""Cache of one text: keys and values per layer, and the backlog of each segment.

Ladder: a token that left at an exit has no KV in deeper layers. The cache keeps its hidden state at that exit. When a deeper
segment is needed, all states that it has not processed (its backlog, always a contiguous suffix) go through it in one causal
pass. Lengths therefore never increase with depth, and rollback only shortens them.

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
"""Runs rows [T, D + PAD] that start at a position through some segments of this cache: see `s2d.model.cuda_graphs`."""
PassKey = tuple[int, int, int, Tokens]
"""Identifies a prepared pass: index of the first segment, index of the last, rows, context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Layers between two exits: `start` and `end` count the layers before the segment and up to its end."""

    index: int
    """Zero-based."""
    start: int
    end: int


def make_segments(segment_ends: tuple[int, ...]) -> tuple[Segment, ...]:
    """Segments that end after these layer counts. The first one starts at the embedding."""
    starts = (0, *segment_ends[:-1])
    return tuple(Segment(index=i, start=a, end=b) for i, (a, b) in enumerate(zip(starts, segment_ends, strict=True)))


class Cache:
    """Preallocated KV and hidden states of one decoder for one text, with a length per segment.

    Args:
        geometry: shapes of the decoder.
        segments: the segments from the embedding to the deepest layer that will run.
        max_tokens: S, the longest text that fits.
        padding: components after the D of a hidden state, [S, PAD].
        rotations: table for at least S positions.
        num_padding_rows: rows after the text that passes may write, and read with weight 0. They must stay finite, because 0
            times infinity is NaN. If there are such rows, removed tokens are overwritten with 0.
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
        """None for a pass whose capture ran out of device memory."""
        self._num_padding_rows = num_padding_rows
        self.lengths = [0] * len(segments)
        shape = (segments[-1].end, max_tokens, 2, geometry.num_kv_heads, geometry.head_dim)
        self._kv = padding.new_zeros(shape)  # [L, S, 2, K, H]; zeros, because masked positions are read and must be finite
        # In fp32 the rotation writes rows as complex numbers: see s2d.model.decoder.
        pairs = self._kv.unflatten(-1, (-1, 2))
        self._writable = torch.view_as_complex(pairs) if padding.dtype == torch.float32 else self._kv
        self._keys = self._kv[:, :, 0].permute(0, 2, 3, 1)  # [L, K, H, S]
        self._values = self._kv[:, :, 1].permute(0, 2, 1, 3)  # [L, K, S, H]
        width = geometry.hidden_size + padding.shape[1]
        self.states = [padding.new_zeros(max_tokens, width) for _ in segments]  # per segment its output, [S, D + PAD]
        for states in self.states:
            states[:, geometry.hidden_size :] = padding

    def reset(self) -> None:
        """Remove the text and keep the memory."""
        self.lengths = [0] * len(self.segments)
        if self._num_padding_rows:
            self._kv.zero_()

    def crop(self, num_tokens: int) -> None:
        """Keep only the first tokens in every segment. Segments with fewer tokens do not change."""
        if self._num_padding_rows and num_tokens < self.lengths[0]:
            self._kv[:, num_tokens : self.lengths[0] + self._num_padding_rows].zero_()
        self.lengths = [min(length, num_tokens) for length in self.lengths]

    def backlog(self, index: int, end: int) -> Tensor:
        """Hidden states up to position `end` that a segment (not the first) has not processed: [T, D + PAD]."""
        return self.states[index - 1][self.lengths[index] : end]

    def rows(self, segment: Segment) -> LayerViews:
        """All KV rows of a segment, per layer a [S, 2, K, H]."""
        return self._kv[segment.start : segment.end].unbind(0)

    def views(self, segment: Segment, start: int, rows: int) -> tuple[LayerViews, LayerViews, LayerViews]:
        """Per layer of a segment: where new rows are written, and the keys and values to attend to, new rows included.

        One slice and one unbind serve all layers. Slicing layer by layer costs as much as the arithmetic.

        Returns:
            a [T, 2, K, H] (complex: [T, 2, K, H / 2]), a [K, H, S] and a [K, S, H] per layer.
        """
        layers = slice(segment.start, segment.end)
        end = start + rows
        return (
            self._writable[layers, start:end].unbind(0),
            self._keys[layers, :, :, :end].unbind(0),
            self._values[layers, :, :end].unbind(0),
        )
