"""Search for the fastest policy: candidates are replayed and priced, never guessed.

There are five families of policies, from simple to complex:

    1. plain decoding
    2. one exit at a fixed length
    3. one exit with a stop rule
    4. optimal stopping: policies without free thresholds (`calibrate.search.optimal_stopping`)
    5. several exits with thresholds

Fixed lengths are searched exhaustively. Stop rules are improved by hill climbing, one setting at a time, from the best of
their grid at the longest draft; thresholds are improved from the optimal-stopping policies. The best policies of several
exits are also tried running ahead or catching up at once, where the pass times allow a gain.

A more complex family is chosen only when a paired bootstrap over documents shows that its gain is more than noise. Thresholds
have many settings, and the best of many candidates always looks a little too good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS, SURVIVAL_FLOORS, neighbours, threshold_grid
from calibrate.search.optimal_stopping import optimal_policies, token_costs
from calibrate.search.scenario import Objective, Scenario, merits, rates_by_scenario, resampled_rates
from perfmodel.acceptance.confidence_curves import fit_curve
from perfmodel.core.units import Floats, TokensPerS
from perfmodel.policies.policy import CalibrationCurve, ConfidenceFloor, HeuristicLength, Policy, StopRule, SurvivalFloor

NUM_CURVE_BINS = 8
MAX_STEPS = 8
MIN_GAIN_FRAC = 0.002
"""A climb ends when a step gains less than this share; the variation between prompts is far larger."""
MAX_LAG_FRAC = 0.01
"""A climb that is slower than the best climb by more than this share is abandoned: no climb gains much more in all."""
NUM_STARTS = 2
CONFIDENT_FRAC = 0.9
"""Share of bootstrap resamples in which a more complex family must be faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPolicy:
    """A policy and its predicted speed."""

    policy: Policy | None
    tokens_per_s: tuple[TokensPerS, ...]
    """By scenario."""
    merit: float
    """The objective's value: for one scenario, its tokens per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The best policy of each family, and the one to run."""

    chosen: ScoredPolicy
    families: tuple[ScoredPolicy, ...]
    """From simple to complex, plain decoding first. A family is left out when none of its policies has a price."""
    optimal_stopping: Policy | None
    """The best policy of the optimal-stopping family; None where none has a price."""
    single_exits: tuple[Policy, ...]
    """Each exit alone at its best fixed length, fastest first. An exit without a price is left out."""
    by_exits: tuple[ScoredPolicy, ...]
    """The best candidate for each set of active exits, fastest first."""
    num_policies: int


def search(scenarios: Sequence[Scenario], objective: Objective = "mean") -> SearchResult:
    """Find the best policy of each family, and choose the simplest one that no other clearly beats.

    Args:
        scenarios: where the policy is to run. All have a draft with the same exits.
        objective: how to combine several scenarios.
    """
    candidates = _Candidates(scenarios, objective)
    [plain] = candidates.score([None])
    fixed = candidates.score(_fixed_lengths(candidates))
    optimal = candidates.score(_optimal_stopping(candidates, max([plain, *fixed], key=_merit)))
    stops = candidates.climb([*candidates.score(_stop_rules(candidates, fixed)), *_with_one_exit(optimal)])
    several = candidates.climb(candidates.score(_several_exits(fixed, stops, optimal)))
    starts = _best_by_exits(several, NUM_STARTS)
    if candidates.running_ahead_can_gain:
        several += candidates.climb(candidates.score(replace(policy, runs_ahead=True) for policy in starts))
    if candidates.catching_up_at_once_can_gain:
        several += candidates.climb(candidates.score(replace(policy, catches_up_at_once=True) for policy in starts))
    best_optimal = max(optimal, key=_merit, default=None)
    best = [max(family, key=_merit) for family in (fixed, stops, optimal, several) if family]
    families = (plain, *(scored for scored in best if scored.merit > 0))
    return SearchResult(
        chosen=_simplest(candidates, [scored for scored in families if scored.merit > 0] or [plain]),
        families=families,
        optimal_stopping=best_optimal.policy if best_optimal and best_optimal.merit > 0 else None,
        single_exits=tuple(_best_by_exits([scored for scored in fixed if scored.merit > 0], len(candidates.exit_layers))),
        by_exits=tuple(candidates.score(_best_by_exits(candidates.scored, len(candidates.scored)))),
        num_policies=len(candidates.scored),
    )


