"""Search: never loses to what it could have chosen, and prefers the simple where the rest is noise."""

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
    """A latency model of constants; a segment costs its own each."""

    segment_s: float = 0.0
    together_frac: float = 0.0
    """Seconds of a segment over several rows, of those of as many passes of one row; never less than of one pass."""
    exit_s: float = 0.0
    ahead_s: float = math.inf
    """Infinite where nobody measured it."""
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


def test_running_ahead_is_chosen_where_it_hides_enough_and_only_there(trace: Trace) -> None:
    """Waiting for an answer takes as long as a segment: hidden, or not, or so little that what is thrown away costs more."""
    waiting, both = ConstantLatency(segment_s=2e-4, exit_s=3e-4), 5e-4
    rates = {}
    for ahead_s in (2.5e-4, 0.99 * both, both, math.inf):
        found = search([Scenario(trace, replace(waiting, ahead_s=ahead_s), TARGET)])
        rates[ahead_s] = found.families[-1].merit
        policy = found.families[-1].policy
        assert policy is not None
        assert policy.runs_ahead == (ahead_s == 2.5e-4)
    assert rates[2.5e-4] > 1.02 * rates[both] == 1.02 * rates[math.inf]


def policies_met(monkeypatch: pytest.MonkeyPatch, one: Scenario) -> tuple[SearchResult, list[Policy]]:
    """What a search finds, and the policies it replays for that."""
    met: list[Policy | None] = []

    def spy(scenarios: Sequence[Scenario], policies: Sequence[Policy | None]) -> np.ndarray:
        met.extend(policies)
        return rates_by_scenario(scenarios, policies)

    monkeypatch.setattr("calibrate.search.search.rates_by_scenario", spy)
    return search([one]), [policy for policy in met if policy]


def test_catching_up_at_once_is_chosen_where_long_passes_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = with_sure_first_exit(make_trace(TraceSpec(num_positions=[80] * 16, max_new_tokens=80)))
    one = Scenario(trace, replace(CHEAP, together_frac=3.0), TARGET)
    found, met = policies_met(monkeypatch, one)
    policy = found.chosen.policy
    assert policy is not None
    assert policy.catches_up_at_once
    when_asked = [one for one in met if not one.catches_up_at_once]
    assert found.chosen.merit > 1.02 * rates_by_scenario([one], when_asked).max()


@pytest.mark.parametrize("together_frac", [0.0, 0.5, 1.0])
def test_it_is_not_tried_where_one_pass_takes_no_longer_than_several(
    monkeypatch: pytest.MonkeyPatch, trace: Trace, together_frac: float
) -> None:
    _, met = policies_met(monkeypatch, Scenario(trace, replace(CHEAP, together_frac=together_frac), TARGET))
    assert any(len(policy.exits) > 1 for policy in met)
    assert not any(policy.catches_up_at_once for policy in met)


def test_it_is_not_tried_for_want_of_a_price(monkeypatch: pytest.MonkeyPatch, trace: Trace) -> None:
    _, met = policies_met(monkeypatch, Scenario(trace, replace(CHEAP, max_rows=2), TARGET))
    assert not any(policy.catches_up_at_once for policy in met)


def test_exits_that_agree_alike_are_not_gated() -> None:
    """All exits say the same: the deeper ones only cost."""
    trace = make_trace(TraceSpec(num_positions=[80] * 16, max_new_tokens=80))
    same = {name: np.repeat(getattr(trace, name)[:, 3:], 4, axis=1) for name in ("confidence", "draft_token", "accept_prob")}
    policy = search([Scenario(replace(trace, **same), CHEAP, TARGET)]).chosen.policy
    assert policy is not None
    assert policy.exits == (1,)


def test_the_best_found_is_not_beaten_by_many_random_policies(trace: Trace) -> None:
    result = search([Scenario(trace, CHEAP, TARGET)])
    best = max(one.merit for one in result.families)
    rng = np.random.default_rng(0)
    others = [random_policy(rng, trace) for _ in range(1500)]
    batch = replay_batch(trace, others)
    rates = batch.num_tokens / batch.seconds(CHEAP, TARGET)
    assert rates.max() <= 1.01 * best


def random_policy(rng: np.random.Generator, trace: Trace) -> Policy:
    layers = tuple(sorted(rng.choice(EXITS, rng.integers(1, 5), replace=False).tolist()))
    tokens = int(rng.integers(1, 13))
    return Policy(exits=layers, thresholds=tuple(rng.random(len(layers) - 1)), tokens=tokens)


