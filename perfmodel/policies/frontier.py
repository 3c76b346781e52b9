"""The frontier: policies that are fastest on some text, and their speed under drift.

Two drifts describe how a text differs, for one policy, from the text of its plan. Each is added to the log odds of an event,
and both are 0 on the plan's text:

    drift of acceptance  log odds that one more token is drafted and accepted, given that all tokens before it were
    drift of drafting    log odds that one more token is drafted, given that all tokens before it were

The first determines the tokens of a mean round, the second the number of drafted tokens and so the seconds. There are two
because confidence falls with acceptance on text that is hard for both models, and does not fall on text that only the draft
does not know.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from perfmodel.core.units import Frac, Seconds
from perfmodel.policies.policy import Policy

MAX_DRIFT = 6.0
"""Odds of 400 to 1. Beyond it, practically everything is accepted, or nothing."""
DRIFT_STEP = 0.1
DRIFTS = tuple(DRIFT_STEP * number for number in range(-round(MAX_DRIFT / DRIFT_STEP), round(MAX_DRIFT / DRIFT_STEP) + 1))
"""The drifts that a run tabulates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """One policy on its plan's text."""

    policy: Policy | None
    kept_frac: tuple[Frac, ...]
    """Entry i: share of rounds that drafted and accepted token i + 1, among those that accepted the first i."""
    drafted_frac: tuple[Frac, ...]
    """Entry i: share of rounds that drafted token i + 1, among those that drafted the first i."""
    round_s: tuple[Seconds, ...]
    """Entry i: predicted seconds of a round that drafts i tokens."""
    catch_up_s: Seconds
    """Predicted seconds of the draft for each token that was decoded without it."""

    def tokens(self, drift: float) -> float:
        """Tokens of a mean round, bonus included, at a drift of acceptance."""
        return 1 + math.fsum(_reached(self.kept_frac, drift))

    def seconds(self, drift: float) -> Seconds:
        """Seconds of a mean round at a drift of drafting."""
        reached = [1.0, *_reached(self.drafted_frac, drift)]
        added_s = [longer - shorter for longer, shorter in zip(self.round_s, (0.0, *self.round_s), strict=False)]
        return math.fsum(map(mul, reached, added_s))


def leading_points(points: Sequence[FrontierPoint], always: Collection[Policy | None]) -> tuple[FrontierPoint, ...]:
    """The points that are the fastest at some drift of acceptance without drift of drafting, and those to keep always.

    Sorted by the drift at which each is nearest to the fastest: from the lowest acceptance to the highest.
    """
    seconds = [point.seconds(0.0) for point in points]
    rates = {point: [point.tokens(drift) / round_s for drift in DRIFTS] for point, round_s in zip(points, seconds, strict=True)}
    best = [max(rate) for rate in zip(*rates.values(), strict=True)]
    nearest = {point: max(range(len(DRIFTS)), key=lambda at: rate[at] / best[at]) for point, rate in rates.items()}
    leading = [point for point in points if point.policy in always or rates[point][nearest[point]] == best[nearest[point]]]
    return tuple(sorted(leading, key=nearest.__getitem__))


def drifted_frac(share: Frac, drift: float) -> Frac:
    """A share after a drift: its odds are multiplied by exp(drift)."""
    return share / (share + (1 - share) * math.exp(-drift))


def _reached(shares: Sequence[Frac], drift: float) -> list[Frac]:
    """Share of rounds that reach each step, from the shares among those that reached the step before."""
    return list(accumulate((drifted_frac(share, drift) for share in shares), mul))
