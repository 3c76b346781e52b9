import math
from collections import Counter

import pytest
import torch
from scipy import stats

from perfmodel.policy import ExitPolicy, FixedLength
from perfmodel.sampling import GREEDY, Sampling
from s2d.generate import Session, Settings
from s2d.sampling import choose, confidence_of, gumbel_table, processed
from s2d.verify import longest_agreement, ratio_test, sample
from tests.stubs import TinySpec, tiny_model

CHANCE_OF_FAILURE = 1e-4
"""Of each chi-square test below, were the seeds not fixed."""


def sampling(**changes: object) -> Sampling:
    return Sampling(**({"rule": "shared-noise", "temperature": 1.0, "top_k": None, "top_p": None, "seed": 0} | changes))


def test_temperature_comes_before_top_k_and_top_k_before_top_p() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    kept = processed(logits, sampling(top_k=3, top_p=0.8))
    # Of the three kept, 0.5 / 0.95 + 0.3 / 0.95 already hold 0.8.
    assert torch.isfinite(kept).tolist() == [[True, True, False, False]]
    torch.testing.assert_close(processed(logits, sampling(temperature=0.5)), logits * 2)
    assert processed(logits, GREEDY) is logits


def test_the_likeliest_token_survives_any_top_p() -> None:
    kept = processed(torch.tensor([[0.0, 5.0, 1.0]]), sampling(top_p=1e-6))
    assert torch.isfinite(kept).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("probs", "max_prob", "margin", "entropy"),
    [([1.0, 0.0, 0.0, 0.0], 1.0, 1.0, 1.0), ([0.25] * 4, 0.25, 0.0, 0.0), ([0.5, 0.5, 0.0, 0.0], 0.5, 0.0, 0.5)],
)
def test_confidence_is_what_its_name_says(probs: list[float], max_prob: float, margin: float, entropy: float) -> None:
    row = torch.tensor([probs])
    found = [float(confidence_of(row, kind)) for kind in ("max-prob", "margin", "entropy")]
    assert found == pytest.approx([max_prob, margin, entropy], abs=1e-6)


def test_noise_depends_on_seed_and_position_alone() -> None:
    assert torch.equal(gumbel_table(3, 10, 7), gumbel_table(3, 40, 7)[:10])
    assert not torch.equal(gumbel_table(3, 10, 7), gumbel_table(4, 10, 7))


def test_the_argmax_with_noise_is_a_sample() -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    chosen = choose(probs.log().expand(20_000, -1), gumbel_table(0, 20_000, 4))
    assert_distributed(Counter(chosen.tolist()), probs)


def test_the_longest_agreement_ends_at_the_first_difference() -> None:
    assert (longest_agreement([4, 5, 6], [4, 5]).num_accepted, longest_agreement([4, 5, 6], [4, 5]).bonus) == (2, 6)
    assert (longest_agreement([4, 5, 6], [4, 9]).num_accepted, longest_agreement([4, 5, 6], [4, 9]).bonus) == (1, 5)
    assert (longest_agreement([4], []).num_accepted, longest_agreement([4], []).bonus) == (0, 4)


def test_the_ratio_test_leaves_the_targets_distribution_and_accepts_the_overlap() -> None:
    p, q = torch.tensor([0.6, 0.3, 0.1, 0.0]), torch.tensor([0.1, 0.3, 0.2, 0.4])
    random, num_runs = torch.Generator().manual_seed(1), 20_000
    first: Counter[int] = Counter()
    num_accepted = 0
    for _ in range(num_runs):
        token = sample(q, random)
        verdict = ratio_test(torch.stack((p, p)), [q], [token], random)
        first[token if verdict.num_accepted else verdict.bonus] += 1
        num_accepted += verdict.num_accepted
    assert_distributed(first, p)
    overlap = float(torch.minimum(p, q).sum())
    assert abs(num_accepted / num_runs - overlap) < 4 * math.sqrt(overlap * (1 - overlap) / num_runs)


@pytest.mark.parametrize("kind", ["separate", "self"])
def test_ratio_sampling_through_the_whole_loop_keeps_the_targets_distribution(kind: str) -> None:
    """The first two tokens after a prompt, over many seeds, against the target's exact joint distribution."""
    vocab = 5
    target = tiny_model(TinySpec(vocab_size=vocab), (1, 2))
    draft = tiny_model(TinySpec(vocab_size=vocab, num_layers=2), (1, 2)) if kind == "separate" else None
    policy = ExitPolicy(exit_layers=(1, 2), thresholds=(0.45,), confidence="max-prob", length=FixedLength(draft_cap=3))
    session = Session(target, draft, 8)
    found: Counter[int] = Counter()
    num_accepted = 0
    for seed in range(3000):
        rule = Sampling(rule="ratio", temperature=5.0, top_k=4, top_p=0.97, seed=seed)
        done = session.generate([1, 3], Settings(policy=policy, sampling=rule, max_new_tokens=3, eos_token_id=None))
        found[done.tokens[0] * vocab + done.tokens[1]] += 1
        num_accepted += done.blocks[0][1]
    assert num_accepted > 1000  # or nothing would have been tested
    joint = torch.empty(vocab, vocab)
    for first in range(vocab):
        logits = target.decoder.all_exit_logits([1, 3, first], (6,))[0]
        probs = processed(logits, rule).softmax(-1)
        joint[first] = probs[1, first] * probs[2]
    assert_distributed(found, joint.flatten())


def assert_distributed(counts: Counter[int], probs: torch.Tensor) -> None:
    """Chi-square over the outcomes that can occur; none other may."""
    total = counts.total()
    possible = [token for token in range(len(probs)) if probs[token] > 0]
    assert set(counts) <= set(possible)
    expected = [total * float(probs[token]) for token in possible]
    common = [place for place, number in enumerate(expected) if number >= 5]
    rest = total - sum(expected[place] for place in common)
    observed = [counts[possible[place]] for place in common]
    if rest >= 5:
        expected, observed = [*(expected[p] for p in common), rest], [*observed, total - sum(observed)]
    else:
        expected = [expected[p] for p in common]
    scale = sum(observed) / sum(expected)
    assert stats.chisquare(observed, [number * scale for number in expected]).pvalue > CHANCE_OF_FAILURE