class _Candidates:
    """Everything a search has scored, and the grids that candidates are drawn from."""

    def __init__(self, scenarios: Sequence[Scenario], objective: Objective) -> None:
        self.scenarios, self.objective = scenarios, objective
        self.header = scenarios[0].trace.header
        self.exit_layers = self.header.exit_layers
        self.confidence, self.agreement = (
            np.concatenate([getattr(scenario.trace, column) for scenario in scenarios]).astype(np.float64)
            for column in ("confidence", "accept_prob")
        )
        self.grids = {layer: threshold_grid(self.confidence[:, e]) for e, layer in enumerate(self.exit_layers)}
        self.curve = cache(self._curve)
        self._scored: dict[Policy | None, ScoredPolicy] = {}
        self._plain = rates_by_scenario(scenarios, [None])[0]
        self._store([None], self._plain[None])

    @property
    def running_ahead_can_gain(self) -> bool:
        """Whether a segment launched before an exit's answer takes less time than the answer and the segment in turn."""
        return any(
            scenario.line("ahead", stage, 1).base_s
            < (1 - MIN_GAIN_FRAC) * (scenario.line("exit", stage - 1, 1).base_s + scenario.line("segment", stage, 1).base_s)
            for scenario in self.scenarios
            for stage in range(1, len(self.exit_layers))
        )

    @property
    def catching_up_at_once_can_gain(self) -> bool:
        """Whether a pass of several tokens through a later segment takes longer than one pass for each token."""
        return any(
            (1 + MIN_GAIN_FRAC) * rows * scenario.pass_s("segment", stage, 1)
            < scenario.pass_s("segment", stage, rows)
            < math.inf
            for scenario in self.scenarios
            for stage in range(1, len(self.exit_layers))
            for rows in range(2, MAX_DRAFT_TOKENS + 1)
        )

    @property
    def scored(self) -> list[ScoredPolicy]:
        return list(self._scored.values())

    def _curve(self, layer: int) -> CalibrationCurve:
        """Agreement of one exit by its confidence."""
        e = self.exit_layers.index(layer)
        return fit_curve(self.confidence[:, e], self.agreement[:, e], num_bins=NUM_CURVE_BINS)

    def single_exit(self, layer: int, tokens: int, stop: StopRule | None = None) -> Policy:
        return Policy(exits=(layer,), tokens=tokens, stop=stop, confidence=self.header.confidence)

    def score(self, policies: Iterable[Policy | None]) -> list[ScoredPolicy]:
        """Score policies, in the order given. A search replays each policy once."""
        requested = list(dict.fromkeys(policies))
        new = [policy for policy in requested if policy not in self._scored]
        if new:
            self._store(new, rates_by_scenario(self.scenarios, new))
        return [self._scored[policy] for policy in requested]

    def _store(self, policies: Sequence[Policy | None], rates: Floats) -> None:
        values = merits(rates, self._plain, self.objective)
        for policy, by_scenario, merit in zip(policies, rates.tolist(), values.tolist(), strict=True):
            self._scored[policy] = ScoredPolicy(policy=policy, tokens_per_s=tuple(by_scenario), merit=merit)

    def climb(self, scored: Sequence[ScoredPolicy]) -> list[ScoredPolicy]:
        """Hill climbing from the best of some candidates, one setting at a time. Returns them and everything scored since."""

        def merit(policy: Policy) -> float:
            return self._scored[policy].merit

        climbing, results = _best_by_exits(scored, NUM_STARTS), list(scored)
        for _ in range(MAX_STEPS):
            groups = [neighbours(policy, self.grids) for policy in climbing]
            results += self.score(neighbour for group in groups for neighbour in group)
            higher = [max([policy, *group], key=merit) for policy, group in zip(climbing, groups, strict=True)]
            best = max(map(merit, higher), default=0.0)
            climbing = [
                new
                for old, new in zip(climbing, higher, strict=True)
                if merit(new) > max(merit(old) * (1 + MIN_GAIN_FRAC), best * (1 - MAX_LAG_FRAC))
            ]
            if not climbing:
                break
        return results


