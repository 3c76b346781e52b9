"""Evidence -> the fastest policy, or none: candidates are replayed and priced, never guessed.

Five families, each simpler than the next: plain decoding, one exit at a fixed length, one exit with a stop rule, what costs
imply without a free threshold (`calibrate.search.optimal_stopping`), several exits with thresholds. Fixed lengths are searched exhaustively;
stop rules climb from the best of their grid for the longest drafts, and thresholds from what costs imply, one setting at a
time. Where prices say that running ahead hides something, or that tokens are faster one by one than in one pass, the best of
several exits are tried running ahead, or catching up at once, too. A family is preferred to a simpler one only where a paired
bootstrap over documents says that its gain is more than noise: thresholds have many settings, and the best of many is always
a little too good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS, SURVIVAL_FLOORS, neighbours, place_cuts
from calibrate.search.optimal_stopping import costs_of, derive
from calibrate.search.scenario import Objective, Scenario, merit_of, rates_at, resampled_rates
from perfmodel.core.units import Floats
from perfmodel.acceptance.confidence_curves import fit_curve
from perfmodel.core.units import TokensPerS
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    StopRule,
    SurvivalFloor,
)

NUM_CURVE_BINS = 8
MAX_STEPS = 8
MIN_GAIN_FRAC = 0.002
"""A climb ends with a step that gains less: prompts scatter by far more."""
MAX_LAG_FRAC = 0.01
"""A climb that is behind another by more gives up: no climb gains much more in all."""
NUM_STARTS = 2
CONFIDENT_FRAC = 0.9
"""Share of bootstrap resamples in which a more complex policy must be faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A policy and what is predicted of it."""

    policy: Policy | None
    tokens_per_s: tuple[TokensPerS, ...]
    """By scenario."""
    merit: float
    """What the objective makes of them: of a single scenario, its tokens per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The best of each family, and the one to run."""

    chosen: Scored
    families: tuple[Scored, ...]
    """From simple to complex, plain decoding first; a family is left out when nothing in it can be priced."""
    derived: Policy | None
    """The best that costs imply without a free threshold; None where they imply nothing that has a price."""
    single_exits: tuple[Policy, ...]
    """Each exit alone, always answering, at its best fixed length; none of an exit that cannot be priced."""
    by_exits: tuple[Scored, ...]
    """The best that was met with each set of looked-at exits, best first."""
    num_policies: int


def search(scenarios: Sequence[Scenario], objective: Objective = "mean") -> SearchResult:
    """The best of each family of policies, and the simplest that no other clearly beats: the one to run.

    Args:
        scenarios: where the policy is to run, all with the same draft's exits.
        objective: what to make of several scenarios.
    """
    space = _Space(scenarios, objective)
    [plain] = space.score([None])
    fixed = space.score(_fixed_lengths(space))
    derived = space.score(_derived(space, max([plain, *fixed], key=_merit)))
    stops = space.climb([*space.score(_stop_rules(space, fixed)), *_of_one_exit(derived)])
    gated = space.climb(space.score(_gates(fixed, stops, derived)))
    starts = _best_apart(gated, NUM_STARTS)
    if space.hides_waits:
        gated += space.climb(space.score(replace(policy, runs_ahead=True) for policy in starts))
    if space.is_faster_one_by_one:
        gated += space.climb(space.score(replace(policy, catches_up_at_once=True) for policy in starts))
    implied = max(derived, key=_merit, default=None)
    best = [max(family, key=_merit) for family in (fixed, stops, derived, gated) if family]
    families = (plain, *(one for one in best if one.merit > 0))
    return SearchResult(
        chosen=_simplest(space, [one for one in families if one.merit > 0] or [plain]),
        families=families,
        derived=implied.policy if implied and implied.merit > 0 else None,
        single_exits=tuple(_best_apart([one for one in fixed if one.merit > 0], len(space.exit_layers))),
        by_exits=tuple(space.score(_best_apart(space.met, len(space.met)))),
        num_policies=len(space.met),
    )


class _Space:
    """What a search looks at: scenarios, grids of settings, and the policies it has scored."""

    def __init__(self, scenarios: Sequence[Scenario], objective: Objective) -> None:
        self.scenarios, self.objective = scenarios, objective
        self.header = scenarios[0].trace.header
        self.exit_layers = self.header.draft.exit_layers
        self.confidence, self.agreement = (
            np.concatenate([getattr(scenario.trace, column) for scenario in scenarios]).astype(np.float64)
            for column in ("confidence", "accept_prob")
        )
        self.cuts = {layer: place_cuts(self.confidence[:, e]) for e, layer in enumerate(self.exit_layers)}
        self.curve = cache(self._curve)
        self._known: dict[Policy | None, Scored] = {}
        self._plain = rates_at(scenarios, [None])[0]
        self._keep([None], self._plain[None])

    @property
    def hides_waits(self) -> bool:
        """Whether a segment that runs ahead of an exit's answer takes less than waiting for it first."""
        return any(
            scenario.price.line("ahead", stage, 1).base_s
            < (1 - MIN_GAIN_FRAC)
            * (scenario.price.line("exit", stage - 1, 1).base_s + scenario.price.line("segment", stage, 1).base_s)
            for scenario in self.scenarios
            for stage in range(1, len(self.exit_layers))
        )

    @property
    def is_faster_one_by_one(self) -> bool:
        """Whether tokens take longer through a segment that some never reach in one pass than in passes of their own."""
        return any(
            (1 + MIN_GAIN_FRAC) * rows * scenario.pass_s("segment", stage, 1)
            < scenario.pass_s("segment", stage, rows)
            < math.inf
            for scenario in self.scenarios
            for stage in range(1, len(self.exit_layers))
            for rows in range(2, MAX_DRAFT_TOKENS + 1)
        )

    @property
    def met(self) -> list[Scored]:
        return list(self._known.values())

    def _curve(self, layer: int) -> CalibrationCurve:
        """Agreement of one exit by its confidence."""
        e = self.exit_layers.index(layer)
        return fit_curve(self.confidence[:, e], self.agreement[:, e], num_bins=NUM_CURVE_BINS)

    def policy(self, exit_layer: int, tokens: int, stop: StopRule | None = None) -> Policy:
        """One exit alone."""
        return Policy(exits=(exit_layer,), tokens=tokens, stop=stop, confidence=self.header.confidence)

    def score(self, policies: Iterable[Policy | None]) -> list[Scored]:
        """What each policy is worth, in the order given, each replayed once in a search."""
        asked = list(dict.fromkeys(policies))
        new = [policy for policy in asked if policy not in self._known]
        if new:
            self._keep(new, rates_at(self.scenarios, new))
        return [self._known[policy] for policy in asked]

    def _keep(self, policies: Sequence[Policy | None], rates: Floats) -> None:
        merits = merit_of(rates, self._plain, self.objective)
        for policy, by_case, merit in zip(policies, rates.tolist(), merits.tolist(), strict=True):
            self._known[policy] = Scored(policy=policy, tokens_per_s=tuple(by_case), merit=merit)

    def merit(self, policy: Policy | None) -> float:
        """Of a policy that was scored."""
        return self._known[policy].merit

    def climb(self, found: Sequence[Scored]) -> list[Scored]:
        """Everything found, and what was met on the way up from the best of it, one setting at a time."""
        climbing, met = _best_apart(found, NUM_STARTS), list(found)
        for _ in range(MAX_STEPS):
            near = [neighbours(policy, self.cuts) for policy in climbing]
            met += self.score(moved for group in near for moved in group)
            higher = [max([policy, *group], key=self.merit) for policy, group in zip(climbing, near, strict=True)]
            best = max(map(self.merit, higher), default=0.0)
            climbing = [
                new
                for old, new in zip(climbing, higher, strict=True)
                if self.merit(new) > max(self.merit(old) * (1 + MIN_GAIN_FRAC), best * (1 - MAX_LAG_FRAC))
            ]
            if not climbing:
                break
        return met


