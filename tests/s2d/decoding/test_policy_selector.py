"""The controller on made-up texts, by replay: every position of a text is accepted by all policies or by none."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from perfmodel.policies.frontier import DRIFTS, FrontierPoint, drifted_frac
from perfmodel.policies.policy import Policy
from s2d.decoding.policy_selector import MEMORY_TOKENS, SPREAD, Controller, DriftFilter, FixedPolicy, PolicySelector

PLAN_ACCEPTANCE = 0.8
PLAIN_S, VERIFY_S, TOKEN_S, CATCH_UP_S = 1.0, 1.2, 0.15, 0.05


def point(cap: int) -> FrontierPoint:
    """A draft of a fixed length, of which the plan expects every token to be accepted alike; 0 is plain decoding."""
    return FrontierPoint(
        policy=Policy(exits=(1,), tokens=cap) if cap else None,
        kept_frac=(PLAN_ACCEPTANCE,) * cap,
        drafted_frac=(1.0,) * cap,
        round_s=(PLAIN_S, *(VERIFY_S + TOKEN_S * drafted for drafted in range(1, cap + 1))),
        catch_up_s=CATCH_UP_S if cap else 0.0,
    )


FRONTIER = tuple(map(point, (0, 2, 4, 8)))


def decode(pilot: PolicySelector, text: Sequence[bool]) -> tuple[float, list[tuple[int, Policy | None]]]:
    """Seconds of a text, and every round's first position and policy."""
    position, undrafted, seconds, rounds = 0, 0, 0.0, []
    while position < len(text):
        policy = pilot.policies[pilot.at]
        rounds.append((position, policy))
        cap = min(policy.tokens, len(text) - position - 1) if policy else 0
        accepted = next((n for n in range(cap) if not text[position + n]), cap)
        seconds += VERIFY_S + TOKEN_S * cap + CATCH_UP_S * undrafted if cap else PLAIN_S
        undrafted = 0 if cap else undrafted + 1
        position += accepted + 1
        pilot.observe(cap, accepted)
    return seconds, rounds


def text_of(acceptance: float, num_tokens: int, seed: int = 0) -> list[bool]:
    drawn = random.Random(seed)
    return [drawn.random() < acceptance for _ in range(num_tokens)]


def fixed_seconds(text: Sequence[bool]) -> list[float]:
    return [decode(FixedPolicy(one.policy), text)[0] for one in FRONTIER]


@pytest.mark.parametrize(
    ("acceptance", "regret_frac"), [(0.0, 0.1), (0.2, 0.1), (0.35, 0.05), (0.5, 0.02), (0.8, 0.02), (1.0, 0.02)]
)
def test_on_a_text_that_stays_as_it_is_the_best_policy_is_nearly_reached(acceptance: float, regret_frac: float) -> None:
    text = text_of(acceptance, 6000)
    seconds, _ = decode(Controller(FRONTIER), text)
    assert seconds / min(fixed_seconds(text)) - 1 < regret_frac


@pytest.mark.parametrize(("acceptance", "best"), [(0.05, 0), (0.8, 2), (0.98, 3)])
def test_it_ends_on_the_policy_that_is_best(acceptance: float, best: int) -> None:
    text = text_of(acceptance, 6000)
    assert min(range(4), key=fixed_seconds(text).__getitem__) == best
    _, rounds = decode(Controller(FRONTIER), text)
    late = Counter(policy for position, policy in rounds if position > 1000)
    assert late.most_common(1)[0][0] == FRONTIER[best].policy


def test_speculation_is_off_thirty_rounds_after_acceptance_is_lost_and_trials_of_it_cost_a_tenth_at_most() -> None:
    controller = Controller(FRONTIER)
    decode(controller, text_of(PLAN_ACCEPTANCE, 2000))
    assert controller.at != 0
    seconds, rounds = decode(controller, [False] * 4000)
    assert None in [policy for _, policy in rounds[:31]]
    trials = [policy for _, policy in rounds[31:] if policy is not None]
    assert 0 < len(trials) < 0.1 * len(rounds)
    assert seconds / (4000 * PLAIN_S) - 1 < 0.1


def test_it_comes_back_within_the_memory_when_everything_is_accepted_again() -> None:
    controller = Controller(FRONTIER)
    decode(controller, [False] * 4000)
    _, rounds = decode(controller, [True] * 2000)
    bold = next(position for position, policy in rounds if policy == FRONTIER[-1].policy)
    assert bold < MEMORY_TOKENS


@pytest.mark.parametrize("block_tokens", [500, 2000])
def test_on_a_text_that_shifts_it_beats_every_policy_kept_throughout(block_tokens: int) -> None:
    text = [at for seed in range(8) for at in text_of((0.95, 0.05)[seed % 2], block_tokens, seed)]
    seconds, _ = decode(Controller(FRONTIER), text)
    assert seconds < min(fixed_seconds(text))


def test_the_same_text_takes_the_same_course_again() -> None:
    text = text_of(0.5, 3000)
    assert decode(Controller(FRONTIER), text) == decode(Controller(FRONTIER), text)


def test_one_policy_throughout_is_followed_whatever_happens() -> None:
    steady = FixedPolicy(FRONTIER[1].policy)
    steady.observe(2, 0)
    assert (steady.at, steady.policies) == (0, (FRONTIER[1].policy,))


@pytest.mark.parametrize("drift", [-2.0, -0.5, 0.0, 1.0])
def test_a_drift_is_found_from_many_rounds_and_forgotten_after_them(drift: float) -> None:
    drawn, found, shares = random.Random(1), DriftFilter(), (0.9, 0.7, 0.5)
    means = []
    for _ in range(4000):
        kept = [drawn.random() < drifted_frac(share, drift) for share in shares]
        found.learn(shares, kept.index(False) if False in kept else len(kept))
        found.forget(1)
        means.append(found.mean)
    # What is known without a text goes on pulling, the more the less the rounds tell.
    assert sum(means[1000:]) / 3000 == pytest.approx(drift, rel=0.2, abs=0.05)
    found.forget(50 * MEMORY_TOKENS)
    assert (found.mean, found._variance) == (pytest.approx(0.0, abs=1e-12), pytest.approx(SPREAD**2))


def test_what_always_happens_is_no_evidence() -> None:
    found = DriftFilter()
    found.learn((1.0, 1.0), 2)
    assert (found.mean, found._variance) == (0.0, SPREAD**2)


def test_tokens_rise_with_acceptance_and_a_fixed_length_costs_the_same_at_any_drift() -> None:
    for one in FRONTIER:
        tokens = [one.tokens(drift) for drift in DRIFTS]
        assert tokens == sorted(tokens)
        assert [one.seconds(drift) for drift in (-3.0, 0.0, 3.0)] == [pytest.approx(one.round_s[-1])] * 3
