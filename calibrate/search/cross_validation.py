"""Search on some prompts, score on others: how much of a found speedup is fitted to the prompts, and how many it takes.

Halves are by document, as everywhere (`perfmodel/acceptance/splits.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrate.search.scenario import Scenario, rates_at
from calibrate.search.search import search
from perfmodel.acceptance.splits import HALVES, Half, half_of
from perfmodel.policies.policy import Policy
from perfmodel.results.plan import Overfitting


def halves_of(scenarios: Sequence[Scenario]) -> tuple[list[Scenario], list[Scenario]] | None:
    """Every scenario on the one half of its prompts and on the other; None where a half would be empty."""
    first, second = ([_half(scenario, half) for scenario in scenarios] for half in HALVES)
    found = ([scenario for scenario in half if scenario is not None] for half in (first, second))
    one, other = found
    return (one, other) if len(one) == len(other) == len(scenarios) else None


def _half(scenario: Scenario, half: Half) -> Scenario | None:
    kept = [number for number, prompt in enumerate(scenario.trace.header.prompts) if half_of(prompt.name) == half]
    return replace(scenario, trace=scenario.trace.subset(kept)) if kept else None


def log_speedups(scenario: Scenario, policies: Sequence[Policy | None]) -> list[float]:
    """Natural logarithm of the speedup of each policy over plain decoding; minus infinity where one has no price."""
    *rates, plain = rates_at([scenario], [*policies, None])[:, 0].tolist()
    return [math.log(rate / plain) if rate else -math.inf for rate in rates]


def overfitting(scenario: Scenario) -> Overfitting | None:
    """What a search gains on prompts it has seen, and on others; None where a half of the prompts would be empty."""
    halves = halves_of([scenario])
    if halves is None:
        return None
    (one,), (other,) = halves
    seen, unseen = [], []
    for searched, left_out in ((one, other), (other, one)):
        policy = search([searched]).chosen.policy
        seen += log_speedups(searched, [policy])
        unseen += log_speedups(left_out, [policy])
    return Overfitting(seen_speedup=math.exp(sum(seen) / 2), unseen_speedup=math.exp(sum(unseen) / 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a search makes of so many prompts."""

    num_prompts: int
    said_speedup: float
    """Of its policy, on the prompts it was searched on."""
    unseen_speedup: float
    """Of the same policy on the other half."""
    best_speedup: float
    """Of a policy searched on that other half: what could have been had there."""


def learning_curve(scenario: Scenario, numbers: Sequence[int]) -> list[Learned]:
    """Searches on the first few prompts of one half, scored on the other; geometric means of both ways.

    Args:
        scenario: a trace and its prices.
        numbers: of prompts; more than a half holds count as all of it.

    Raises:
        ValueError: the prompts have no two halves.
    """
    halves = halves_of([scenario])
    if halves is None:
        raise ValueError("a learning curve needs prompts of both halves")
    (one,), (other,) = halves
    ways = [(seen, unseen, search([unseen]).chosen.policy) for seen, unseen in ((one, other), (other, one))]
    return [_learned(number, ways) for number in numbers]


def _learned(number: int, ways: Sequence[tuple[Scenario, Scenario, Policy | None]]) -> Learned:
    said, unseen_found, best_found = 0.0, 0.0, 0.0
    for seen, unseen, best in ways:
        few = replace(seen, trace=seen.trace.subset(range(min(number, len(seen.trace.header.prompts)))))
        policy = search([few]).chosen.policy
        [on_few] = log_speedups(few, [policy])
        on_unseen, on_best = log_speedups(unseen, [policy, best])
        said, unseen_found, best_found = said + on_few, unseen_found + on_unseen, best_found + on_best
    return Learned(
        num_prompts=number,
        said_speedup=math.exp(said / len(ways)),
        unseen_speedup=math.exp(unseen_found / len(ways)),
        best_speedup=math.exp(best_found / len(ways)),
    )