def _fixed_lengths(space: _Space) -> list[Policy]:
    """Every exit alone at every length."""
    lengths = range(1, MAX_DRAFT_TOKENS + 1)
    return [space.policy(layer, cap) for layer in space.exit_layers for cap in lengths]


def _stop_rules(space: _Space, fixed: Sequence[Scored]) -> list[Policy]:
    """The best exits alone with every stop rule of the grid; how long at most is left to the climb."""
    policies = []
    for best in _best_apart(fixed, NUM_STARTS):
        (layer,) = best.exits
        curve = (space.curve(layer),)
        rules: list[StopRule] = [HeuristicLength(start=min(5, MAX_DRAFT_TOKENS))]
        rules += [ConfidenceFloor(floor=floor) for floor in space.cuts[layer]]
        rules += [SurvivalFloor(floor=floor, calibration=curve) for floor in SURVIVAL_FLOORS]
        policies += [space.policy(layer, MAX_DRAFT_TOKENS, rule) for rule in rules]
    return policies


def _derived(space: _Space, best: Scored) -> list[Policy]:
    """What the rates at hand imply in every scenario for one, two, three and all exits."""
    found: list[Policy] = []
    for scenario, rate in zip(space.scenarios, best.tokens_per_s, strict=True):
        costs = costs_of(scenario)
        for layers in _subsets(space.exit_layers):
            found += derive(scenario, costs, layers, [space.curve(layer) for layer in layers], rate)
    return found