def _fixed_lengths(candidates: _Candidates) -> list[Policy]:
    """Every exit alone at every length."""
    lengths = range(1, MAX_DRAFT_TOKENS + 1)
    return [candidates.single_exit(layer, tokens) for layer in candidates.exit_layers for tokens in lengths]


def _stop_rules(candidates: _Candidates, fixed: Sequence[ScoredPolicy]) -> list[Policy]:
    """The best single exits with every stop rule of the grid, at the longest draft; the climb shortens it."""
    policies = []
    for best in _best_by_exits(fixed, NUM_STARTS):
        (layer,) = best.exits
        calibration = (candidates.curve(layer),)
        stops: list[StopRule] = [HeuristicLength(start=min(5, MAX_DRAFT_TOKENS))]
        stops += [ConfidenceFloor(floor=floor) for floor in candidates.grids[layer]]
        stops += [SurvivalFloor(floor=floor, calibration=calibration) for floor in SURVIVAL_FLOORS]
        policies += [candidates.single_exit(layer, MAX_DRAFT_TOKENS, stop) for stop in stops]
    return policies


def _optimal_stopping(candidates: _Candidates, best: ScoredPolicy) -> list[Policy]:
    """Optimal policies of one, two, three and all exits in every scenario, at the rate of the best policy so far."""
    policies: list[Policy] = []
    for scenario, rate in zip(candidates.scenarios, best.tokens_per_s, strict=True):
        costs = token_costs(scenario)
        for exits in _subsets(candidates.exit_layers):
            policies += optimal_policies(scenario, costs, exits, [candidates.curve(layer) for layer in exits], rate)
    return policies


def _subsets(exit_layers: tuple[int, ...]) -> list[tuple[int, ...]]:
    sizes = sorted({1, 2, 3, len(exit_layers)} & set(range(1, len(exit_layers) + 1)))
    return [exits for size in sizes for exits in combinations(exit_layers, size)]


def _with_one_exit(scored: Sequence[ScoredPolicy]) -> list[ScoredPolicy]:
    return [candidate for candidate in scored if candidate.policy and len(candidate.policy.exits) == 1]


def _several_exits(
    fixed: Sequence[ScoredPolicy], stops: Sequence[ScoredPolicy], optimal: Sequence[ScoredPolicy]
) -> list[Policy]:
    """Every optimal-stopping policy of several exits, as it is and with the best lengths and stop rules of one exit."""
    best = [policy for policy in (max(family, key=_merit).policy for family in (fixed, stops)) if policy]
    gated = [scored.policy for scored in optimal if scored.policy and len(scored.policy.exits) > 1]
    return gated + [
        replace(policy, tokens=single.tokens, stop=_stop_for(policy, single.stop)) for policy in gated for single in best
    ]


def _stop_for(policy: Policy, stop: StopRule | None) -> StopRule | None:
    """A stop rule with the calibration curves of the policy's exits."""
    if isinstance(stop, SurvivalFloor):
        assert isinstance(policy.stop, SurvivalFloor)
        return replace(stop, calibration=policy.stop.calibration)
    return stop


def _best_by_exits(scored: Sequence[ScoredPolicy], number: int) -> list[Policy]:
    """The best policy for each set of active exits, fastest first; at most `number` of them."""
    best: dict[tuple[int, ...], Policy] = {}
    for candidate in sorted(scored, key=_merit, reverse=True):
        if candidate.policy:
            best.setdefault(candidate.policy.exits, candidate.policy)
    return list(best.values())[:number]


def _simplest(candidates: _Candidates, families: Sequence[ScoredPolicy]) -> ScoredPolicy:
    """The last family, from simple to complex, that clearly beats the one chosen before it."""
    scenarios, objective = candidates.scenarios, candidates.objective
    rates = resampled_rates(scenarios, [scored.policy for scored in families])
    plain = resampled_rates(scenarios, [None])[0] if objective == "worst" else np.ones(len(scenarios))
    by_family = dict(zip(families, merits(rates, plain, objective), strict=True))
    chosen = families[0]
    for scored in families[1:]:
        if np.mean(by_family[scored] > by_family[chosen]) >= CONFIDENT_FRAC:
            chosen = scored
    return chosen


def _merit(scored: ScoredPolicy) -> float:
    return scored.merit
