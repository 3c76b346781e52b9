"""Who says what to run next: one policy throughout, or a controller that moves along a plan's frontier while running."""

import math
from collections.abc import Sequence
from typing import Protocol

from perfmodel.core.units import Frac
from perfmodel.policies.frontier import DRIFT_STEP, DRIFTS, MAX_DRIFT, FrontierPoint, drifted_frac
from perfmodel.policies.policy import Policy

SPREAD = 0.7
"""Standard deviation of a drift between texts, known before one is seen: between documents of the reference family."""
MEMORY_TOKENS = 250
"""Tokens in which what was learnt falls to 1/e: texts of the reference family change from one output to the next."""


class PolicySelector(Protocol):
    """Says before every round which policy it is to follow, and hears how it went."""

    @property
    def policies(self) -> Sequence[Policy | None]:
        """All that may come, with one kind of confidence; None is plain decoding."""
        ...

    @property
    def at(self) -> int:
        """The place among them of the next round's."""
        ...

    def begin(self) -> None:
        """A text begins: the draft has seen all of it so far."""
        ...

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """The round drafted and accepted so many tokens."""
        ...


class FixedPolicy:
    """One policy throughout."""

    def __init__(self, policy: Policy | None) -> None:
        self.policies = (policy,)
        self.at = 0

    def begin(self) -> None:
        """Nothing changes."""

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Nothing is learnt."""


class Controller:
    """Runs the policy of a frontier that is the fastest where the two drifts of the text are thought to be.

    Each round under a drafting policy is evidence on both drifts (`perfmodel.policies.frontier`), which all policies share. With every
    token decoded the evidence is forgotten a little, until the plan holds again; so plain decoding, which tells nothing
    of the draft, ends by itself: a round is tried as soon as what was learnt against drafting has faded to where it would
    pay. Seconds are the plan's, not the clock's: the same text takes the same course on any day.

    Args:
        frontier: of the plan, plain decoding among it.
    """

    def __init__(self, frontier: Sequence[FrontierPoint]) -> None:
        self.policies = tuple(point.policy for point in frontier)
        self._points = tuple(frontier)
        self._tokens = [[point.tokens(drift) for drift in DRIFTS] for point in frontier]
        self._seconds = [[point.seconds(drift) for drift in DRIFTS] for point in frontier]
        self._acceptance, self._drafting = DriftFilter(), DriftFilter()
        self._undrafted = 0
        self.at = self._fastest()

    def begin(self) -> None:
        """See `PolicySelector`."""
        self._undrafted = 0

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """See `PolicySelector`. A round that could draft nothing, at the end of a text, counts as plain."""
        point, emitted = self._points[self.at], num_accepted + 1
        if num_drafted:
            self._acceptance.learn(point.kept_frac, num_accepted)
            self._drafting.learn(point.drafted_frac, num_drafted)
        self._undrafted = 0 if num_drafted else self._undrafted + emitted
        self._acceptance.forget(emitted)
        self._drafting.forget(emitted)
        self.at = self._fastest()

    def _fastest(self) -> int:
        """The place of the policy with most tokens per second, what the draft must catch up on spread over the memory."""
        accepted, drafting = self._acceptance.place, self._drafting.place
        late_frac = self._undrafted / MEMORY_TOKENS
        rates = [
            tokens[accepted] / (seconds[drafting] + late_frac * point.catch_up_s)
            for point, tokens, seconds in zip(self._points, self._tokens, self._seconds, strict=True)
        ]
        return rates.index(max(rates))


class DriftFilter:
    """One drift, as a Gaussian: a logistic regression on an offset alone, which forgets."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._variance = SPREAD**2

    @property
    def place(self) -> int:
        """The nearest on the grid of drifts."""
        return round((min(max(self.mean, -MAX_DRIFT), MAX_DRIFT) + MAX_DRIFT) / DRIFT_STEP)

    def learn(self, shares: Sequence[Frac], num_steps: int) -> None:
        """One Newton step for a round that made so many steps and then no more, each expected with its share."""
        expected = [drifted_frac(share, self.mean) for share in shares[: num_steps + 1]]
        information = sum(share * (1 - share) for share in expected)
        self._variance /= 1 + self._variance * information
        self.mean += self._variance * (min(num_steps, len(shares)) - sum(expected))

    def forget(self, num_tokens: int) -> None:
        """Fall back towards what was known before any text."""
        keep = math.exp(-num_tokens / MEMORY_TOKENS)
        self.mean *= keep
        self._variance = SPREAD**2 + keep**2 * (self._variance - SPREAD**2)
