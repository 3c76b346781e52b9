"""Choose the policy of each round: a fixed one, or the fastest of a plan's frontier."""

import math
from collections.abc import Sequence
from typing import Protocol

from perfmodel.core.units import Frac
from perfmodel.policies.frontier import DRIFT_STEP, DRIFTS, MAX_DRIFT, FrontierPoint, drifted_frac
from perfmodel.policies.policy import Policy

SPREAD = 0.7
"""Prior standard deviation of a text's drift, measured between documents of the reference family."""
MEMORY_TOKENS = 250
"""Tokens after which evidence is weighted by 1/e. Texts of the reference family change from one output to the next."""


class PolicySelector(Protocol):
    """Chooses the policy of each round and observes its outcome."""

    @property
    def policies(self) -> Sequence[Policy | None]:
        """All policies that may be chosen, with one kind of confidence. None is plain decoding."""
        ...

    @property
    def index(self) -> int:
        """The index in `policies` of the next round's policy."""
        ...

    def start_text(self) -> None:
        """Start a text. The draft has processed every token of it."""
        ...

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Update after a round."""
        ...


class FixedPolicy:
    """One policy throughout."""

    def __init__(self, policy: Policy | None) -> None:
        self.policies = (policy,)
        self.index = 0

    def start_text(self) -> None:
        """Do nothing."""

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Do nothing."""


class AdaptivePolicy:
    """The frontier policy that is fastest at the current drift estimates.

    Each round under a drafting policy is evidence about two drifts (`perfmodel.policies.frontier`), which all policies share.
    The evidence decays with every decoded token, back to the plan's expectation. Plain decoding gives no evidence about the
    draft, so it ends on its own: drafting is tried again once the evidence against it has decayed enough. Times come from the
    plan, not from the clock, so a text always takes the same policies.

    Args:
        frontier: the plan's, plain decoding included.
    """

    def __init__(self, frontier: Sequence[FrontierPoint]) -> None:
        self.policies = tuple(point.policy for point in frontier)
        self._points = tuple(frontier)
        self._tokens = [[point.tokens(drift) for drift in DRIFTS] for point in frontier]
        self._seconds = [[point.seconds(drift) for drift in DRIFTS] for point in frontier]
        self._acceptance, self._drafting = DriftFilter(), DriftFilter()
        self._undrafted = 0
        self.index = self._fastest()

    def start_text(self) -> None:
        """See `PolicySelector`."""
        self._undrafted = 0

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """See `PolicySelector`. A round that could not draft, at the end of a text, counts as plain decoding."""
        point, emitted = self._points[self.index], num_accepted + 1
        if num_drafted:
            self._acceptance.update(point.kept_frac, num_accepted)
            self._drafting.update(point.drafted_frac, num_drafted)
        self._undrafted = 0 if num_drafted else self._undrafted + emitted
        self._acceptance.decay(emitted)
        self._drafting.decay(emitted)
        self.index = self._fastest()

    def _fastest(self) -> int:
        """The index of the policy with most tokens per second. The draft's catch-up time is spread over `MEMORY_TOKENS`."""
        acceptance, drafting = self._acceptance.index, self._drafting.index
        late_frac = self._undrafted / MEMORY_TOKENS
        rates = [
            tokens[acceptance] / (seconds[drafting] + late_frac * point.catch_up_s)
            for point, tokens, seconds in zip(self._points, self._tokens, self._seconds, strict=True)
        ]
        return rates.index(max(rates))


class DriftFilter:
    """A Gaussian estimate of one drift: logistic regression on an intercept, with decaying evidence."""

    def __init__(self) -> None:
        self.mean = 0.0
        self.variance = SPREAD**2

    @property
    def index(self) -> int:
        """The index of the mean in the grid of drifts."""
        return round((min(max(self.mean, -MAX_DRIFT), MAX_DRIFT) + MAX_DRIFT) / DRIFT_STEP)

    def update(self, shares: Sequence[Frac], num_steps: int) -> None:
        """Take one Newton step for a round.

        Args:
            shares: the plan's probability of each step, given the steps before it.
            num_steps: the number of steps in the round.
        """
        expected = [drifted_frac(share, self.mean) for share in shares[: num_steps + 1]]
        information = sum(share * (1 - share) for share in expected)
        self.variance /= 1 + self.variance * information
        self.mean += self.variance * (min(num_steps, len(shares)) - sum(expected))

    def decay(self, num_tokens: int) -> None:
        """Move back towards the prior."""
        keep = math.exp(-num_tokens / MEMORY_TOKENS)
        self.mean *= keep
        self.variance = SPREAD**2 + keep**2 * (self.variance - SPREAD**2)