def test_each_family_is_at_least_as_fast_as_what_it_contains(trace: Trace) -> None:
    plain, fixed, stops, derived, gated = search([Scenario(trace, CHEAP, TARGET)]).families
    assert plain.policy is None
    assert fixed.policy is not None
    assert stops.policy is not None
    assert derived.policy is not None
    assert gated.policy is not None
    assert isinstance(derived.policy.stop, SurvivalFloor)
    assert fixed.policy.stop is None
    assert stops.policy.stop is not None
    assert len(fixed.policy.exits) == len(stops.policy.exits) == 1 < len(gated.policy.exits)
    for one in (plain, fixed, stops, derived, gated):
        batch = replay_batch(trace, [one.policy])
        assert one.merit == pytest.approx((batch.num_tokens / batch.seconds(CHEAP, TARGET))[0])


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(traces())
def test_any_trace_has_an_answer_no_slower_than_plain_decoding(trace: Trace) -> None:
    chosen = replay_batch(trace, [search([Scenario(trace, CHEAP, TARGET)]).chosen.policy, None])
    seconds = chosen.seconds(CHEAP, TARGET)
    assert seconds[0] <= seconds[1]


def test_a_policy_without_evidence_for_its_passes_is_never_chosen(trace: Trace) -> None:
    policy = search([Scenario(trace, replace(CHEAP, max_rows=2), replace(TARGET, max_rows=4))]).chosen.policy
    assert policy is not None
    passes = replay(trace, policy).passes
    assert max(p.rows for p in passes if p.kind == "segment") <= 2
    assert max(p.rows for p in passes if p.kind == "verify") <= 4


def test_cuts_lie_strictly_between_confidences(trace: Trace) -> None:
    confidence = trace.confidence[:, 0]
    cuts = threshold_grid(confidence)
    assert len(cuts) == 32
    assert list(cuts) == sorted(set(cuts))
    assert min(np.abs(confidence - cut).min() for cut in cuts) > 1e-5


def test_a_constant_confidence_has_no_cuts_and_can_still_be_searched() -> None:
    assert threshold_grid(np.full(50, 0.5, np.float32)) == ()
    trace = make_trace(TraceSpec(num_positions=[40] * 4, max_new_tokens=40))
    flat = replace(trace, confidence=np.full_like(trace.confidence, 0.5))
    policy = search([Scenario(flat, CHEAP, TARGET)]).chosen.policy
    assert policy is not None
    assert policy.stop is None


@settings(max_examples=20)
@given(policies(EXITS))
def test_no_single_fixed_length_or_stop_is_missed_by_more_than_noise(policy: Policy) -> None:
    trace = make_trace(TraceSpec(num_positions=[60] * 8, max_new_tokens=60))
    result = search([Scenario(trace, CHEAP, TARGET)])
    batch = replay_batch(trace, [policy])
    rate = (batch.num_tokens / batch.seconds(CHEAP, TARGET))[0]
    assert rate <= 1.02 * max(one.merit for one in result.families)


def every_policy_of_two_exits(space: Trace) -> Iterator[Policy]:
    """Each exit alone and both, at every second threshold and floor, every survival, length and rule."""
    shallow, deep = space.header.exit_layers
    confidence, agreement = space.confidence.astype(float), space.accept_prob.astype(float)
    curves = [fit_curve(confidence[:, e], agreement[:, e], num_bins=NUM_CURVE_BINS) for e in (0, 1)]
    cuts = [threshold_grid(confidence[:, e])[::2] for e in (0, 1)]
    gates = [((shallow,), (), curves[:1], cuts[0]), ((deep,), (), curves[1:], cuts[1])]
    gates += [((shallow, deep), (cut,), curves, cuts[1]) for cut in cuts[0]]
    for exits, thresholds, calibration, floors in gates:
        for cap in range(1, MAX_DRAFT_TOKENS + 1):
            stops: list[StopRule | None] = [None, HeuristicLength(start=min(5, cap))]
            stops += [ConfidenceFloor(floor=floor) for floor in floors]
            stops += [SurvivalFloor(floor=floor, calibration=tuple(calibration)) for floor in SURVIVAL_FLOORS]
            for stop in stops:
                yield Policy(exits=exits, thresholds=thresholds, tokens=cap, stop=stop)


@pytest.mark.parametrize("seed", [0, 2, 4, 7])
def test_in_a_small_space_nothing_beats_what_the_search_found_by_more_than_a_hundredth(seed: int) -> None:
    exits = {"exit_layers": (2, 6), "agreement": (0.6, 0.85), "num_confidences": 1000}
    trace = make_trace(TraceSpec(num_positions=[60] * 12, max_new_tokens=60, seed=seed, **exits))  # type: ignore[arg-type]
    one = Scenario(trace, ConstantLatency(segment_s=3e-4, exit_s=5e-5), TARGET)
    policies = list(every_policy_of_two_exits(trace))
    result = search([one])
    assert len(policies) > 7000 > 30 * result.num_policies
    assert max(found.merit for found in result.families) >= 0.99 * rates_by_scenario([one], policies).max()
