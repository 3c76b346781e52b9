"""Every block is what replay says it is: output equality does not test a drafter.

Accepted counts are equal, always. What is drafted after a block's first mismatch follows a path that no trace holds, so
there a stop rule or a drafted end of text may end the block elsewhere: drafted counts are equal up to the mismatch under
every rule, and wholly where nothing but the cap ends a block.
"""

import functools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfmodel.geometry import DraftGeometry
from perfmodel.passes import PassCount
from perfmodel.policy import CalibrationCurve, ExitPolicy, FixedLength, FloorStop, HeuristicLength, LengthRule, SurvivalStop
from perfmodel.replay import block_lengths, replay
from perfmodel.sampling import GREEDY, Sampling
from perfmodel.trace import AcceptanceTrace, TracedPrompt, TraceHeader
from s2d.generate import Session, Settings
from s2d.load import FAMILY_FOLDER, LoadedModel, load_model, load_tokenizer
from s2d.prompts import read_prompts
from s2d.sampling import choose, confidence_of, gumbel_table, processed
from tests.stubs import EOS, VOCAB_SIZE, TinySpec, tiny_model

SHARED_NOISE = Sampling(rule="shared-noise", temperature=0.9, top_k=12, top_p=0.95, seed=11)
PAIRS = {
    "separate": (tiny_model(TinySpec()), tiny_model(TinySpec(num_layers=4, seed=0), (1, 2, 4))),
    "self": (tiny_model(TinySpec(), (1, 2, 4)), None),
}
NEW_TOKENS = 32


def trace_of(
    target: LoadedModel,
    draft: LoadedModel | None,
    prompts: list[list[int]],
    sampling: Sampling,
    new_tokens: int,
    eos: int | None,
) -> AcceptanceTrace:
    """What the plain target writes, and what every exit says about it in one teacher-forced pass."""
    drafter = draft or target
    session = Session(target, draft, max(map(len, prompts)) + new_tokens)
    plain = Settings(policy=None, sampling=sampling, max_new_tokens=new_tokens, eos_token_id=eos)
    columns, traced = [], []
    for number, prompt in enumerate(prompts):
        written = list(session.generate(prompt, plain).tokens)
        text = [*prompt, *written]
        noise = None
        if sampling.rule == "shared-noise":
            noise = gumbel_table(sampling.seed, len(text), target.geometry.vocab_size)[len(prompt) :]
        by_exit = []
        for logits in drafter.decoder.all_exit_logits(text[:-1], drafter.exit_layers):
            logits = processed(logits[len(prompt) - 1 :], sampling)
            by_exit.append((confidence_of(logits.softmax(-1), "max-prob").numpy(), choose(logits, noise).numpy()))
        confidence, token = (np.stack(column, axis=1) for column in zip(*by_exit, strict=True))
        columns.append((confidence, token, np.array(written)))
        traced.append(
            TracedPrompt(
                name=str(number),
                category="test",
                prompt_tokens=len(prompt),
                num_positions=len(written),
                distinct_6gram_frac=1.0,
            )
        )
    confidence, token, written = (np.concatenate(column) for column in zip(*columns, strict=True))
    header = TraceHeader(
        draft=DraftGeometry(kind="separate" if draft else "self", model=drafter.geometry, exit_layers=drafter.exit_layers),
        draft_sha256=None,
        target=target.geometry,
        target_sha256=None,
        tokenizer_sha256=None,
        sampling=sampling,
        confidence="max-prob",
        max_new_tokens=new_tokens,
        eos_token_id=eos,
        prompts=tuple(traced),
    )
    return AcceptanceTrace(
        header=header,
        confidence=confidence.astype(np.float32),
        draft_token=token.astype(np.int32),
        target_token=written.astype(np.int32),
        accept_prob=(token == written[:, None]).astype(np.float32),
    )


def some_prompts(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB_SIZE, (size,), generator=generator).tolist() for size in (1, 4, 9)]


@functools.cache
def traced_once(kind: str, seed: int, sampling: Sampling, eos: int | None) -> AcceptanceTrace:
    target, draft = PAIRS[kind]
    return trace_of(target, draft, some_prompts(seed), sampling, NEW_TOKENS, eos)


def midpoints(values: np.ndarray) -> list[float]:
    """Halfway between neighbouring distinct confidences: no rounding in the last bit can cross them."""
    distinct = np.unique(values.astype(np.float64))
    gaps = np.flatnonzero(np.diff(distinct) > 1e-5)
    return [0.0, *((distinct[gaps] + distinct[gaps + 1]) / 2).tolist(), 1.0]


