"""Results of adapting.py: the controller and the fixed policies on an order of texts, a table, and the summary.

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
    """The texts of one target in one order. All arms wrote the same tokens."""

    target: str
    name: str
    plan: int
    """Index of the plan's policy."""
    policies: tuple[str, ...]
    """The frontier, from cautious to bold."""
    is_hard: NDArray[np.bool_]  # [T]
    num_tokens: int
    controller_s: Floats  # [T]
    fixed_s: Floats  # [A, T]
    plan_again_s: Floats  # [T]; the plan's policy measured a second time
    priced_s: Floats  # [1 + A, T]; priced by the profile, the controller first
    adaptation: Adaptation

    @property
    def best(self) -> int:
        """Index of the fastest policy of the order, known only afterwards."""
        return int(self.fixed_s.sum(axis=1).argmin())

    @property
    def regret_frac(self) -> float:
        """1 - controller / best fixed policy, in tokens/s."""
        return float(1 - self.fixed_s[self.best].sum() / self.controller_s.sum())

    @property
    def priced_regret_frac(self) -> float:
        """The regret in priced seconds of the passes that ran; the best policy is the best in these seconds."""
        controller_s, *fixed_s = self.priced_s.sum(axis=1).tolist()
        return 1 - min(fixed_s) / controller_s

    @property
    def regret_interval(self) -> tuple[float, float]:
        """Bootstrap interval over texts. The best policy is that of all texts."""
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
        """Speed over that of the best policy for each kind of text."""
        kinds = [kind for kind in (self.is_hard, ~self.is_hard) if kind.any()]
        return math.fsum(self.fixed_s[:, kind].sum(axis=1).min() for kind in kinds) / float(self.controller_s.sum())

    @property
    def noise_frac(self) -> float:
        """Difference between the two measurements of the plan's policy."""
        return float(abs(self.plan_again_s.sum() / self.fixed_s[self.plan].sum() - 1))

    @property
    def as_json(self) -> dict[str, object]:
        """Tokens/s of every arm, over all texts and over those of a kind."""
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
            "controller_share_of_time": [share.decode_s / float(self.controller_s.sum()) for share in self.adaptation.shares],
            **figures(self),
        }


def figures(order: Order) -> dict[str, float]:
    """The figures of one order."""
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
    """A row per order: its best fixed policy, and the controller."""
    rows = []
    for order in orders:
        low, high = order.regret_interval
        off = sum(share.decode_s for share in order.adaptation.shares if share.policy is None) / order.controller_s.sum()
        rows.append(
            (
                order.target,
                order.name,
                order.policies[order.best],
                format_signed_frac(order.regret_frac),
                f"{format_signed_frac(low)} to {format_signed_frac(high)}",
                format_signed_frac(order.priced_regret_frac),
                format_speedup(order.over_plan),
                format_speedup(order.over_phases),
                str(order.adaptation.num_switches),
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
    """Means over targets by order, and over the two orders that change."""

    def mean(orders: Sequence[Order]) -> dict[str, float]:
        figures_by_order = [figures(order) for order in orders]
        return {key: math.fsum(order[key] for order in figures_by_order) / len(figures_by_order) for key in MEANS}

    shifting = [order for order in orders if order.is_hard.any()]
    return {
        **mean(shifting),
        "worst_regret_frac": max(order.regret_frac for order in orders),
        "noise_frac": math.fsum(order.noise_frac for order in orders) / len(orders),
        "by_order": {f"{order.target} {order.name}": figures(order) for order in orders},
    }
