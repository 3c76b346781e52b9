"""Results of regret.py: configurations measured beside a plan, a table, and the summary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.console import table
from perfmodel.core.units import TokensPerS, format_signed_frac, format_speedup
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from shared.interleaved import Arm, arm_speedup, total_tokens_per_s, workload_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One configuration, predicted from the calibration prompts."""

    name: str
    policy: Policy | None
    predicted_tokens_per_s: TokensPerS | None
    """None if it needs a pass that was not measured."""
    predicted: float | None
    """Speedup over plain decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A contender and its measured speedup over plain decoding on the evaluation prompts."""

    name: str
    policy: Policy | None
    predicted: float | None
    predicted_tokens_per_s: TokensPerS | None
    tokens_per_s: TokensPerS
    plain_tokens_per_s: TokensPerS
    """Speed of the plain decoding interleaved with it."""
    speedup: float
    by_visit: tuple[float, float]

    @property
    def as_json(self) -> dict[str, object]:
        """The prediction and the measurement."""
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
    """The measurements of one target under one sampling."""

    target: str
    sampling: Sampling
    plan: Measured
    arms: tuple[Measured, ...]
    """All configurations, including the plan and plain decoding."""

    @property
    def regret_frac(self) -> float:
        """Best measured speedup over the plan's, minus one."""
        return max(arm.speedup for arm in self.arms) / self.plan.speedup - 1

    @property
    def honest_regret_frac(self) -> float:
        """The same, with the best selected by the first visits and compared on the second."""
        best = max(self.arms, key=lambda arm: arm.by_visit[0])
        return best.by_visit[1] / self.plan.by_visit[1] - 1

    @property
    def as_json(self) -> dict[str, object]:
        """All configurations, fastest first; the plan is identified by its policy."""
        arms = [arm.as_json for arm in sorted(self.arms, key=lambda arm: -arm.speedup)]
        plan = self.plan.policy.label if self.plan.policy else "do not speculate"
        return {"target": self.target, "workload": self.sampling.label, "plan": plan, "arms": arms}

    def plan_over(self, name: str) -> float:
        """The plan's speedup over the best configuration of the given name."""
        return self.plan.speedup / max(arm.speedup for arm in self.arms if arm.name == name)


def rank_correlation(arms: Sequence[Measured]) -> float:
    """Spearman's rank correlation of predicted and measured speedups."""
    from scipy.stats import spearmanr

    priced = [arm for arm in arms if arm.predicted is not None]
    return float(spearmanr([arm.predicted for arm in priced], [arm.speedup for arm in priced]).statistic)


def measured_of(contender: Contender, plain: Arm, speculative: Arm) -> Measured:
    """Measured speedups, over both visits and by visit."""
    return Measured(
        name=contender.name,
        policy=contender.policy,
        predicted=contender.predicted,
        predicted_tokens_per_s=contender.predicted_tokens_per_s,
        tokens_per_s=total_tokens_per_s([speculative]),
        plain_tokens_per_s=total_tokens_per_s([plain]),
        speedup=arm_speedup(plain, speculative),
        by_visit=(arm_speedup(plain, speculative, [0]), arm_speedup(plain, speculative, [1])),
    )


def measured_plain(arms: Sequence[Arm], predicted_tokens_per_s: TokensPerS) -> Measured:
    """Plain decoding as a configuration. Its speedup is 1 by definition; its speed is that of all plain runs."""
    rate = total_tokens_per_s(arms)
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
    """A row per configuration, fastest first; the plan is marked."""
    rows = [
        (
            result.target,
            workload_name(result.sampling),
            "plan" if arm is result.plan else arm.name,
            arm.policy.label if arm.policy else "",
            format_speedup(arm.predicted) if arm.predicted else "",
            format_speedup(arm.speedup),
            format_signed_frac(arm.predicted / arm.speedup - 1) if arm.predicted else "",
        )
        for result in results
        for arm in sorted(result.arms, key=lambda arm: -arm.speedup)
    ]
    headers = ("target", "workload", "arm", "configuration", "predicted", "measured", "error")
    return table(rows, headers=headers, align="llllrrr")


def summary(results: Sequence[PairResult]) -> dict[str, float | int]:
    """The figures, as means over targets and workloads."""

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    return {
        "regret_frac": mean([result.regret_frac for result in results]),
        "worst_regret_frac": max(result.regret_frac for result in results),
        "honest_regret_frac": mean([result.honest_regret_frac for result in results]),
        "plan_over_paper_thresholds": mean([result.plan_over("published thresholds") for result in results]),
        "plan_over_best_fixed": mean([result.plan_over("one exit, fixed length") for result in results]),
        "plan_speedup": mean([result.plan.speedup for result in results]),
        "rank_correlation": mean([rank_correlation(result.arms) for result in results]),
        "rank_correlation_of_all": rank_correlation([arm for result in results for arm in result.arms if arm.policy]),
        "num_configs": sum(len(result.arms) for result in results),
        "noise_frac": mean(
            [abs(arm.by_visit[0] / arm.by_visit[1] - 1) for result in results for arm in result.arms if arm.policy]
        ),
    }


def result_of(results: Sequence[PairResult]) -> dict[str, object]:
    """The figures over all workloads, and of each workload."""
    by_workload: dict[str, list[PairResult]] = {}
    for result in results:
        by_workload.setdefault(workload_name(result.sampling), []).append(result)
    return {
        **summary(results),
        "by_workload": {workload: summary(of_workload) for workload, of_workload in by_workload.items()},
    }