def _subsets(exit_layers: tuple[int, ...]) -> list[tuple[int, ...]]:
    sizes = sorted({1, 2, 3, len(exit_layers)} & set(range(1, len(exit_layers) + 1)))
    return [layers for size in sizes for layers in combinations(exit_layers, size)]


def _of_one_exit(found: Sequence[Scored]) -> list[Scored]:
    return [one for one in found if one.policy and len(one.policy.exits) == 1]


def _gates(fixed: Sequence[Scored], stops: Sequence[Scored], derived: Sequence[Scored]) -> list[Policy]:
    """Every derived policy of several exits, and with the best length rules found for one exit."""
    lengths = [(best.tokens, best.stop) for best in (max(family, key=_merit).policy for family in (fixed, stops)) if best]
    gates = [one.policy for one in derived if one.policy and len(one.policy.exits) > 1]
    return gates + [replace(gate, tokens=tokens, stop=_fitted_to(gate, stop)) for gate in gates for tokens, stop in lengths]


def _fitted_to(gate: Policy, rule: StopRule | None) -> StopRule | None:
    """The rule with the curves of a derived policy's exits."""
    if isinstance(rule, SurvivalFloor):
        assert isinstance(gate.stop, SurvivalFloor)
        return replace(rule, calibration=gate.stop.calibration)
    return rule


def _best_apart(found: Sequence[Scored], number: int) -> list[Policy]:
    """The best few that differ in their exits, fastest first."""
    best: dict[tuple[int, ...], Policy] = {}
    for one in sorted(found, key=_merit, reverse=True):
        if one.policy:
            best.setdefault(one.policy.exits, one.policy)
    return list(best.values())[:number]


def _simplest(space: _Space, families: Sequence[Scored]) -> Scored:
    """The last family, from simple to complex, that clearly beats the one preferred before it."""
    rates = resampled_rates(space.scenarios, [one.policy for one in families])
    plain = resampled_rates(space.scenarios, [None])[0] if space.objective == "worst" else np.ones(len(space.scenarios))
    merits = dict(zip(families, merit_of(rates, plain, space.objective), strict=True))
    chosen = families[0]
    for one in families[1:]:
        if np.mean(merits[one] > merits[chosen]) >= CONFIDENT_FRAC:
            chosen = one
    return chosen


def _merit(one: Scored) -> float:
    return one.merit
