"""Resamples of independent evidence, the same for everything that is held against each other: differences are paired."""

from functools import lru_cache

NUM_RESAMPLES = 200
_SEED = 20260701


@lru_cache(maxsize=16)
def resamples(number: int) -> tuple[tuple[int, ...], ...]:
    """How often each of so many pieces of evidence is drawn, resample by resample."""
    import random

    rng = random.Random(_SEED)
    drawn = []
    for _ in range(NUM_RESAMPLES):
        times = [0] * number
        for one in rng.choices(range(number), k=number):
            times[one] += 1
        drawn.append(tuple(times))
    return tuple(drawn)
