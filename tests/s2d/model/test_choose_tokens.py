"""Logits to tokens: filters, confidence, random draws, shared noise, and acceptance of the ratio test."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from perfmodel.policies.policy import Confidence, Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.generate import Session, Settings
from s2d.decoding.process_logits import LogitsProcessor
from s2d.decoding.verify import longest_agreed_prefix, make_verifier, ratio_decision, ratio_test
from s2d.model.choose_tokens import (
    ExitPredictor,
    NoiseTable,
    choose,
    confidence_values,
    new_noise_table,
    probabilities,
    process_logits,
    sample_indices,
)
from s2d.model.host_copies import Uniforms
from tests.stubs import TinySpec, tiny_model

CPU = torch.device("cpu")
CHANCE_OF_FAILURE = 1e-4
"""Of each chi-square test below if seeds were not fixed. There are twelve: 0.12 % in all."""
NEAR_ONE = 1 - 2.0**-53
"""The largest uniform number below 1."""
CONFIDENCE_KINDS: tuple[Confidence, ...] = ("max-prob", "margin", "entropy", "top10-prob")

PENALTY = {"min_p": 0.02, "repetition_penalty": 1.2, "frequency_penalty": 0.02}


def gumbel_noise(seed: int, num_positions: int, vocab_size: int) -> torch.Tensor:
    return NoiseTable(seed, vocab_size, CPU).rows(0, num_positions)


def sampling(**changes: object) -> Sampling:
    return Sampling(**({"rule": "shared-noise", "temperature": 1.0, "top_k": None, "top_p": None, "seed": 0} | changes))


def test_temperature_comes_before_top_k_and_top_k_before_top_p() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    kept = process_logits(logits, sampling(top_k=3, top_p=0.8))
    # Of the three kept tokens, 0.5 / 0.95 + 0.3 / 0.95 already exceed 0.8.
    assert torch.isfinite(kept).tolist() == [[True, True, False, False]]
    torch.testing.assert_close(process_logits(logits, sampling(temperature=0.5)), logits * 2)
    assert process_logits(logits, GREEDY) is logits


def test_any_top_p_keeps_the_most_likely_token() -> None:
    kept = process_logits(torch.tensor([[0.0, 5.0, 1.0]]), sampling(top_p=1e-6))
    assert torch.isfinite(kept).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]),
        ([0.25] * 4, [0.25, 0.0, 0.0, 0.25]),
        ([0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.5, 0.5]),
        ([1 / 16] * 16, [1 / 16, 0.0, 0.0, 0.1]),
        ([0.3, *[0.02] * 35], [0.3, 0.28, None, 0.3 / 0.48]),
    ],
)
def test_confidence_follows_its_definition(probs: list[float], expected: list[float | None]) -> None:
    row = torch.tensor([probs])
    for kind, value in zip(CONFIDENCE_KINDS, expected, strict=True):
        if value is not None:
            assert float(confidence_values(row, kind)) == pytest.approx(value, abs=1e-6), kind


@settings(max_examples=50, derandomize=True)
@given(seed=st.integers(0, 1000), vocab_size=st.integers(1, 300), spread=st.sampled_from([0.0, 0.1, 1.0, 8.0]))
def test_top10_prob_is_the_largest_of_a_softmax_over_the_ten_largest_logits(seed: int, vocab_size: int, spread: float) -> None:
    logits = spread * np.random.default_rng(seed).standard_normal((4, vocab_size), np.float32)
    largest = np.sort(logits.astype(np.float64), axis=1)[:, -10:]
    weights = np.exp(largest - largest.max(axis=1, keepdims=True))
    predictor = ExitPredictor(sampling=GREEDY, confidence="top10-prob")
    _, confidence = predictor(torch.from_numpy(logits), None)
    assert confidence.numpy() == pytest.approx(weights.max(axis=1) / weights.sum(axis=1), abs=1e-6)
    assert float(confidence.min()) >= 0.1 - 1e-6


def test_noise_depends_only_on_seed_and_position() -> None:
    assert torch.equal(gumbel_noise(3, 10, 7), gumbel_noise(3, 40, 7)[:10])
    assert not torch.equal(gumbel_noise(3, 10, 7), gumbel_noise(4, 10, 7))


@settings(max_examples=30, derandomize=True)
@given(sizes=st.lists(st.integers(0, 150), min_size=1, max_size=4), vocab_size=st.sampled_from([1, 7, 16, 129, 500]))
def test_a_growing_noise_table_holds_the_numbers_of_one_generated_at_once(sizes: list[int], vocab_size: int) -> None:
    """The numbers must stay those of earlier versions: -log of exponential draws, row by row."""
    generator = torch.Generator().manual_seed(5)
    expected = torch.empty(max(sizes), vocab_size)
    for row in expected:
        row.exponential_(generator=generator)
    expected = expected.log_().neg_()
    table = NoiseTable(5, vocab_size, CPU)
    for size in sizes:
        assert torch.equal(table.rows(size // 3, size), expected[size // 3 : size])
    assert len(table) == max(sizes)
    assert torch.equal(gumbel_noise(5, max(sizes), vocab_size), expected)


@torch.inference_mode()
def test_only_shared_noise_has_a_table_and_verifiers_use_the_table_passed_to_them() -> None:
    assert new_noise_table(GREEDY, 23, CPU) is None
    assert new_noise_table(sampling(rule="ratio"), 23, CPU) is None
    rule = sampling(seed=4)
    table = new_noise_table(rule, 23, CPU)
    model = tiny_model(TinySpec())
    verifiers = [make_verifier(rule, kind, CPU, table) for kind in CONFIDENCE_KINDS]
    own = make_verifier(rule, "max-prob", CPU)
    answers = []
    for verifier, max_tokens in zip((*verifiers, own), (9, 12, 10, 10, 10), strict=True):
        verifier.start(2, max_tokens)
        answers.append(verifier.check_exit(model.decoder, model.decoder.embed([3]), [1, 3], 2, 0)()[0])
    assert len(table) == 12
    assert len(set(answers)) == 1


def test_the_argmax_with_noise_samples_the_distribution() -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    chosen = choose(probs.log().expand(20_000, -1), gumbel_noise(0, 20_000, 4))
    assert_distributed(Counter(chosen.tolist()), probs)


def test_the_longest_agreement_ends_at_the_first_difference() -> None:
    assert (longest_agreed_prefix([4, 5, 6], [4, 5]).num_accepted, longest_agreed_prefix([4, 5, 6], [4, 5]).bonus) == (2, 6)
    assert (longest_agreed_prefix([4, 5, 6], [4, 9]).num_accepted, longest_agreed_prefix([4, 5, 6], [4, 9]).bonus) == (1, 5)
    assert (longest_agreed_prefix([4], []).num_accepted, longest_agreed_prefix([4], []).bonus) == (0, 4)


def test_the_ratio_test_accepts_the_overlap_and_samples_the_residual() -> None:
    """Each token is drafted a fixed number of times: the draft's own sampling needs no draws."""
    p, q, after = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.1, 0.6, 0.0, 0.3])
    uniforms, target = Uniforms(CPU, 1), torch.stack((p, after))
    bonus: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    for token, num_runs in enumerate((300, 300, 2000, 2500)):
        accepted: Counter[int] = Counter()
        for _ in range(num_runs):
            verification = ratio_test(target, [q], torch.tensor([token]), uniforms.take(2))
            accepted[verification.num_accepted] += 1
            bonus[verification.num_accepted == 1][verification.bonus] += 1
        ratio = min(1.0, float(p[token] / q[token]))
        assert_distributed(accepted, torch.tensor([1 - ratio, ratio]))
    assert_distributed(bonus[False], torch.tensor([0.75, 0.25, 0.0, 0.0]))  # max(p - q, 0)
    assert_distributed(bonus[True], after)


