"""Configurations measured beside a plan: what regret.py says of each, and what it says of all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.console import table
from perfmodel.core.units import TokensPerS, format_signed_frac, format_speedup
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from shared.interleaved import Arm, arm_speedup, tokens_per_s_of, workload_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One configuration, predicted from calibration prompts."""

    name: str
    policy: Policy | None
    predicted_tokens_per_s: TokensPerS | None
    """None where a pass it needs was not measured."""
    predicted: float | None
    """Speedup over plain decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A contender and its speedups over plain decoding on the evaluation prompts."""

    name: str
    policy: Policy | None
    predicted: float | None
    predicted_tokens_per_s: TokensPerS | None
    tokens_per_s: TokensPerS
    plain_tokens_per_s: TokensPerS
    """Of the plain decoding interleaved with it."""
    speedup: float
    by_visit: tuple[float, float]

    @property
    def as_json(self) -> dict[str, object]:
        """What was predicted and what was found."""
        return {
            "arm": self.name,
            "policy": self.policy.label if self.policy else None,
            "predicted_tokens_per_s": self.predicted_tokens_per_s,
            "predicted_speedup": self.predicted,
            "measured_tokens_per_s": self.tokens_per_s,
            "measured_plain_tokens_per_s": self.plain_tokens_per_s,
            "measured_speedup": self.speedup,
            "measured_speedup_by_visit": self.by_visit,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """What was measured of one target under one sampling."""

    target: str
    sampling: Sampling
    plan: Measured
    arms: tuple[Measured, ...]
    """Every configuration, the plan and plain decoding among them."""

    @property
    def regret_frac(self) -> float:
        """Best measured over the plan's, less one."""
        return max(one.speedup for one in self.arms) / self.plan.speedup - 1

    @property
    def honest_regret_frac(self) -> float:
        """The same, the best named by one visit and compared on the other."""
        best = max(self.arms, key=lambda one: one.by_visit[0])
        return best.by_visit[1] / self.plan.by_visit[1] - 1

    @property
    def as_json(self) -> dict[str, object]:
        """Every configuration, fastest first; the plan is the policy named."""
        arms = [one.as_json for one in sorted(self.arms, key=lambda one: -one.speedup)]
        plan = self.plan.policy.label if self.plan.policy else "do not speculate"
        return {"target": self.target, "workload": self.sampling.label, "plan": plan, "arms": arms}

    def plan_over(self, name: str) -> float:
        """The plan's speedup over the best one of a name."""
        return self.plan.speedup / max(one.speedup for one in self.arms if one.name == name)


def rank_correlation(arms: Sequence[Measured]) -> float:
    """Spearman's, predicted against measured."""
    from scipy.stats import spearmanr

    priced = [one for one in arms if one.predicted is not None]
    return float(spearmanr([one.predicted for one in priced], [one.speedup for one in priced]).statistic)


def measured_of(contender: Contender, plain: Arm, speculative: Arm) -> Measured:
    """Ratios of tokens per second, over both visits and by visit."""
    return Measured(
        name=contender.name,
        policy=contender.policy,
        predicted=contender.predicted,
        predicted_tokens_per_s=contender.predicted_tokens_per_s,
        tokens_per_s=tokens_per_s_of([speculative]),
        plain_tokens_per_s=tokens_per_s_of([plain]),
        speedup=arm_speedup(plain, speculative),
        by_visit=(arm_speedup(plain, speculative, [0]), arm_speedup(plain, speculative, [1])),
    )


def measured_plain(arms: Sequence[Arm], predicted_tokens_per_s: TokensPerS) -> Measured:
    """Plain decoding as one more configuration: its speedup is 1 by definition, its rate that of all its runs."""
    rate = tokens_per_s_of(arms)
    return Measured(
        name="plain decoding",
        policy=None,
        predicted=1.0,
        predicted_tokens_per_s=predicted_tokens_per_s,
        tokens_per_s=rate,
        plain_tokens_per_s=rate,
        speedup=1.0,
        by_visit=(1.0, 1.0),
    )


def result_table(results: Sequence[PairResult]) -> str:
    """A line per configuration, fastest first; the plan is marked."""
    rows = [
        (
            found.target,
            workload_of(found.sampling),
            "plan" if one is found.plan else one.name,
            one.policy.label if one.policy else "",
            format_speedup(one.predicted) if one.predicted else "",
            format_speedup(one.speedup),
            format_signed_frac(one.predicted / one.speedup - 1) if one.predicted else "",
        )
        for found in results
        for one in sorted(found.arms, key=lambda one: -one.speedup)
    ]
    headers = ("target", "workload", "arm", "configuration", "predicted", "measured", "error")
    return table(rows, headers=headers, align="llllrrr")


def summary(results: Sequence[PairResult]) -> dict[str, float | int]:
    """The figures of DESIGN §9, as means over targets and workloads."""

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    return {
        "regret_frac": mean([one.regret_frac for one in results]),
        "worst_regret_frac": max(one.regret_frac for one in results),
        "honest_regret_frac": mean([one.honest_regret_frac for one in results]),
        "plan_over_paper_thresholds": mean([one.plan_over("published thresholds") for one in results]),
        "plan_over_best_fixed": mean([one.plan_over("one exit, fixed length") for one in results]),
        "plan_speedup": mean([one.plan.speedup for one in results]),
        "rank_correlation": mean([rank_correlation(one.arms) for one in results]),
        "rank_correlation_of_all": rank_correlation([arm for one in results for arm in one.arms if arm.policy]),
        "num_configs": sum(len(one.arms) for one in results),
        "noise_frac": mean([abs(arm.by_visit[0] / arm.by_visit[1] - 1) for one in results for arm in one.arms if arm.policy]),
    }


def result_of(results: Sequence[PairResult]) -> dict[str, object]:
    """The figures of all, and of each workload alone."""
    by_workload: dict[str, list[PairResult]] = {}
    for one in results:
        by_workload.setdefault(workload_of(one.sampling), []).append(one)
    return {**summary(results), "by_workload": {workload: summary(some) for workload, some in by_workload.items()}}
