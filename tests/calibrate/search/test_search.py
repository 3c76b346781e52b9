"""Search: the result is never clearly slower than a candidate, and simple policies are preferred within noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS, SURVIVAL_FLOORS, threshold_grid
from calibrate.search.scenario import Scenario, rates_by_scenario
from calibrate.search.search import NUM_CURVE_BINS, SearchResult, search
from perfmodel.acceptance.confidence_curves import fit_curve
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import OutOfDomain
from perfmodel.latency.latency_model import LatencyLevel
from perfmodel.passes.passes import Line, PassKind
from perfmodel.policies.policy import ConfidenceFloor, HeuristicLength, Policy, StopRule, SurvivalFloor
from perfmodel.replay.replay import replay, replay_batch
from tests.calibrate.factories import with_sure_first_exit
from tests.strategies import TraceSpec, make_trace, policies, traces

EXITS = (1, 2, 4, 6)


@dataclass(frozen=True)
class ConstantLatency:
    """A latency model with constant seconds by kind of pass; every segment costs the same."""

    segment_s: float = 0.0
    together_frac: float = 0.0
    """Seconds of a segment pass of several rows, as a share of as many one-row passes; never below one pass."""
    exit_s: float = 0.0
    ahead_s: float = math.inf
    """Infinite without a measurement."""
    verify_s: float = 0.0
    verify_row_s: float = 0.0
    max_rows: int = 1000
    level: LatencyLevel = "measured"
    error_frac: float = 0.01

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        if rows > self.max_rows:
            raise OutOfDomain("rows", rows, low=1, high=self.max_rows, fix="Profile more")
        segment_s = self.segment_s * max(1.0, self.together_frac * rows if rows > 1 else 1.0)
        base = {"segment": segment_s, "exit": self.exit_s, "ahead": self.ahead_s, "round": 1e-6}
        return Line(base.get(kind, self.verify_s + self.verify_row_s * rows), 1e-9)

    def cold_s(self, kind: PassKind, stage: int, place: int) -> float:
        return 0.0


CHEAP = ConstantLatency(segment_s=2e-4, exit_s=1e-4)
TARGET = ConstantLatency(verify_s=4e-3, verify_row_s=1e-4)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace(TraceSpec(num_positions=[80] * 16, max_new_tokens=80))


def test_a_draft_as_slow_as_its_target_is_not_used(trace: Trace) -> None:
    slow = ConstantLatency(segment_s=4e-3, exit_s=1e-3)
    assert search([Scenario(trace, slow, TARGET)]).chosen.policy is None


def test_a_draft_that_never_agrees_is_not_used() -> None:
    trace = make_trace(TraceSpec(num_positions=[40] * 4, agreement=(0.0,) * 4, max_new_tokens=40))
    trace.accept_prob[:] = 0
    assert search([Scenario(trace, CHEAP, TARGET)]).chosen.policy is None


def test_a_free_draft_uses_its_best_exit_at_the_longest_length() -> None:
    trace = make_trace(TraceSpec(num_positions=[80] * 16, max_new_tokens=80, agreement=(0.3, 0.4, 0.5, 0.95)))
    policy = search([Scenario(trace, ConstantLatency(), ConstantLatency(verify_s=4e-3))]).chosen.policy
    assert policy is not None
    assert policy.exits[-1] == 6
    assert replay(trace, policy).tokens_per_round > 5


def test_running_ahead_is_chosen_only_where_it_hides_enough(trace: Trace) -> None:
    """Running ahead hides the wait for an answer fully, not at all, or less than the wasted passes cost."""
    waiting, both = ConstantLatency(segment_s=2e-4, exit_s=3e-4), 5e-4
    rates = {}
    for ahead_s in (2.5e-4, 0.99 * both, both, math.inf):
        result = search([Scenario(trace, replace(waiting, ahead_s=ahead_s), TARGET)])
        rates[ahead_s] = result.families[-1].merit
        policy = result.families[-1].policy
        assert policy is not None
        assert policy.runs_ahead == (ahead_s == 2.5e-4)
    assert rates[2.5e-4] > 1.02 * rates[both] == 1.02 * rates[math.inf]


def search_and_record(monkeypatch: pytest.MonkeyPatch, scenario: Scenario) -> tuple[SearchResult, list[Policy]]:
    """The result of a search, and the policies that it replays."""
    replayed: list[Policy | None] = []

    def spy(scenarios: Sequence[Scenario], policies: Sequence[Policy | None]) -> np.ndarray:
        replayed.extend(policies)
        return rates_by_scenario(scenarios, policies)

    monkeypatch.setattr("calibrate.search.search.rates_by_scenario", spy)
    return search([scenario]), [policy for policy in replayed if policy]


def test_catching_up_at_once_is_chosen_where_long_passes_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = with_sure_first_exit(make_trace(TraceSpec(num_positions=[80] * 16, max_new_tokens=80)))
    scenario = Scenario(trace, replace(CHEAP, together_frac=3.0), TARGET)
    result, replayed = search_and_record(monkeypatch, scenario)
    policy = result.chosen.policy
    assert policy is not None
    assert policy.catches_up_at_once
    when_needed = [policy for policy in replayed if not policy.catches_up_at_once]
    assert result.chosen.merit > 1.02 * scenario.tokens_per_s(when_needed).max()


@pytest.mark.parametrize("together_frac", [0.0, 0.5, 1.0])
def test_catching_up_at_once_is_not_tried_where_one_pass_is_as_fast_as_several(
    monkeypatch: pytest.MonkeyPatch, trace: Trace, together_frac: float
) -> None:
    _, replayed = search_and_record(monkeypatch, Scenario(trace, replace(CHEAP, together_frac=together_frac), TARGET))
    assert any(len(policy.exits) > 1 for policy in replayed)
    assert not any(policy.catches_up_at_once for policy in replayed)


def test_catching_up_at_once_is_not_tried_without_evidence_for_long_passes(
    monkeypatch: pytest.MonkeyPatch, trace: Trace
) -> None:
    _, replayed = search_and_record(monkeypatch, Scenario(trace, replace(CHEAP, max_rows=2), TARGET))
    assert not any(policy.catches_up_at_once for policy in replayed)


def test_exits_with_equal_predictions_get_no_threshold() -> None:
    """All exits predict the same, so the deeper ones only cost time."""
    trace = make_trace(TraceSpec(num_positions=[80] * 16, max_new_tokens=80))
    same = {name: np.repeat(getattr(trace, name)[:, 3:], 4, axis=1) for name in ("confidence", "draft_token", "accept_prob")}
    policy = search([Scenario(replace(trace, **same), CHEAP, TARGET)]).chosen.policy
    assert policy is not None
    assert policy.exits == (1,)


def test_random_policies_do_not_beat_the_result(trace: Trace) -> None:
    result = search([Scenario(trace, CHEAP, TARGET)])
    best = max(scored.merit for scored in result.families)
    rng = np.random.default_rng(0)
    others = [random_policy(rng, trace) for _ in range(1500)]
    batch = replay_batch(trace, others)
    rates = batch.num_tokens / batch.seconds(CHEAP, TARGET)
    assert rates.max() <= 1.01 * best


def random_policy(rng: np.random.Generator, trace: Trace) -> Policy:
    layers = tuple(sorted(rng.choice(EXITS, rng.integers(1, 5), replace=False).tolist()))
    tokens = int(rng.integers(1, 13))
    return Policy(exits=layers, thresholds=tuple(rng.random(len(layers) - 1)), tokens=tokens)


def test_each_family_has_its_kind_of_policy_at_its_replayed_speed(trace: Trace) -> None:
    plain, fixed, stops, optimal, gated = search([Scenario(trace, CHEAP, TARGET)]).families
    assert plain.policy is None
    assert fixed.policy is not None
    assert stops.policy is not None
    assert optimal.policy is not None
    assert gated.policy is not None
    assert isinstance(optimal.policy.stop, SurvivalFloor)
    assert fixed.policy.stop is None
    assert stops.policy.stop is not None
    assert len(fixed.policy.exits) == len(stops.policy.exits) == 1 < len(gated.policy.exits)
    for scored in (plain, fixed, stops, optimal, gated):
        batch = replay_batch(trace, [scored.policy])
        assert scored.merit == pytest.approx((batch.num_tokens / batch.seconds(CHEAP, TARGET))[0])


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(traces())
def test_the_result_is_never_slower_than_plain_decoding(trace: Trace) -> None:
    chosen = replay_batch(trace, [search([Scenario(trace, CHEAP, TARGET)]).chosen.policy, None])
    seconds = chosen.seconds(CHEAP, TARGET)
    assert seconds[0] <= seconds[1]


def test_a_policy_without_evidence_for_its_passes_is_never_chosen(trace: Trace) -> None:
    policy = search([Scenario(trace, replace(CHEAP, max_rows=2), replace(TARGET, max_rows=4))]).chosen.policy
    assert policy is not None
    passes = replay(trace, policy).passes
    assert max(p.rows for p in passes if p.kind == "segment") <= 2
    assert max(p.rows for p in passes if p.kind == "verify") <= 4


def test_grid_thresholds_lie_strictly_between_confidences(trace: Trace) -> None:
    confidence = trace.confidence[:, 0]
    grid = threshold_grid(confidence)
    assert len(grid) == 32
    assert list(grid) == sorted(set(grid))
    assert min(np.abs(confidence - threshold).min() for threshold in grid) > 1e-5


def test_a_constant_confidence_has_an_empty_grid_and_can_still_be_searched() -> None:
    assert threshold_grid(np.full(50, 0.5, np.float32)) == ()
    trace = make_trace(TraceSpec(num_positions=[40] * 4, max_new_tokens=40))
    flat = replace(trace, confidence=np.full_like(trace.confidence, 0.5))
    policy = search([Scenario(flat, CHEAP, TARGET)]).chosen.policy
    assert policy is not None
    assert policy.stop is None


@settings(max_examples=20)
@given(policies(EXITS))
def test_no_random_policy_beats_the_result_by_more_than_noise(policy: Policy) -> None:
    trace = make_trace(TraceSpec(num_positions=[60] * 8, max_new_tokens=60))
    result = search([Scenario(trace, CHEAP, TARGET)])
    batch = replay_batch(trace, [policy])
    rate = (batch.num_tokens / batch.seconds(CHEAP, TARGET))[0]
    assert rate <= 1.02 * max(scored.merit for scored in result.families)


def every_policy_of_two_exits(trace: Trace) -> Iterator[Policy]:
    """Each exit alone and both together, with every second threshold and floor, every survival floor, length and stop rule."""
    shallow, deep = trace.header.exit_layers
    confidence, agreement = trace.confidence.astype(float), trace.accept_prob.astype(float)
    curves = [fit_curve(confidence[:, e], agreement[:, e], num_bins=NUM_CURVE_BINS) for e in (0, 1)]
    grids = [threshold_grid(confidence[:, e])[::2] for e in (0, 1)]
    gates = [((shallow,), (), curves[:1], grids[0]), ((deep,), (), curves[1:], grids[1])]
    gates += [((shallow, deep), (threshold,), curves, grids[1]) for threshold in grids[0]]
    for exits, thresholds, calibration, floors in gates:
        for tokens in range(1, MAX_DRAFT_TOKENS + 1):
            stops: list[StopRule | None] = [None, HeuristicLength(start=min(5, tokens))]
            stops += [ConfidenceFloor(floor=floor) for floor in floors]
            stops += [SurvivalFloor(floor=floor, calibration=tuple(calibration)) for floor in SURVIVAL_FLOORS]
            for stop in stops:
                yield Policy(exits=exits, thresholds=thresholds, tokens=tokens, stop=stop)


@pytest.mark.parametrize("seed", [0, 2, 4, 7])
def test_the_result_is_within_a_hundredth_of_the_best_of_all_policies_of_two_exits(seed: int) -> None:
    exits = {"exit_layers": (2, 6), "agreement": (0.6, 0.85), "num_confidences": 1000}
    trace = make_trace(TraceSpec(num_positions=[60] * 12, max_new_tokens=60, seed=seed, **exits))  # type: ignore[arg-type]
    scenario = Scenario(trace, ConstantLatency(segment_s=3e-4, exit_s=5e-5), TARGET)
    policies = list(every_policy_of_two_exits(trace))
    result = search([scenario])
    assert len(policies) > 7000 > 30 * result.num_policies
    assert max(scored.merit for scored in result.families) >= 0.99 * scenario.tokens_per_s(policies).max()