U = 0.5
P, Q, AFTER = [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("drafted", "uniform", "expected"),
    [
        ([], [U], (0, 0)),  # nothing drafted: U selects the first token of p
        ([], [0.61], (0, 1)),
        ([1], [0.499, U], (1, 2)),  # p / q = 0.5
        ([1], [0.5, U], (0, 0)),  # the residual is entirely on token 0
        ([0], [NEAR_ONE, U], (1, 2)),  # p > q: always accepted
        ([0, 1], [0.9, 0.4, U], (2, 2)),
        ([0, 1], [0.9, 0.6, NEAR_ONE], (1, 0)),
        ([1, 0], [0.6, 0.1, U], (0, 0)),  # tokens after a rejection do not count
        ([2], [0.0, U], (0, 0)),  # probability 0 under both, possible in scripted acceptance
    ],
)
def test_the_uniform_numbers_decide_the_ratio_test(drafted: list[int], uniform: list[float], expected: tuple[int, int]) -> None:
    p = torch.tensor([*([P] * len(drafted)), AFTER if drafted else P])
    q = [torch.tensor(Q)] * len(drafted)
    verification = ratio_test(p, q, torch.tensor(drafted, dtype=torch.int64), torch.tensor(uniform, dtype=torch.float64))
    assert (verification.num_accepted, verification.bonus) == expected


def test_a_rejection_without_a_residual_samples_the_target() -> None:
    """In float32, q can exceed p by the last bit at one token and be below it nowhere."""
    p = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    q = torch.tensor([0.0, 0.5, 0.50000006])
    verification = ratio_test(p, [q], torch.tensor([2]), torch.tensor([NEAR_ONE, 0.9], dtype=torch.float64))
    assert (verification.num_accepted, verification.bonus) == (0, 2)


