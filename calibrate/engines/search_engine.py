"""Search for the fastest policy that an engine can execute: one exit, at a fixed length or with the engine's confidence floor.

All lengths are tried with every exit. A floor is tried with the best lengths only. A configuration outside the profile is
discounted by one standard deviation of the error that it adds: it is chosen only if its gain is larger than that. Of lengths
that are nearly equally fast the shortest is chosen: it wastes less in larger batches and where text is accepted less often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from calibrate.pricing.pricing import Pricing
from calibrate.search.cross_validation import log_speedups, split_halves
from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS, threshold_grid
from calibrate.search.scenario import Scenario
from calibrate.search.search import CONFIDENT_FRAC, ScoredPolicy, SearchResult
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Frac, Tokens
from perfmodel.engines.check_constraints import executable_policy_problems
from perfmodel.engines.engine import Engine
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.results.plan import Overfitting

NUM_FLOOR_STARTS = 2
"""Exits whose best lengths are tried with floors."""
TIE_FRAC: Frac = 0.02
"""Two lengths of an exit count as equally fast if their predicted speeds differ by at most this share. The smallest error
that a plan for an engine states is more than twice as large."""


def engine_scenario(trace: Trace, pricing: Pricing) -> Scenario:
    """A scenario whose rounds have the engine's passes."""
    return Scenario(trace, pricing.draft, pricing.target, pricing.round_shape)


def search_engine(scenario: Scenario, engine: Engine, pricing: Pricing) -> SearchResult:
    """The fastest policy that an engine executes.

    Args:
        scenario: acceptance and prices.
        engine: what it can execute.
        pricing: of the scenario; states the error of each policy.
    """
    [plain] = _score(scenario, pricing, [None])
    fixed = _score(scenario, pricing, fixed_lengths(scenario, engine))
    floored = _score(scenario, pricing, _floors(scenario, engine, fixed))
    best = [_best_by_exit(family)[0] for family in (fixed, floored) if family]
    families = (plain, *(scored for scored in best if scored.merit > 0))
    scored = [candidate for candidate in (*fixed, *floored) if candidate.merit > 0]
    return SearchResult(
        chosen=_simplest(scenario, families),
        families=families,
        optimal_stopping=None,
        single_exits=tuple(candidate.policy for candidate in _best_by_exit(fixed) if candidate.policy and candidate.merit > 0),
        by_exits=tuple(_best_by_exit(scored)),
        num_policies=1 + len(fixed) + len(floored),
    )


def fixed_lengths(scenario: Scenario, engine: Engine) -> list[Policy]:
    """Every exit alone at every length that the engine takes."""
    header = scenario.trace.header
    return [
        Policy(exits=(layer,), tokens=tokens, confidence=header.confidence)
        for layer in header.exit_layers
        for tokens in draft_lengths_of(engine)
    ]


def draft_lengths_of(engine: Engine) -> range:
    """Draft lengths that a plan for an engine may have."""
    upper = MAX_DRAFT_TOKENS if engine.max_draft_tokens is None else min(engine.max_draft_tokens, MAX_DRAFT_TOKENS)
    return range(engine.min_draft_tokens, upper + 1)


def engine_overfitting(scenario: Scenario, engine: Engine, pricing: Pricing) -> Overfitting | None:
    """Speedup on the prompts that a policy was searched on, and on the other half; None where a half would be empty."""
    halves = split_halves([scenario])
    if halves is None:
        return None
    (first,), (second,) = halves
    seen: list[float] = []
    unseen: list[float] = []
    for searched, held_out in ((first, second), (second, first)):
        policy = search_engine(searched, engine, pricing).chosen.policy
        seen += log_speedups(searched, [policy])
        unseen += log_speedups(held_out, [policy])
    return Overfitting(seen_speedup=math.exp(sum(seen) / 2), unseen_speedup=math.exp(sum(unseen) / 2))


