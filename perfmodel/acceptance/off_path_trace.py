"""Confidences after a rejected token, where the draft has left the target's text.

The tokens after a rejected one are unknown until a draft has generated them. So a second, small trace is recorded: after some
rejected tokens of every prompt, the exit that made the mistake continues alone, and every exit's confidence in each
token is recorded. Acceptance does not depend on it, because everything after a rejected token is rejected. The draft's cost
does: exits are less confident there, the deep ones above all, so tokens leave deeper and blocks stop sooner.

A few recorded tokens stand for all by their quantiles. The confidence of an exit off the path is the recorded one of the same
rank, where ranks are among the confidences on the path at the same positions. An exit uses the tokens that it drafted itself
or that a deeper exit drafted; text drafted by a shallower exit degrades sooner. Where too few tokens were recorded, the
confidences on the path are used.

Shapes: X recorded tokens, E exits, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_RECORDED = 100
"""Minimum number of tokens for each exit; quantiles of fewer are noise."""
_LEVELS = np.linspace(0, 1, 21)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OffPath:
    """Tokens recorded after a rejected token."""

    position: NDArray[np.int32]  # [X]; row of the trace
    exit: NDArray[np.int32]  # [X]; zero-based exit that made the mistake and continued from it
    confidence: NDArray[np.float32]  # [X, E]

    @classmethod
    def empty(cls, num_exits: int) -> OffPath:
        """Nothing recorded."""
        none = np.zeros(0, np.int32)
        return cls(position=none, exit=none, confidence=np.zeros((0, num_exits), np.float32))

    def __len__(self) -> int:
        return len(self.position)

    def usable_for(self, exit_id: int) -> NDArray[np.bool_]:
        """Which tokens an exit uses. [X]."""
        return self.exit >= exit_id

    @property
    def num_usable(self) -> int:
        """Tokens that every exit uses; the deepest exit has the fewest."""
        return int(np.count_nonzero(self.usable_for(self.confidence.shape[1] - 1)))

    @property
    def is_enough(self) -> bool:
        """Whether every exit has enough tokens."""
        return self.num_usable >= MIN_RECORDED

    def select(self, rows: NDArray[np.int64], num_positions: int) -> OffPath:
        """The tokens at some positions of a trace, which get new rows.

        Args:
            rows: the positions to keep, in their new order.
            num_positions: of the trace before.
        """
        new_row = np.full(num_positions, -1, np.int32)
        new_row[rows] = np.arange(len(rows))
        position = new_row[self.position]
        is_kept = position >= 0
        return OffPath(position=position[is_kept], exit=self.exit[is_kept], confidence=self.confidence[is_kept])


def off_path_confidence(confidence: NDArray[np.float32], off_path: OffPath) -> NDArray[np.float32] | None:
    """Confidences off the path from those on it, by rank: [P, E] -> [P, E]. None where too few tokens were recorded."""
    if not off_path.is_enough:
        return None
    mapped = np.empty_like(confidence)
    for exit_id in range(confidence.shape[1]):
        usable = off_path.usable_for(exit_id)
        on, off = confidence[off_path.position[usable], exit_id], off_path.confidence[usable, exit_id]
        mapped[:, exit_id] = np.interp(confidence[:, exit_id], np.quantile(on, _LEVELS), np.quantile(off, _LEVELS))
    return mapped