def test_draws_and_verdicts_do_not_wait_for_the_device() -> None:
    """A tensor on the meta device has no numbers: reading one, or a shape that depends on data, raises."""
    with torch.device("meta"):
        weights, noise, uniform = torch.rand(7, 500), torch.rand(7, 500), torch.rand(7, dtype=torch.float64)
        drafted = torch.ones(6, dtype=torch.int64)
        assert sample_indices(weights, uniform).shape == (7,)
        assert ratio_decision(weights, list(weights[:6]), drafted, uniform).shape == (2,)
        for rule, kind in product((GREEDY, sampling(top_k=4, top_p=0.9, min_p=0.01)), CONFIDENCE_KINDS):
            predictor = ExitPredictor(sampling=rule, confidence=kind)
            token, confidence = predictor(weights.bfloat16(), None if rule is GREEDY else noise)
            assert (token.dtype, confidence.dtype) == (torch.int64, torch.float32)
    for read in (lambda: float(weights[0, 0]), lambda: weights[weights > 0]):
        with pytest.raises(RuntimeError):
            read()


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2)])
def test_a_draw_inverts_the_cumulative_weights(shape: tuple[int, ...]) -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 0.0]).expand(*shape, -1)
    for uniform, expected in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (NEAR_ONE, 4), (1.0, 3)):
        indices = sample_indices(weights, torch.full(shape, uniform, dtype=torch.float64))
        assert indices.dtype == torch.int64
        assert indices.tolist() == torch.full(shape, expected).tolist()


@settings(max_examples=200, derandomize=True)
@given(data=st.data(), vocab_size=st.sampled_from([1, 5, 127, 128, 129, 1000, 5000]), seed=st.integers(0, 10_000))
def test_no_token_of_weight_zero_is_drawn(data: st.DataObject, vocab_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, vocab_size, generator=generator).pow(data.draw(st.sampled_from([1, 20])))
    weights *= torch.rand(3, vocab_size, generator=generator) < data.draw(st.sampled_from([0.01, 0.5, 1.0]))
    weights[torch.arange(3), torch.randint(0, vocab_size, (3,), generator=generator)] = data.draw(
        st.sampled_from([1e-30, 1e-3, 1.0])
    )
    uniform = st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 2.0**-53, NEAR_ONE]))
    indices = sample_indices(weights, torch.tensor(data.draw(st.lists(uniform, min_size=3, max_size=3)), dtype=torch.float64))
    assert (weights.gather(1, indices[:, None]) > 0).all()


def test_a_draw_from_a_large_vocabulary_is_exact() -> None:
    """Sums in float32 would shift the draws of the first example, and never reach the tail of the second."""
    vocab_size = 128_256
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    indices = sample_indices(torch.full((vocab_size,), 1 / vocab_size).expand(300, -1), uniform)
    assert indices.tolist() == (uniform * vocab_size).long().tolist()
    weights = torch.full((vocab_size,), 2.0**-30)
    weights[0] = 1
    total = weights.sum(dtype=torch.float64)
    expected = torch.tensor([10, 1000, 128_000], dtype=torch.float64)
    uniform = (1 + (expected - 0.5) * 2.0**-30) / total
    assert sample_indices(weights.expand(3, -1), uniform).tolist() == expected.long().tolist()


def test_draws_have_the_frequencies_of_their_weights() -> None:
    generator, uniforms = torch.Generator().manual_seed(2), Uniforms(CPU, 3)
    for vocab_size in (6, 300):
        weights = torch.rand(vocab_size, generator=generator) * (torch.rand(vocab_size, generator=generator) < 0.6)
        indices = sample_indices(weights.expand(20_000, -1), uniforms.take(20_000))
        assert_distributed(Counter(indices.tolist()), weights / weights.sum())


