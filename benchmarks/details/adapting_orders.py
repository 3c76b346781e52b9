"""Texts in an order under a controller and under fixed policies: what adapting.py says of each order, and what it says of all.

Letters: A policies of the frontier, T texts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.core.console import table
from perfmodel.core.stats import INTERVAL_FRAC, resample_counts
from perfmodel.core.units import Floats, format_frac, format_signed_frac, format_speedup
from perfmodel.results.report import Adaptation

MEANS = ("regret_frac", "priced_regret_frac", "over_plan", "over_phases", "over_plain")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """One target's texts in one order; all arms wrote the same tokens."""

    target: str
    name: str
    plan: int
    """The plan's place among the policies."""
    policies: tuple[str, ...]
    """The frontier, from cautious to bold."""
    is_hard: NDArray[np.bool_]  # [T]
    num_tokens: int
    controller_s: Floats  # [T]
    fixed_s: Floats  # [A, T]
    plan_again_s: Floats  # [T]; the plan's policy measured a second time
    priced_s: Floats  # [1 + A, T]; by the profile, the controller first
    adaptation: Adaptation

    @property
    def best(self) -> int:
        """The fastest policy of the order, in hindsight."""
        return int(self.fixed_s.sum(axis=1).argmin())

    @property
    def regret_frac(self) -> float:
        """1 - controller / best fixed, in tokens/s."""
        return float(1 - self.fixed_s[self.best].sum() / self.controller_s.sum())

    @property
    def priced_regret_frac(self) -> float:
        """The same of the passes that ran, priced by the profile; the best policy is that of these seconds."""
        controller_s, *fixed_s = self.priced_s.sum(axis=1).tolist()
        return 1 - min(fixed_s) / controller_s

    @property
    def regret_interval(self) -> tuple[float, float]:
        """Of texts drawn anew, the best policy being that of all of them."""
        drawn = np.array(resample_counts(len(self.controller_s)))  # [R, T]
        regrets = 1 - drawn @ self.fixed_s[self.best] / (drawn @ self.controller_s)
        low, high = np.quantile(regrets, [(1 - INTERVAL_FRAC) / 2, (1 + INTERVAL_FRAC) / 2]).tolist()
        return low, high

    @property
    def over_plan(self) -> float:
        """Speed over that of the plan's policy, both of its measurements together."""
        plan_s = (self.fixed_s[self.plan] + self.plan_again_s).sum() / 2
        return float(plan_s / self.controller_s.sum())

    @property
    def over_phases(self) -> float:
        """Speed over that of the best policy of each kind of text."""
        kinds = [kind for kind in (self.is_hard, ~self.is_hard) if kind.any()]
        return math.fsum(self.fixed_s[:, kind].sum(axis=1).min() for kind in kinds) / float(self.controller_s.sum())

    @property
    def noise_frac(self) -> float:
        """How much the plan's policy differs from itself."""
        return float(abs(self.plan_again_s.sum() / self.fixed_s[self.plan].sum() - 1))

    @property
    def as_json(self) -> dict[str, object]:
        """Every arm's tokens/s, over all texts and over those of a kind."""
        return {
            "target": self.target,
            "order": self.name,
            "num_tokens": self.num_tokens,
            "policies": self.policies,
            "plan": self.policies[self.plan],
            "best_fixed": self.policies[self.best],
            "is_hard": self.is_hard.tolist(),
            "controller_s": self.controller_s.tolist(),
            "fixed_s": self.fixed_s.tolist(),
            "plan_again_s": self.plan_again_s.tolist(),
            "priced_s": self.priced_s.tolist(),
            "num_switches": self.adaptation.num_switches,
            "controller_share_of_time": [one.decode_s / float(self.controller_s.sum()) for one in self.adaptation.shares],
            **figures(self),
        }


def figures(order: Order) -> dict[str, float]:
    """What is said of one order."""
    low, high = order.regret_interval
    return {
        "regret_frac": order.regret_frac,
        "regret_low_frac": low,
        "regret_high_frac": high,
        "priced_regret_frac": order.priced_regret_frac,
        "over_plan": order.over_plan,
        "over_phases": order.over_phases,
        "over_plain": float(order.fixed_s[0].sum() / order.controller_s.sum()),
    }


def order_table(orders: Sequence[Order]) -> str:
    """A line per order: its best fixed policy, and the controller beside it."""
    rows = []
    for one in orders:
        low, high = one.regret_interval
        off = sum(share.decode_s for share in one.adaptation.shares if share.policy is None) / one.controller_s.sum()
        rows.append(
            (
                one.target,
                one.name,
                one.policies[one.best],
                format_signed_frac(one.regret_frac),
                f"{format_signed_frac(low)} to {format_signed_frac(high)}",
                format_signed_frac(one.priced_regret_frac),
                format_speedup(one.over_plan),
                format_speedup(one.over_phases),
                str(one.adaptation.num_switches),
                format_frac(off),
            )
        )
    headers = (
        "target",
        "order",
        "best fixed",
        "regret",
        "90 % interval",
        "priced",
        "over plan",
        "over phases",
        "switches",
        "plain",
    )
    return table(rows, headers=headers, align="lllrrrrrrr")


def summary(orders: Sequence[Order]) -> dict[str, object]:
    """Means over targets of each order, and over the two that shift."""

    def mean(some: Sequence[Order]) -> dict[str, float]:
        found = [figures(one) for one in some]
        return {key: math.fsum(one[key] for one in found) / len(found) for key in MEANS}

    shifting = [one for one in orders if one.is_hard.any()]
    return {
        **mean(shifting),
        "worst_regret_frac": max(one.regret_frac for one in orders),
        "noise_frac": math.fsum(one.noise_frac for one in orders) / len(orders),
        "by_order": {f"{one.target} {one.name}": figures(one) for one in orders},
    }
