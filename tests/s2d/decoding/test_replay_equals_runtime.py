"""The runtime decodes every block as replay predicts. Equal output alone does not test a drafter.

The trace is recorded by the profiler. Accepted counts are always equal. After a block's first rejected token, the draft
follows a path that the trace does not contain. There a stop rule or a drafted end of text may end the block elsewhere, and
tokens may leave at other exits. So drafted counts are equal up to the rejected token under every rule, and equal as a whole
where only the cap ends a block. Where no token of a text is predicted after a rejected one, the whole record is equal: exits
taken, passes, rows, cached tokens and cold passes.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from perfmodel.acceptance.trace import Trace
from perfmodel.models.geometry import SELF_DRAFT, DraftGeometry
from perfmodel.passes.passes import ColdCount, PassCount
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    StopRule,
    SurvivalFloor,
)
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.replay.replay import block_lengths, replay_prompts
from perfmodel.replay.round_stats import RoundStats
from profiler.acceptance.record_acceptance import empty_trace, extended
from profiler.latency.profiling_job import ProfilingJob
from s2d.decoding.encode_prompts import EncodedPrompt, encode_prompts
from s2d.decoding.generate import Generation, Session
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.loading.convert_weights import with_reduced_head
from s2d.loading.exits import DraftExits
from s2d.loading.load_model import with_target_vocab
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.model.decoder import Decoder
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts
from tests.strategies import segment_orders
from tests.stubs import EOS, VOCAB_SIZE, TinySpec, tiny_model

pytestmark = pytest.mark.e2e

SHARED_NOISE = Sampling(rule="shared-noise", temperature=0.9, top_k=12, top_p=0.95, seed=11)
PENALISED = replace(SHARED_NOISE, min_p=0.02, repetition_penalty=1.2, presence_penalty=0.3)
PENALISED_GREEDY = replace(GREEDY, repetition_penalty=1.2, frequency_penalty=0.2)
FAMILY_NOISE = Sampling(rule="shared-noise", temperature=0.8, top_k=None, top_p=None, seed=20260712)
DRAFTS = ("separate", "self", "other vocabulary padding", "reduced head")
NEW_TOKENS = 24
NUM_FAMILY_PROMPTS = 2
FAMILY_PROMPT_TOKENS, FAMILY_NEW_TOKENS = 48, 20
FAMILY_CAPS = (1, 3, 5, 8)
FAMILY_SHARES = (0.2, 0.5, 0.35, 0.65, 0.5, 0.8, 0.35)
"""Quantiles of confidence, for thresholds and floors."""
STOP_KINDS = ("length", "heuristic", "floor", "dropping floor", "survival")
HEAD_TOKENS = tuple(range(1, VOCAB_SIZE, 2))
"""Tokens of a reduced head, including the end of text."""
MIN_GAP = 1e-4
"""Smallest gap between two confidences with a threshold between them: far more than the difference between one-row and many-row
passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A decoding job and the profiler's trace of it."""

    job: ProfilingJob
    session: Session
    trace: Trace


def record_trace(pair: Pair, prompts: tuple[EncodedPrompt, ...], sampling: Sampling, new_tokens: int) -> Traced:
    job = ProfilingJob(
        pair=pair, prompts=prompts, sampling=sampling, confidence="max-prob", max_new_tokens=new_tokens, draft_cap=9, seed=0
    )
    session = job.session()
    recorder = job.exit_recorder(session)
    trace = extended(empty_trace(recorder.header), [recorder.trace(prompt) for prompt in prompts])
    return Traced(job=job, session=session, trace=trace)


@functools.cache
def tiny_pair(kind: str) -> Pair:
    target = tiny_model(TinySpec(), (1, 2, 4) if kind == "self" else ())
    vocab_size = VOCAB_SIZE - (3 if kind == "other vocabulary padding" else 0)
    is_self = kind == "self"
    draft = target if is_self else tiny_model(TinySpec(num_layers=4, vocab_size=vocab_size), (1, 2, 4))
    draft = with_target_vocab(draft, target.decoder.vocab_size)
    if kind == "reduced head":
        draft = replace(draft, decoder=Decoder(draft.geometry, with_reduced_head(draft.decoder.weights, HEAD_TOKENS)))
    return Pair(
        target=target,
        draft=draft,
        geometry=DraftGeometry(kind="self" if is_self else "separate", model=draft.geometry, exit_layers=draft.exit_layers),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"w": 0}, unk_token="w"))),
        tokenizer_sha256="0" * 64,
        eos_token_id=EOS,
        device=torch.device("cpu"),
        exits=DraftExits(layers=draft.exit_layers, source="s2d.json", calibration=None),
    )


