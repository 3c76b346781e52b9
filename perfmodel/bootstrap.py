"""Resamples of independent evidence, the same for everything that is held against each other: differences are paired."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUM_RESAMPLES = 200
_SEED = 20260701


@lru_cache(maxsize=16)
def resamples(number: int) -> NDArray[np.int64]:
    """How often each of so many pieces of evidence is drawn, by resample: [resamples, number]; not to be written to."""
    import random

    import numpy as np

    drawn = random.Random(_SEED).choices(range(number), k=NUM_RESAMPLES * number)
    offset = np.repeat(np.arange(NUM_RESAMPLES) * number, number)
    return np.bincount(offset + drawn, minlength=NUM_RESAMPLES * number).reshape(NUM_RESAMPLES, number)
