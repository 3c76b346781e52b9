"""The policies that are the fastest on some text, from plain decoding to the boldest, and what each gives as text drifts.

Two logarithms of factors on odds say how a text differs, to one policy, from the text of its plan, where both are 0:

    drift of acceptance  on the odds that one more token is drafted and accepted after those that were
    drift of drafting    on the odds that one more token is drafted after those that were

Tokens of a mean round follow from the first, drafted tokens and with them the seconds from the second. They are two because
confidence falls with acceptance on text that is hard for all, and stays on text that only the draft does not know.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from perfmodel.core.units import Frac, Seconds
from perfmodel.policies.policy import Policy

MAX_DRIFT = 6.0
"""Odds of 400 to one: beyond it everything is as good as accepted, or nothing is."""
DRIFT_STEP = 0.1
DRIFTS = tuple(DRIFT_STEP * number for number in range(-round(MAX_DRIFT / DRIFT_STEP), round(MAX_DRIFT / DRIFT_STEP) + 1))
"""The grid that is looked up while running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """One policy on a plan's text."""

    policy: Policy | None
    kept_frac: tuple[Frac, ...]
    """Entry i: share of the rounds that drafted and accepted token i + 1 among those that accepted the i before it."""
    drafted_frac: tuple[Frac, ...]
    """Entry i: share of the rounds that drafted token i + 1 among those that drafted the i before it."""
    round_s: tuple[Seconds, ...]
    """Entry i: predicted seconds of a round that drafted i tokens."""
    catch_up_s: Seconds
    """Predicted seconds of the draft for each token that was decoded without it."""

    def tokens(self, drift: float) -> float:
        """Emitted by a mean round at a drift of acceptance, the bonus counted."""
        return 1 + math.fsum(_reached(self.kept_frac, drift))

    def seconds(self, drift: float) -> Seconds:
        """Of a mean round at a drift of drafting."""
        reached = [1.0, *_reached(self.drafted_frac, drift)]
        more_s = [longer - shorter for longer, shorter in zip(self.round_s, (0.0, *self.round_s), strict=False)]
        return math.fsum(map(mul, reached, more_s))


def leaders(points: Sequence[FrontierPoint], always: Collection[Policy | None]) -> tuple[FrontierPoint, ...]:
    """Those of a policy always wanted, and those that are the fastest at some drift of acceptance while drafting has none.

    In the order of the drift at which each is the nearest to the fastest: from cautious to bold.
    """
    seconds = [point.seconds(0.0) for point in points]
    rates = {point: [point.tokens(drift) / spent for drift in DRIFTS] for point, spent in zip(points, seconds, strict=True)}
    best = [max(rate) for rate in zip(*rates.values(), strict=True)]
    nearest = {point: max(range(len(DRIFTS)), key=lambda at: rate[at] / best[at]) for point, rate in rates.items()}
    kept = [point for point in points if point.policy in always or rates[point][nearest[point]] == best[nearest[point]]]
    return tuple(sorted(kept, key=nearest.__getitem__))


def drifted(share: Frac, drift: float) -> float:
    """A share whose odds are multiplied by exp(drift)."""
    return share / (share + (1 - share) * math.exp(-drift))


def _reached(shares: Sequence[Frac], drift: float) -> list[float]:
    """The share of rounds that make each step, all before it made."""
    return list(accumulate((drifted(share, drift) for share in shares), mul))
