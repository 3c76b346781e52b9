"""What a draft says once it is off the text's path: the second, small trace.

Nobody knows what follows a token that the target will refuse until a draft has gone on from it. So after some of the mistakes
of every prompt the draft writes on, as the exit that made the mistake goes on by itself, and all exits are asked at every
token. Acceptance does not depend on it: what is refused is refused. What the draft costs does, as it is less sure there, its
deep exits above all, and so leaves deeper and stops sooner.

What was said of a few tokens is told of all by quantiles: off the path the confidence of an exit is the one of equal rank among
those that were recorded, where the text's own at the same positions are ranked. Where too few were, the text's own stand in.

Shapes: X recorded tokens, E exits, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_RECORDED = 100
"""Tokens; of fewer, quantiles are noise."""
_LEVELS = np.linspace(0, 1, 21)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OffPath:
    """Positions asked once more, with a mistake among the tokens before them."""

    position: NDArray[np.int32]  # [X]; row of the trace
    confidence: NDArray[np.float32]  # [X, E]

    def __len__(self) -> int:
        return len(self.position)

    def taken(self, rows: NDArray[np.int64], num_positions: int) -> OffPath:
        """What is left of it where a trace keeps only some of its rows, in a new order.

        Args:
            rows: that are kept.
            num_positions: of the trace so far.
        """
        place = np.full(num_positions, -1, np.int32)
        place[rows] = np.arange(len(rows))
        position = place[self.position]
        return OffPath(position=position[position >= 0], confidence=self.confidence[position >= 0])


def nothing_off_path(num_exits: int) -> OffPath:
    """Of a trace whose draft was never asked off the path."""
    return OffPath(position=np.zeros(0, np.int32), confidence=np.zeros((0, num_exits), np.float32))


def stand_in(confidence: NDArray[np.float32], off_path: OffPath) -> NDArray[np.float32] | None:
    """Confidences as they would be off the path, [P, E], from those on it; None where too few were recorded."""
    if len(off_path) < MIN_RECORDED:
        return None
    on = np.quantile(confidence[off_path.position], _LEVELS, axis=0)
    off = np.quantile(off_path.confidence, _LEVELS, axis=0)
    mapped = [np.interp(*columns) for columns in zip(confidence.T, on.T, off.T, strict=True)]
    return np.stack(mapped, axis=1).astype(np.float32)
