from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy import stats

from perfmodel.policy import ExitPolicy, FixedLength
from perfmodel.sampling import GREEDY, Sampling
from s2d.generate import Session, Settings
from s2d.processing import Processing
from s2d.sampling import choose, confidence_of, gumbel_table, processed
from s2d.verify import longest_agreement, ratio_test
from tests.stubs import TinySpec, tiny_model

CHANCE_OF_FAILURE = 1e-4
"""Of each chi-square test below, were the seeds not fixed; there are nine, so 0.09 % in all."""


PENALTY = {"min_p": 0.02, "repetition_penalty": 1.2, "frequency_penalty": 0.02}


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


def test_the_ratio_test_accepts_the_overlap_and_corrects_by_the_residual() -> None:
    """Each token is drafted a fixed number of times, so that no draw is spent on what the draft samples itself."""
    p, q, after = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.1, 0.6, 0.0, 0.3])
    random, target = torch.Generator().manual_seed(1), torch.stack((p, after))
    bonus: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    for token, num_runs in enumerate((300, 300, 2000, 2500)):
        accepted: Counter[int] = Counter()
        for _ in range(num_runs):
            verdict = ratio_test(target, [q], [token], random)
            accepted[verdict.num_accepted] += 1
            bonus[verdict.num_accepted == 1][verdict.bonus] += 1
        ratio = min(1.0, float(p[token] / q[token]))
        assert_distributed(accepted, torch.tensor([1 - ratio, ratio]))
    assert_distributed(bonus[False], torch.tensor([0.75, 0.25, 0.0, 0.0]))  # what p has over q
    assert_distributed(bonus[True], after)


@pytest.mark.parametrize("penalty", [{}, PENALTY], ids=["bare", "penalised"])
@pytest.mark.parametrize("kind", ["separate", "self"])
def test_ratio_sampling_through_the_whole_loop_keeps_the_targets_distribution(kind: str, penalty: dict[str, float]) -> None:
    """Every token of long texts, against the target's distribution after the text before it."""
    spec, num_texts, num_tokens = TinySpec(vocab_size=5), 24, 150
    target = tiny_model(spec, (1, 2))
    draft = tiny_model(replace(spec, num_layers=2), (1, 2)) if kind == "separate" else None
    policy = ExitPolicy(exit_layers=(1, 2), thresholds=(0.45,), confidence="max-prob", length=FixedLength(draft_cap=3))
    session = Session(target, draft, num_tokens + 2)
    found, exits = [], []
    num_accepted = num_rejected = 0
    for number in range(num_texts):
        rule = Sampling(rule="ratio", temperature=5.0, top_k=4, top_p=0.97, seed=number + 100 * (kind == "self"), **penalty)
        done = session.generate([1, 3], Settings(policy=policy, sampling=rule, max_new_tokens=num_tokens, eos_token_id=None))
        text = [1, 3, *done.tokens[:-1]]
        said = target.decoder.all_exit_logits(text, (1, 2, spec.num_layers))
        logits = [Processing(rule, 2)(one[1:], text, 2) for one in said]
        exits.append(torch.stack([one.softmax(-1).double() for one in logits], dim=-1))
        found += done.tokens
        num_accepted += sum(accepted for _, accepted in done.blocks)
        num_rejected += sum(accepted < drafted for drafted, accepted in done.blocks)
    assert min(num_accepted, num_rejected) > 500  # or nothing would have been tested
    *drafts, probs = torch.cat(exits).unbind(-1)
    assert_drawn_in_turn(torch.tensor(found), probs, drafts)


def assert_drawn_in_turn(tokens: torch.Tensor, probs: torch.Tensor, drafts: list[torch.Tensor]) -> None:
    """Chi-square of tokens drawn one after another, each from its own distribution, which the earlier ones decide.

    Features of a token are which it is and how much likelier each exit of the draft finds it than the target does: a loop that
    accepts too much leans towards a draft, one that accepts too little away from it. Each feature less its expectation is a
    martingale difference, so that sums over all tokens are normal with the summed covariance.

    Args:
        tokens: [N].
        probs: of the target, [N, V].
        drafts: of the draft's exits, [N, V] each.
    """
    rows = torch.arange(len(tokens))
    assert (probs[rows, tokens] > 0).all()
    features = [torch.eye(probs.shape[1]).double().expand(*probs.shape, -1), *((one - probs)[..., None] for one in drafts)]
    feature = torch.cat(features, dim=-1)  # [N, V, K]
    expected = torch.einsum("nv, nvk -> nk", probs, feature)
    excess = (feature[rows, tokens] - expected).sum(0)
    covariance = torch.einsum("nv, nvk, nvl -> kl", probs, feature, feature) - expected.T @ expected
    sizes, directions = torch.linalg.eigh(covariance)
    free = sizes > 1e-9 * sizes[-1]
    statistic = ((excess @ directions[:, free]) ** 2 / sizes[free]).sum()
    assert stats.chi2.sf(float(statistic), int(free.sum())) > CHANCE_OF_FAILURE


def assert_distributed(counts: Counter[int], probs: torch.Tensor) -> None:
    """Chi-square over the outcomes that can occur; none other may."""
    total = counts.total()
    possible = [token for token in range(len(probs)) if probs[token] > 0]
    assert set(counts) <= set(possible)
    if len(possible) == 1:
        return
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