@st.composite
def policies(draw: st.DrawFn, trace: AcceptanceTrace, *, stops: bool = True) -> ExitPolicy:
    layers = trace.header.draft.exit_layers
    looked = tuple(sorted(draw(st.sets(st.sampled_from(layers), min_size=1))))
    thresholds = tuple(draw(st.sampled_from(midpoints(trace.confidence[:, layers.index(e)]))) for e in looked[:-1])
    floor = draw(st.sampled_from(midpoints(trace.confidence)))
    cap = draw(st.integers(1, 9))
    curves = tuple(CalibrationCurve(confidence=(0.0, 1.0), agreement=(0.31, 0.97)) for _ in looked)
    rules: list[LengthRule] = [FixedLength(draft_cap=cap), HeuristicLength(start=(cap + 1) // 2, draft_cap=cap)]
    if stops:
        rules += [
            FloorStop(draft_cap=cap, floor=floor),
            SurvivalStop(draft_cap=cap, floor=floor / 2, calibration=curves),
        ]
    length = draw(st.sampled_from(rules))
    return ExitPolicy(exit_layers=looked, thresholds=thresholds, confidence="max-prob", length=length)


def run_blocks(target, draft, prompts, sampling, new_tokens, eos, policy):
    session = Session(target, draft, max(map(len, prompts)) + new_tokens)
    settings_ = Settings(policy=policy, sampling=sampling, max_new_tokens=new_tokens, eos_token_id=eos)
    return [session.generate(prompt, settings_) for prompt in prompts]


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("sampling", [GREEDY, SHARED_NOISE], ids=lambda s: s.rule)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data(), seed=st.integers(0, 3))
def test_accepted_counts_of_every_block_equal_replay(kind: str, sampling: Sampling, data: st.DataObject, seed: int) -> None:
    (target, draft), prompts = PAIRS[kind], some_prompts(seed)
    trace = traced_once(kind, seed, sampling, EOS)
    policy = data.draw(policies(trace))
    generations = run_blocks(target, draft, prompts, sampling, NEW_TOKENS, EOS, policy)
    predicted = block_lengths(trace, policy)
    assert [on_path(g.blocks) for g in generations] == [on_path(blocks) for blocks in predicted]
    for found, expected in zip(generations, replay(trace, policy), strict=True):
        assert (found.rounds.num_rounds, found.rounds.num_tokens) == (expected.num_rounds, expected.num_tokens)
        assert found.rounds.num_accepted == expected.num_accepted


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("sampling", [GREEDY, SHARED_NOISE], ids=lambda s: s.rule)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data(), seed=st.integers(0, 3))
def test_where_only_the_cap_ends_a_block_drafted_counts_equal_replay_too(
    kind: str, sampling: Sampling, data: st.DataObject, seed: int
) -> None:
    (target, draft), prompts = PAIRS[kind], some_prompts(seed)
    trace = traced_once(kind, seed, sampling, None)
    policy = data.draw(policies(trace, stops=False))
    generations = run_blocks(target, draft, prompts, sampling, NEW_TOKENS, None, policy)
    assert [g.blocks for g in generations] == list(block_lengths(trace, policy))
    for found, expected in zip(generations, replay(trace, policy), strict=True):
        for kind_of_pass in ("verify", "round"):
            assert passes_of(found.rounds.passes, kind_of_pass) == passes_of(expected.passes, kind_of_pass)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("exits", [(1,), (2,), (4,)])
def test_where_every_token_takes_one_exit_all_passes_equal_replay(kind: str, exits: tuple[int, ...]) -> None:
    target, draft = PAIRS[kind]
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6]]
    policy = ExitPolicy(exit_layers=exits, thresholds=(), confidence="max-prob", length=FixedLength(draft_cap=5))
    trace = trace_of(target, draft, prompts, GREEDY, NEW_TOKENS, None)
    found = [g.rounds for g in run_blocks(target, draft, prompts, GREEDY, NEW_TOKENS, None, policy)]
    assert found == list(replay(trace, policy))


@pytest.mark.parametrize("name", ["target-16", "target-32"])
def test_replay_equals_the_runtime_on_the_reference_family(name: str) -> None:
    if not (FAMILY_FOLDER / name).is_dir():
        pytest.skip("the reference family is not installed")
    target, draft = load_model(FAMILY_FOLDER / name, "fp32"), load_model(FAMILY_FOLDER / "draft", "fp32")
    tokenizer = load_tokenizer(FAMILY_FOLDER / name)
    texts = [prompt.text for prompt in read_prompts(FAMILY_FOLDER / "prompts.jsonl")[:2]]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for drafter in (draft, None):
        trace = trace_of(target, drafter, prompts, GREEDY, 64, tokenizer.eos_token_id)
        layers = trace.header.draft.exit_layers
        middle = midpoints(trace.confidence[:, 0])
        for threshold, cap in ((middle[len(middle) // 3], 5), (middle[2 * len(middle) // 3], 8)):
            policy = ExitPolicy(
                exit_layers=(layers[0], layers[2]),
                thresholds=(threshold,),
                confidence="max-prob",
                length=FloorStop(draft_cap=cap, floor=threshold / 2),
            )
            runs = run_blocks(target, drafter, prompts, GREEDY, 64, tokenizer.eos_token_id, policy)
            predicted = block_lengths(trace, policy)
            assert [on_path(g.blocks) for g in runs] == [on_path(blocks) for blocks in predicted]


def on_path(blocks) -> list[tuple[int, int]]:
    """Tokens drafted up to and including the first mismatch, and tokens accepted."""
    return [(min(drafted, accepted + 1), accepted) for drafted, accepted in blocks]


def passes_of(passes: tuple[PassCount, ...], kind: str) -> list[PassCount]:
    return [one for one in passes if one.kind == kind]
