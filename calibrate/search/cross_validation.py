"""Cross-validate the search: overfitting, and the number of prompts it needs.

Prompts are split into halves by document (`perfmodel/acceptance/splits.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from perfmodel.acceptance.splits import HALVES, prompt_half
from perfmodel.policies.policy import Policy
from perfmodel.results.plan import Overfitting


def split_halves(scenarios: Sequence[Scenario]) -> tuple[list[Scenario], list[Scenario]] | None:
    """Every scenario with each half of its prompts; None where a half would be empty."""
    halves: tuple[list[Scenario], list[Scenario]] = ([], [])
    for scenario in scenarios:
        for half, subsets in zip(HALVES, halves, strict=True):
            prompts = [
                number for number, prompt in enumerate(scenario.trace.header.prompts) if prompt_half(prompt.name) == half
            ]
            if not prompts:
                return None
            subsets.append(scenario.subset(prompts))
    return halves


def log_speedups(scenario: Scenario, policies: Sequence[Policy | None]) -> list[float]:
    """Natural logarithm of each policy's speedup over plain decoding; minus infinity where a pass has no evidence."""
    *rates, plain = scenario.tokens_per_s([*policies, None]).tolist()
    return [math.log(rate / plain) if rate else -math.inf for rate in rates]


def overfitting(scenario: Scenario) -> Overfitting | None:
    """Speedup on the prompts a policy was searched on, and on the other half; None where a half would be empty.

    Both are geometric means over the two ways to split the search from the test.
    """
    halves = split_halves([scenario])
    if halves is None:
        return None
    (first,), (second,) = halves
    seen, unseen = [], []
    for searched, held_out in ((first, second), (second, first)):
        policy = search([searched]).chosen.policy
        seen += log_speedups(searched, [policy])
        unseen += log_speedups(held_out, [policy])
    return Overfitting(seen_speedup=math.exp(sum(seen) / 2), unseen_speedup=math.exp(sum(unseen) / 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPoint:
    """Result of a search on a given number of prompts."""

    num_prompts: int
    seen_speedup: float
    """Speedup of the policy on the prompts it was searched on."""
    unseen_speedup: float
    """Speedup of the same policy on the other half."""
    best_speedup: float
    """Speedup on the other half of a policy searched on that half: the most that can be reached there."""


def learning_curve(scenario: Scenario, numbers: Sequence[int]) -> list[LearningPoint]:
    """Search on the first few prompts of one half, score on the other; geometric means over both ways.

    Args:
        scenario: a trace and its latency models.
        numbers: numbers of prompts to search on. A number larger than a half means the whole half.

    Raises:
        ValueError: a half of the prompts is empty.
    """
    halves = split_halves([scenario])
    if halves is None:
        raise ValueError("a learning curve needs prompts of both halves")
    (first,), (second,) = halves
    ways = [(seen, unseen, search([unseen]).chosen.policy) for seen, unseen in ((first, second), (second, first))]
    return [_learning_point(number, ways) for number in numbers]


def _learning_point(number: int, ways: Sequence[tuple[Scenario, Scenario, Policy | None]]) -> LearningPoint:
    """A point of the curve from (half searched on, other half, best policy of the other half), both ways."""
    on_seen, on_unseen, best_on_unseen = 0.0, 0.0, 0.0
    for seen, unseen, best in ways:
        sample = seen.subset(range(min(number, len(seen.trace.header.prompts))))
        policy = search([sample]).chosen.policy
        [log_seen] = log_speedups(sample, [policy])
        log_unseen, log_best = log_speedups(unseen, [policy, best])
        on_seen, on_unseen, best_on_unseen = on_seen + log_seen, on_unseen + log_unseen, best_on_unseen + log_best
    return LearningPoint(
        num_prompts=number,
        seen_speedup=math.exp(on_seen / len(ways)),
        unseen_speedup=math.exp(on_unseen / len(ways)),
        best_speedup=math.exp(best_on_unseen / len(ways)),
    )