def _floors(scenario: Scenario, engine: Engine, fixed: Sequence[ScoredPolicy]) -> list[Policy]:
    """The best exits with the engine's confidence floor, if the trace has the confidence that the engine compares with it."""
    header, floor = scenario.trace.header, engine.floor
    if floor is None or not floor.is_recommended or header.confidence != floor.measure:
        return []
    policies = []
    for candidate in _best_by_exit(fixed)[:NUM_FLOOR_STARTS]:
        assert candidate.policy is not None
        [layer] = candidate.policy.exits
        grid = threshold_grid(scenario.trace.confidence[:, header.exit_layers.index(layer)].astype(np.float64))
        policies += [
            Policy(exits=(layer,), tokens=tokens, stop=stop, confidence=header.confidence)
            for tokens in _longer_lengths(engine, candidate.policy.tokens)
            for stop in engine_floors(engine, grid)
        ]
    return [policy for policy in policies if not executable_policy_problems(engine, policy)]


def engine_floors(engine: Engine, values: Iterable[float]) -> list[ConfidenceFloor]:
    """Stop rules at some floors as an engine applies them."""
    assert engine.floor is not None
    return [ConfidenceFloor(floor=value, keeps_token=engine.floor.keeps_token) for value in values]


def _longer_lengths(engine: Engine, tokens: Tokens) -> list[Tokens]:
    """The best fixed length and longer ones, which a floor cuts short."""
    return [length for length in draft_lengths_of(engine) if length >= tokens][::2]


def _score(scenario: Scenario, pricing: Pricing, policies: Sequence[Policy | None]) -> list[ScoredPolicy]:
    """Predicted tokens per second of policies; the merit of those outside the profile is discounted."""
    if not policies:
        return []
    rates = scenario.tokens_per_s(policies).tolist()
    return [
        ScoredPolicy(policy=policy, tokens_per_s=(rate,), merit=rate * (1 - _added_error_frac(pricing, policy)))
        for policy, rate in zip(policies, rates, strict=True)
    ]


def _added_error_frac(pricing: Pricing, policy: Policy | None) -> Frac:
    """What a policy outside the profile adds to the error of its speedup; 0 within it."""
    draft, _ = pricing.models_for(policy)
    return min(1.0, max(0.0, draft.error_frac - pricing.draft.error_frac)) if draft.level == "extrapolated" else 0.0


def _best_by_exit(scored: Iterable[ScoredPolicy]) -> list[ScoredPolicy]:
    """The shortest of the best policies of each exit; exits in the order of their best."""
    by_exit: dict[tuple[int, ...], list[ScoredPolicy]] = {}
    for candidate in sorted(scored, key=_merit, reverse=True):
        if candidate.policy is not None:
            by_exit.setdefault(candidate.policy.exits, []).append(candidate)
    return [min(_near_best(candidates), key=_draft_tokens) for candidates in by_exit.values()]


def _near_best(candidates: Sequence[ScoredPolicy]) -> list[ScoredPolicy]:
    """The candidates that are nearly as fast as the first, which is the best; fastest first."""
    return [candidate for candidate in candidates if candidate.merit >= (1 - TIE_FRAC) * candidates[0].merit]


def _draft_tokens(scored: ScoredPolicy) -> Tokens:
    return 0 if scored.policy is None else scored.policy.tokens


def _simplest(scenario: Scenario, families: Sequence[ScoredPolicy]) -> ScoredPolicy:
    """The last family, from simple to complex, that is faster than the one chosen before in most resamples of the prompts."""
    discounts = np.array([candidate.merit / candidate.tokens_per_s[0] for candidate in families])
    rates = scenario.resampled_rates([candidate.policy for candidate in families]) * discounts[:, None]
    chosen = 0
    for number in range(1, len(families)):
        if np.mean(rates[number] > rates[chosen]) >= CONFIDENT_FRAC:
            chosen = number
    return families[chosen]


def _merit(scored: ScoredPolicy) -> float:
    return scored.merit