@functools.cache
def tiny_traced(kind: str, seed: int, sampling: Sampling, eos: int | None) -> Traced:
    generator = torch.Generator().manual_seed(seed)
    prompts = tuple(
        EncodedPrompt(
            name=str(size),
            category="random",
            token_ids=tuple(torch.randint(0, VOCAB_SIZE, (size,), generator=generator).tolist()),
        )
        for size in (1, 4, 9)
    )
    return record_trace(replace(tiny_pair(kind), eos_token_id=eos), prompts, sampling, NEW_TOKENS)


def midpoints(confidence: np.ndarray) -> list[float]:
    """Midpoints between neighbouring confidences, which rounding cannot cross."""
    distinct = np.unique(confidence.astype(np.float64))
    gaps = np.flatnonzero(np.diff(distinct) > MIN_GAP)
    return [0.0, *((distinct[gaps] + distinct[gaps + 1]) / 2).tolist(), 1.0]


def threshold_at(confidence: np.ndarray, share: float) -> float:
    """The midpoint nearest to a quantile of the confidences."""
    quantile = float(np.quantile(confidence.astype(np.float64), share))
    return min(midpoints(confidence), key=lambda midpoint: abs(midpoint - quantile))


def stop_rules(num_exits: int, tokens: int, floor: float, survival: float) -> tuple[StopRule | None, ...]:
    """One of every kind, in the order of `STOP_KINDS`."""
    curve = CalibrationCurve(confidence=(0.0, 1.0), agreement=(0.31, 0.97))
    return (
        None,
        HeuristicLength(start=(tokens + 1) // 2),
        ConfidenceFloor(floor=floor),
        ConfidenceFloor(floor=floor, keeps_token=False),
        SurvivalFloor(floor=survival, calibration=(curve,) * num_exits),
    )


@st.composite
def policies(draw: st.DrawFn, trace: Trace) -> Policy:
    layers = trace.header.exit_layers
    exits = tuple(sorted(draw(st.sets(st.sampled_from(layers), min_size=1))))
    thresholds = tuple(draw(st.sampled_from(midpoints(trace.confidence[:, layers.index(e)]))) for e in exits[:-1])
    floor = draw(st.sampled_from(midpoints(trace.confidence)))
    tokens = draw(st.integers(1, 9))
    stop = draw(st.sampled_from(stop_rules(len(exits), tokens, floor, floor / 2)))
    order = draw(segment_orders) if len(exits) > 1 else None
    return Policy(
        exits=exits,
        thresholds=thresholds,
        tokens=tokens,
        stop=stop,
        runs_ahead=order == "ahead",
        catches_up_at_once=order == "at once",
    )


def family_policies(trace: Trace) -> Iterator[tuple[str, Policy]]:
    """Several sets of exits with every stop rule, and the kind of the rule.

    Each rule has a policy with drafts of one token, which stay on the path. Among policies of several exits, a third runs ahead
    and a third catches up at once.
    """
    layers = trace.header.exit_layers
    column = dict(zip(layers, trace.confidence.T, strict=True))
    subsets = ((layers[0], layers[2]), (layers[1], layers[3]), layers, (layers[3],))
    sizes = zip(product(subsets, STOP_KINDS), cycle(FAMILY_CAPS), cycle(FAMILY_SHARES), strict=False)
    for number, ((subset, kind), cap, share) in enumerate(sizes):
        rules = stop_rules(len(subset), cap, threshold_at(column[subset[-1]], share), 0.62)
        yield (
            kind,
            Policy(
                exits=subset,
                thresholds=tuple(threshold_at(column[layer], share) for layer in subset[:-1]),
                tokens=cap,
                stop=rules[STOP_KINDS.index(kind)],
                runs_ahead=len(subset) > 1 and number % 3 == 1,
                catches_up_at_once=len(subset) > 1 and number % 3 == 2,
            ),
        )


def assert_replayed(traced: Traced, policy: Policy) -> int:
    """Run a policy and compare every block with replay. Returns the number of texts whose whole record was compared."""
    job, num_compared = traced.job, 0
    expected = zip(job.prompts, block_lengths(traced.trace, policy), replay_prompts(traced.trace, policy), strict=True)
    for prompt, blocks, rounds in expected:
        generation = traced.session.generate(prompt.token_ids, job.settings(policy, job.max_new_tokens))
        measured, case = generation.rounds, f"{policy.label}, prompt {prompt.name}"
        assert on_path(generation.blocks) == on_path(blocks), case
        assert (measured.num_tokens, measured.num_accepted) == (rounds.num_tokens, rounds.num_accepted), case
        only_the_cap = isinstance(policy.stop, HeuristicLength | None) and job.pair.eos_token_id is None
        if only_the_cap:
            assert generation.blocks == blocks, case
            assert target_passes(measured.passes) == target_passes(rounds.passes), case
        if stays_on_path(generation, policy) or (only_the_cap and len(policy.exits) == 1):
            assert measured == rounds, case
            num_compared += 1
    return num_compared


def on_path(blocks: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Drafted tokens up to the first rejected one, which is included, and accepted tokens."""
    return [(min(drafted, accepted + 1), accepted) for drafted, accepted in blocks]


def stays_on_path(generation: Generation, policy: Policy) -> bool:
    """Whether no token was predicted after a rejected one. A block below the cap may hide a token that was dropped."""
    can_drop = isinstance(policy.stop, ConfidenceFloor) and not policy.stop.keeps_token
    return all(
        drafted == accepted or (drafted == accepted + 1 and (drafted == policy.tokens or not can_drop))
        for drafted, accepted in generation.blocks
    )


def target_passes(passes: tuple[PassCount, ...]) -> list[PassCount]:
    return [count for count in passes if count.kind in ("verify", "round")]


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("sampling", [GREEDY, SHARED_NOISE, PENALISED_GREEDY, PENALISED], ids=lambda sampling: sampling.label)
@settings(max_examples=20, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 3), eos=st.sampled_from([EOS, None]))
def test_every_block_of_a_tiny_pair_equals_replay(
    kind: str, sampling: Sampling, data: st.DataObject, seed: int, eos: int | None
) -> None:
    traced = tiny_traced(kind, seed, sampling, eos)
    assert_replayed(traced, data.draw(policies(traced.trace)))


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("exits", [(1,), (2,), (4,)])
def test_all_passes_of_a_single_exit_equal_replay(kind: str, exits: tuple[int, ...]) -> None:
    traced = tiny_traced(kind, 0, GREEDY, None)
    policy = Policy(exits=exits, tokens=5)
    assert assert_replayed(traced, policy) == len(traced.job.prompts)


def gated_at_medians(trace: Trace, exits: tuple[int, ...], cap: int) -> Policy:
    """A policy that lets half of the tokens leave at each exit but the last."""
    column = dict(zip(trace.header.exit_layers, trace.confidence.T, strict=True))
    thresholds = tuple(threshold_at(column[layer], 0.5) for layer in exits[:-1])
    return Policy(exits=exits, thresholds=thresholds, tokens=cap)


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("exits", [(1, 2), (1, 4), (2, 4), (1, 2, 4)])
def test_running_ahead_changes_no_token_and_every_pass_equals_replay(kind: str, exits: tuple[int, ...]) -> None:
    traced = tiny_traced(kind, 1, GREEDY, None)
    waiting = gated_at_medians(traced.trace, exits, cap=1)  # stays on the path: the whole record is compared
    running = replace(waiting, runs_ahead=True)
    assert assert_replayed(traced, running) == len(traced.job.prompts)
    stats = dict.fromkeys((waiting, running))
    for policy in stats:
        ran = traced.session.generate(traced.job.prompts[-1].token_ids, traced.job.settings(policy, NEW_TOKENS))
        stats[policy] = (ran.tokens, ran.blocks, ran.rounds.exits_taken)
        kinds = Counter(ran.samples.kind)
        checks, drafted, deep = kinds["exit"], sum(ran.rounds.exits_taken), sum(ran.rounds.exits_taken[1:])
        assert deep  # some tokens went deeper
        if policy.runs_ahead:
            assert checks < drafted <= kinds["ahead"]
        else:
            assert checks > drafted
            assert not kinds["ahead"]
    assert stats[waiting] == stats[running]


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("exits", [(1, 2), (1, 4), (2, 4), (1, 2, 4)])
@pytest.mark.parametrize("cap", [1, 5])
def test_catching_up_at_once_changes_no_token_and_every_segment_pass_equals_replay(
    kind: str, exits: tuple[int, ...], cap: int
) -> None:
    traced = tiny_traced(kind, 1, GREEDY, None)
    when_needed = gated_at_medians(traced.trace, exits, cap)
    at_once = replace(when_needed, catches_up_at_once=True)
    assert_replayed(traced, at_once)
    for prompt, expected in zip(traced.job.prompts, replay_prompts(traced.trace, at_once), strict=True):
        lazy, ran = (
            traced.session.generate(prompt.token_ids, traced.job.settings(policy, NEW_TOKENS))
            for policy in (when_needed, at_once)
        )
        assert (ran.tokens, ran.blocks, ran.rounds.exits_taken) == (lazy.tokens, lazy.blocks, lazy.rounds.exits_taken)
        # The trace does not contain the exits taken off the path; segment passes do not depend on them.
        assert without_checks(ran.rounds) == without_checks(expected)


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("exits", [(1,), (1, 4), (1, 2, 4)])
def test_a_dropped_token_is_paid_for_and_not_verified(kind: str, exits: tuple[int, ...]) -> None:
    traced = tiny_traced(kind, 1, GREEDY, None)
    gated = gated_at_medians(traced.trace, exits, cap=1)  # stays on the path: the whole record is compared
    last = traced.trace.confidence[:, traced.trace.header.exit_layers.index(exits[-1])]
    dropping = replace(gated, stop=ConfidenceFloor(floor=threshold_at(last, 0.6), keeps_token=False))
    assert assert_replayed(traced, dropping) == len(traced.job.prompts)
    prompt = traced.job.prompts[-1].token_ids
    ran = traced.session.generate(prompt, traced.job.settings(dropping, NEW_TOKENS))
    plain = traced.session.generate(prompt, traced.job.settings(None, NEW_TOKENS))
    assert ran.tokens == plain.tokens
    num_empty = sum(drafted == 0 for drafted, _ in ran.blocks[:-1])  # the last round has no room to draft
    assert num_empty
    assert ran.rounds.num_drafted == sum(ran.rounds.exits_taken) == len(ran.blocks) - 1 - num_empty
    lead_passes = [count.num_passes for count in ran.rounds.passes if (count.kind, count.stage) == ("segment", 0)]
    assert sum(lead_passes) >= len(ran.blocks) - 1  # rounds whose only token was dropped ran the first segment too


def without_checks(rounds: RoundStats) -> list[PassCount | ColdCount]:
    return [count for count in (*rounds.passes, *rounds.cold_passes) if count.kind != "exit"]


@functools.cache
def family_pair(target: str, draft: str) -> Pair:
    """A pair without end of text: only the policy ends a block."""
    return replace(load_pair(PairRequest(target=target, draft=draft, dtype="fp32", device="cpu")), eos_token_id=None)


@pytest.fixture(scope="session", params=[GREEDY, FAMILY_NOISE, PENALISED_GREEDY], ids=lambda sampling: sampling.label)
def family_sampling(request: pytest.FixtureRequest) -> Sampling:
    return request.param


@pytest.fixture(scope="session", params=["ref-draft", SELF_DRAFT])
def family_draft(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=["ref-target-16", "ref-target-32"])
def family(request: pytest.FixtureRequest, family_draft: str, family_sampling: Sampling) -> Traced:
    pair = family_pair(request.param, family_draft)
    chosen = choose_prompts(read_prompts(FAMILY_PROMPTS), "all", NUM_FAMILY_PROMPTS)
    whole = encode_prompts(pair, chosen, max_new_tokens=FAMILY_NEW_TOKENS)
    prompts = tuple(replace(prompt, token_ids=prompt.token_ids[:FAMILY_PROMPT_TOKENS]) for prompt in whole)
    return record_trace(pair, prompts, family_sampling, FAMILY_NEW_TOKENS)


def test_every_block_of_the_reference_family_equals_replay(family: Traced) -> None:
    num_compared = dict.fromkeys(STOP_KINDS, 0)
    for kind, policy in family_policies(family.trace):
        num_compared[kind] += assert_replayed(family, policy)
    assert min(num_compared.values()) >= NUM_FAMILY_PROMPTS  # passes were compared under every rule
