"""AdaptivePolicy on synthetic texts: at each position, the target accepts the tokens of all policies or of none."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from perfmodel.policies.frontier import DRIFTS, FrontierPoint, drifted_frac
from perfmodel.policies.policy import Policy
from s2d.decoding.policy_selector import MEMORY_TOKENS, SPREAD, AdaptivePolicy, DriftFilter, FixedPolicy, PolicySelector

PLAN_ACCEPTANCE = 0.8
PLAIN_S, VERIFY_S, TOKEN_S, CATCH_UP_S = 1.0, 1.2, 0.15, 0.05


def fixed_length(cap: int) -> FrontierPoint:
    """A fixed draft length whose tokens the plan expects to be accepted with equal probability. 0 is plain decoding."""
    return FrontierPoint(
        policy=Policy(exits=(1,), tokens=cap) if cap else None,
        kept_frac=(PLAN_ACCEPTANCE,) * cap,
        drafted_frac=(1.0,) * cap,
        round_s=(PLAIN_S, *(VERIFY_S + TOKEN_S * drafted for drafted in range(1, cap + 1))),
        catch_up_s=CATCH_UP_S if cap else 0.0,
    )


FRONTIER = tuple(map(fixed_length, (0, 2, 4, 8)))


def decode(selector: PolicySelector, text: Sequence[bool]) -> tuple[float, list[tuple[int, Policy | None]]]:
    """Seconds of a text, and the first position and policy of each round."""
    position, undrafted, seconds, rounds = 0, 0, 0.0, []
    while position < len(text):
        policy = selector.policies[selector.index]
        rounds.append((position, policy))
        cap = min(policy.tokens, len(text) - position - 1) if policy else 0
        accepted = next((n for n in range(cap) if not text[position + n]), cap)
        seconds += VERIFY_S + TOKEN_S * cap + CATCH_UP_S * undrafted if cap else PLAIN_S
        undrafted = 0 if cap else undrafted + 1
        position += accepted + 1
        selector.observe(cap, accepted)
    return seconds, rounds


def text_of(acceptance: float, num_tokens: int, seed: int = 0) -> list[bool]:
    drawn = random.Random(seed)
    return [drawn.random() < acceptance for _ in range(num_tokens)]


def fixed_seconds(text: Sequence[bool]) -> list[float]:
    return [decode(FixedPolicy(point.policy), text)[0] for point in FRONTIER]


@pytest.mark.parametrize(
    ("acceptance", "regret_frac"), [(0.0, 0.1), (0.2, 0.1), (0.35, 0.05), (0.5, 0.02), (0.8, 0.02), (1.0, 0.02)]
)
def test_on_a_stationary_text_it_is_nearly_as_fast_as_the_best_policy(acceptance: float, regret_frac: float) -> None:
    text = text_of(acceptance, 6000)
    seconds, _ = decode(AdaptivePolicy(FRONTIER), text)
    assert seconds / min(fixed_seconds(text)) - 1 < regret_frac


@pytest.mark.parametrize(("acceptance", "best"), [(0.05, 0), (0.8, 2), (0.98, 3)])
def test_on_a_stationary_text_it_settles_on_the_best_policy(acceptance: float, best: int) -> None:
    text = text_of(acceptance, 6000)
    assert min(range(4), key=fixed_seconds(text).__getitem__) == best
    _, rounds = decode(AdaptivePolicy(FRONTIER), text)
    late = Counter(policy for position, policy in rounds if position > 1000)
    assert late.most_common(1)[0][0] == FRONTIER[best].policy


def test_thirty_rounds_after_acceptance_drops_to_zero_it_decodes_plainly_and_trials_cost_at_most_a_tenth() -> None:
    adaptive = AdaptivePolicy(FRONTIER)
    decode(adaptive, text_of(PLAN_ACCEPTANCE, 2000))
    assert adaptive.index != 0
    seconds, rounds = decode(adaptive, [False] * 4000)
    assert None in [policy for _, policy in rounds[:31]]
    trials = [policy for _, policy in rounds[31:] if policy is not None]
    assert 0 < len(trials) < 0.1 * len(rounds)
    assert seconds / (4000 * PLAIN_S) - 1 < 0.1


def test_when_every_token_is_accepted_again_it_drafts_fully_within_the_memory() -> None:
    adaptive = AdaptivePolicy(FRONTIER)
    decode(adaptive, [False] * 4000)
    _, rounds = decode(adaptive, [True] * 2000)
    bold = next(position for position, policy in rounds if policy == FRONTIER[-1].policy)
    assert bold < MEMORY_TOKENS


@pytest.mark.parametrize("block_tokens", [500, 2000])
def test_on_a_text_that_shifts_it_is_faster_than_every_fixed_policy(block_tokens: int) -> None:
    text = [is_accepted for seed in range(8) for is_accepted in text_of((0.95, 0.05)[seed % 2], block_tokens, seed)]
    seconds, _ = decode(AdaptivePolicy(FRONTIER), text)
    assert seconds < min(fixed_seconds(text))


def test_the_same_text_takes_the_same_policies() -> None:
    text = text_of(0.5, 3000)
    assert decode(AdaptivePolicy(FRONTIER), text) == decode(AdaptivePolicy(FRONTIER), text)


def test_a_fixed_policy_never_changes() -> None:
    fixed = FixedPolicy(FRONTIER[1].policy)
    fixed.observe(2, 0)
    assert (fixed.index, fixed.policies) == (0, (FRONTIER[1].policy,))


@pytest.mark.parametrize("drift", [-2.0, -0.5, 0.0, 1.0])
def test_a_drift_is_estimated_from_many_rounds_and_decays_afterwards(drift: float) -> None:
    drawn, estimate, shares = random.Random(1), DriftFilter(), (0.9, 0.7, 0.5)
    means = []
    for _ in range(4000):
        kept = [drawn.random() < drifted_frac(share, drift) for share in shares]
        estimate.update(shares, kept.index(False) if False in kept else len(kept))
        estimate.decay(1)
        means.append(estimate.mean)
    # The prior biases the estimate, more so where rounds carry less information.
    assert sum(means[1000:]) / 3000 == pytest.approx(drift, rel=0.2, abs=0.05)
    estimate.decay(50 * MEMORY_TOKENS)
    assert (estimate.mean, estimate.variance) == (pytest.approx(0.0, abs=1e-12), pytest.approx(SPREAD**2))


def test_a_step_that_always_happens_is_no_evidence() -> None:
    estimate = DriftFilter()
    estimate.update((1.0, 1.0), 2)
    assert (estimate.mean, estimate.variance) == (0.0, SPREAD**2)


def test_tokens_rise_with_acceptance_and_a_fixed_length_costs_the_same_at_any_drift() -> None:
    for point in FRONTIER:
        tokens = [point.tokens(drift) for drift in DRIFTS]
        assert tokens == sorted(tokens)
        assert [point.seconds(drift) for drift in (-3.0, 0.0, 3.0)] == [pytest.approx(point.round_s[-1])] * 3