def near_ties(num_rows: int) -> torch.Tensor:
    """bf16 logits whose largest values are 0 to 2 steps of bf16 apart: [T, 40]."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(num_rows, 40, generator=generator)
    logits[:, :4] = 9 + 0.0625 * torch.randint(0, 3, (num_rows, 4), generator=generator)
    return logits.bfloat16()


@pytest.mark.parametrize("kind", CONFIDENCE_KINDS)
def test_the_confidence_of_bf16_logits_is_that_of_a_float32_softmax(kind: Confidence) -> None:
    logits = near_ties(200)
    probs = logits.double().softmax(-1).numpy()
    ordered = np.sort(probs, axis=1)
    expected = {
        "max-prob": ordered[:, -1],
        "margin": ordered[:, -1] - ordered[:, -2],
        "entropy": 1 + (probs * np.log(probs)).sum(1) / np.log(40),
        "top10-prob": ordered[:, -1] / ordered[:, -10:].sum(1),
    }[kind]
    predictor = ExitPredictor(sampling=GREEDY, confidence=kind)
    tokens, confidence = predictor(logits, None)
    assert confidence.dtype == probabilities(logits).dtype == torch.float32
    assert confidence.numpy() == pytest.approx(expected, abs=1e-6)
    assert tokens.tolist() == logits.float().argmax(-1).tolist()
    assert [float(predictor(row[None], None)[1]) for row in logits] == confidence.tolist()


@pytest.mark.e2e
@pytest.mark.parametrize("penalty", [{}, PENALTY], ids=["no penalties", "penalties"])
@pytest.mark.parametrize("kind", ["separate", "self"])
def test_speculation_with_ratio_sampling_keeps_the_targets_distribution(kind: str, penalty: dict[str, float]) -> None:
    """Compares every token of long texts with the target's distribution at its position."""
    spec, num_texts, num_tokens = TinySpec(vocab_size=5), 24, 150
    target = tiny_model(spec, (1, 2))
    draft = tiny_model(replace(spec, num_layers=2), (1, 2)) if kind == "separate" else None
    policy = Policy(exits=(1, 2), thresholds=(0.45,), tokens=3)
    session = Session(target, draft, num_tokens + 2)
    tokens, exits = [], []
    num_accepted = num_rejected = 0
    for seed in range(num_texts):
        rule = Sampling(rule="ratio", temperature=5.0, top_k=4, top_p=0.97, seed=seed + 100 * (kind == "self"), **penalty)
        generation = session.generate(
            [1, 3], Settings(policy=policy, sampling=rule, max_new_tokens=num_tokens, eos_token_id=None)
        )
        text = [1, 3, *generation.tokens[:-1]]
        raw_logits = target.decoder.all_exit_logits(text, (1, 2, spec.num_layers))
        logits = [LogitsProcessor(rule, 2)(exit_logits[1:], text, 2) for exit_logits in raw_logits]
        exits.append(torch.stack([exit_logits.softmax(-1).double() for exit_logits in logits], dim=-1))
        tokens += generation.tokens
        num_accepted += sum(accepted for _, accepted in generation.blocks)
        num_rejected += sum(accepted < drafted for drafted, accepted in generation.blocks)
    assert min(num_accepted, num_rejected) > 500  # otherwise the test would test nothing
    *drafts, probs = torch.cat(exits).unbind(-1)
    assert_sequence_distributed(torch.tensor(tokens), probs, drafts)


def assert_sequence_distributed(tokens: torch.Tensor, probs: torch.Tensor, drafts: list[torch.Tensor]) -> None:
    """Chi-square test of tokens drawn in sequence, each from its own distribution, which depends on the earlier tokens.

    The features of a token are its identity and, per exit of the draft, the draft's probability minus the target's. A loop that
    accepts too much is biased towards the draft, one that accepts too little is biased away from it. Each feature minus its
    expectation is a martingale difference. Sums over all tokens are therefore normal with the summed covariance.

    Args:
        tokens: [N].
        probs: of the target, [N, V].
        drafts: of the draft's exits, [N, V] each.
    """
    rows = torch.arange(len(tokens))
    assert (probs[rows, tokens] > 0).all()
    features = [torch.eye(probs.shape[1]).double().expand(*probs.shape, -1), *((draft - probs)[..., None] for draft in drafts)]
    feature = torch.cat(features, dim=-1)  # [N, V, K]
    expected = torch.einsum("nv, nvk -> nk", probs, feature)
    excess = (feature[rows, tokens] - expected).sum(0)
    covariance = torch.einsum("nv, nvk, nvl -> kl", probs, feature, feature) - expected.T @ expected
    sizes, directions = torch.linalg.eigh(covariance)
    free = sizes > 1e-9 * sizes[-1]
    statistic = ((excess @ directions[:, free]) ** 2 / sizes[free]).sum()
    assert stats.chi2.sf(float(statistic), int(free.sum())) > CHANCE_OF_FAILURE


def assert_distributed(counts: Counter[int], probs: torch.Tensor) -> None:
    """Chi-square test over the possible outcomes; no other outcome may occur."""
    total = counts.total()
    possible = [token for token in range(len(probs)) if probs[token] > 0]
    assert set(counts) <= set(possible)
    if len(possible) == 1:
        return
    expected = [total * float(probs[token]) for token in possible]
    common = [index for index, count in enumerate(expected) if count >= 5]
    rest = total - sum(expected[index] for index in common)
    observed = [counts[possible[index]] for index in common]
    if rest >= 5:
        expected, observed = [*(expected[index] for index in common), rest], [*observed, total - sum(observed)]
    else:
        expected = [expected[index] for index in common]
    scale = sum(observed) / sum(expected)
    assert stats.chisquare(observed, [count * scale for count in expected]).pvalue > CHANCE_OF_FAILURE
