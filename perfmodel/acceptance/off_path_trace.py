"""What a draft says once it is off the text's path: the second, small trace.

Nobody knows what follows a token that the target will refuse until a draft has gone on from it. So after some of the mistakes
of every prompt the draft writes on, as the exit that made the mistake goes on by itself, and all exits are asked at every
token. Acceptance does not depend on it: what is refused is refused. What the draft costs does, as it is less sure there, its
deep exits above all, and so leaves deeper and stops sooner.

What was said of a few tokens is told of all by quantiles: off the path the confidence of an exit is the one of equal rank among
those that were recorded, where the text's own at the same positions are ranked. An exit is asked about what it drafted itself,
or a deeper one did: a shallower one's text is lost sooner. Where too few were recorded, the text's own confidences stand in.

Shapes: X recorded tokens, E exits, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_RECORDED = 100
"""Tokens for each exit; of fewer, quantiles are noise."""
_LEVELS = np.linspace(0, 1, 21)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OffPath:
    """Positions asked once more, with a mistake among the tokens before them."""

    position: NDArray[np.int32]  # [X]; row of the trace
    exit: NDArray[np.int32]  # [X]; that made the mistake and went on from it, zero-based
    confidence: NDArray[np.float32]  # [X, E]

    def __len__(self) -> int:
        return len(self.position)

    def told(self, number: int) -> NDArray[np.bool_]:
        """Which tokens tell of an exit. [X]."""
        return self.exit >= number

    @property
    def num_told(self) -> int:
        """Tokens that tell of the exit of which the fewest do, the deepest."""
        return int(np.count_nonzero(self.told(self.confidence.shape[1] - 1)))

    @property
    def is_enough(self) -> bool:
        """Whether it tells of every exit."""
        return self.num_told >= MIN_RECORDED

    def taken(self, rows: NDArray[np.int64], num_positions: int) -> OffPath:
        """What is left of it where a trace keeps only some of its rows, in a new order.

        Args:
            rows: that are kept.
            num_positions: of the trace so far.
        """
        place = np.full(num_positions, -1, np.int32)
        place[rows] = np.arange(len(rows))
        is_kept = place[self.position] >= 0
        return OffPath(position=place[self.position][is_kept], exit=self.exit[is_kept], confidence=self.confidence[is_kept])


def nothing_off_path(num_exits: int) -> OffPath:
    """Of a trace whose draft was never asked off the path."""
    nobody = np.zeros(0, np.int32)
    return OffPath(position=nobody, exit=nobody, confidence=np.zeros((0, num_exits), np.float32))


def stand_in(confidence: NDArray[np.float32], off_path: OffPath) -> NDArray[np.float32] | None:
    """Confidences as they would be off the path, [P, E], from those on it; None where too few were recorded."""
    if not off_path.is_enough:
        return None
    mapped = np.empty_like(confidence)
    for number in range(confidence.shape[1]):
        told = off_path.told(number)
        on, off = confidence[off_path.position[told], number], off_path.confidence[told, number]
        mapped[:, number] = np.interp(confidence[:, number], np.quantile(on, _LEVELS), np.quantile(off, _LEVELS))
    return mapped
