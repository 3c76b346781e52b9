"""The decoding loop: speculation writes what the plain target writes, and its passes are counted and timed."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.core.errors import BadPolicy, Mismatch, UserInputError
from perfmodel.passes.passes import PREFILL_KINDS, PassKind
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    StopRule,
    SurvivalFloor,
)
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.clock import Clock
from s2d.decoding.generate import Generation, Session, Settings
from tests.strategies import penalties, segment_orders
from tests.stubs import EOS, VOCAB_SIZE, TinySpec, contrary, generate, tiny_llama, tiny_model

TARGET = tiny_model(TinySpec(), (1, 2, 4))
DRAFTS = {
    "separate": tiny_model(TinySpec(num_layers=4), (1, 2, 4)),
    "unlike": tiny_model(TinySpec(num_layers=3, seed=9), (1, 3)),
    "twin": tiny_model(TinySpec(), (2, 6)),
    "self": None,
}
CURVE = CalibrationCurve(confidence=(0.0, 1.0), agreement=(0.2, 1.0))


def fixed(layers: tuple[int, ...], cap: int) -> Policy:
    thresholds = (0.2,) * (len(layers) - 1)
    return Policy(exits=layers, thresholds=thresholds, tokens=cap)


@st.composite
def policies(draw: st.DrawFn, exit_layers: tuple[int, ...]) -> Policy:
    exits = tuple(sorted(draw(st.sets(st.sampled_from(exit_layers), min_size=1))))
    order = draw(segment_orders) if len(exits) > 1 else None
    share = st.floats(0, 1)
    tokens = draw(st.integers(1, 8))
    stops: list[st.SearchStrategy[StopRule | None]] = [
        st.none(),
        st.builds(ConfidenceFloor, floor=share, keeps_token=st.booleans()),
        st.builds(SurvivalFloor, floor=share, calibration=st.just((CURVE,) * len(exits))),
        st.builds(HeuristicLength, start=st.integers(1, tokens)),
    ]
    return Policy(
        exits=exits,
        thresholds=tuple(draw(share) for _ in exits[:-1]),
        tokens=tokens,
        stop=draw(st.one_of(stops)),
        confidence=draw(st.sampled_from(["max-prob", "margin", "entropy", "top10-prob"])),
        runs_ahead=order == "ahead",
        catches_up_at_once=order == "at once",
    )


PENALISED = replace(GREEDY, repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=0.5)
PENALISED_NOISE = replace(PENALISED, rule="shared-noise", temperature=0.8, min_p=0.05, seed=2)
shared_noise = st.builds(
    Sampling,
    rule=st.just("shared-noise"),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 7]),
    top_p=st.sampled_from([None, 0.6, 0.95]),
    min_p=st.sampled_from([None, 0.05, 0.3]),
    seed=st.integers(0, 3),
)
samplings = st.builds(
    lambda sampling, penalty: replace(sampling, **penalty),
    st.just(GREEDY) | shared_noise,
    st.just({}) | penalties,
)


@pytest.mark.parametrize("name", DRAFTS)
@settings(max_examples=30, derandomize=True)
@given(data=st.data(), prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12), sampling=samplings)
def test_speculation_writes_what_the_plain_target_writes(
    name: str, data: st.DataObject, prompt: list[int], sampling: Sampling
) -> None:
    draft = DRAFTS[name]
    policy = data.draw(policies((draft or TARGET).exit_layers))
    new_tokens, eos = data.draw(st.integers(1, 24)), data.draw(st.sampled_from([None, EOS]))
    common = {"sampling": sampling, "max_new_tokens": new_tokens, "eos_token_id": eos}
    plain = generate(TARGET, None, prompt, policy=None, **common)
    streamed: list[int] = []
    generation = generate(TARGET, draft, prompt, policy=policy, on_tokens=streamed.extend, **common)
    assert generation.tokens == plain.tokens == tuple(streamed)
    assert len(generation.tokens) <= new_tokens
    assert eos is None or eos not in generation.tokens[:-1]
    assert sum(accepted + 1 for _, accepted in generation.blocks) - len(generation.tokens) in (
        0,
        1,
    )  # 1: an accepted end of text
    assert generation.rounds.num_drafted == sum(generation.rounds.exits_taken)


class RandomSelector:
    """A random policy for each round."""

    def __init__(self, policies: list[Policy | None], seed: int) -> None:
        self.policies = policies
        self._random = random.Random(seed)
        self.observe(0, 0)

    def start_text(self) -> None: ...

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        self.index = self._random.randrange(len(self.policies))


@pytest.mark.parametrize("name", DRAFTS)
@settings(max_examples=25, derandomize=True)
@given(data=st.data(), prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12), sampling=samplings)
def test_a_policy_that_changes_before_every_round_writes_what_the_plain_target_writes(
    name: str, data: st.DataObject, prompt: list[int], sampling: Sampling
) -> None:
    draft = DRAFTS[name]
    some = st.lists(policies((draft or TARGET).exit_layers), min_size=1, max_size=3)
    choices = [None, *(replace(policy, confidence="max-prob") for policy in data.draw(some))]
    decoding = Settings(policy=None, sampling=sampling, max_new_tokens=30, eos_token_id=data.draw(st.sampled_from([None, EOS])))
    session = Session(TARGET, draft, len(prompt) + 30)
    plain = session.generate(prompt, decoding)
    generation = session.generate(prompt, decoding, selector=RandomSelector(choices, data.draw(st.integers(0, 99))))
    assert generation.tokens == plain.tokens
    assert set(generation.policies) <= set(choices)
    assert all(
        not drafted for policy, (drafted, _) in zip(generation.policies, generation.blocks, strict=True) if policy is None
    )
    assert generation.rounds.num_drafted == sum(generation.rounds.exits_taken)


class PolicySequence:
    """Policies in a given order."""

    def __init__(self, policies: list[Policy | None]) -> None:
        self.policies = (None, *filter(None, dict.fromkeys(policies)))
        self._left = iter(policies)
        self.observe(0, 0)

    def start_text(self) -> None: ...

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        self.index = self.policies.index(next(self._left, None))


def test_a_draft_catches_up_in_one_pass_on_tokens_decoded_without_it() -> None:
    drafting = fixed((4,), 1)
    session = Session(TARGET, DRAFTS["separate"], 40)
    decoding = Settings(policy=None, sampling=GREEDY, max_new_tokens=20, eos_token_id=None)
    generation = session.generate([1, 2, 3], decoding, selector=PolicySequence([drafting, None, None, None, drafting]))
    draft_passes = [sample.rows for sample in generation.samples if sample.kind == "segment"]
    accepted = generation.blocks[0][1]
    assert (
        draft_passes == [1] * 3 + [1 + accepted + 3] * 3
    )  # three segments: first the last known token, then all tokens up to the new one
    assert generation.policies[:5] == (drafting, None, None, None, drafting)


@torch.no_grad()
@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4, 5, 6], [22, 8, 16]])
def test_plain_decoding_equals_transformers_generate(prompt: list[int], penalty: float) -> None:
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": EOS, "repetition_penalty": penalty}
    written = tiny_llama(TinySpec()).generate(ids, attention_mask=torch.ones_like(ids), **options)
    sampling = replace(GREEDY, repetition_penalty=penalty)
    generation = generate(TARGET, None, prompt, policy=None, sampling=sampling, max_new_tokens=60, eos_token_id=EOS)
    assert generation.tokens == tuple(written[0, len(prompt) :].tolist())


@pytest.mark.parametrize("sampling", [GREEDY, PENALISED, PENALISED_NOISE], ids=lambda sampling: sampling.label)
def test_blocks_of_a_draft_that_always_agrees_are_fully_accepted(sampling: Sampling) -> None:
    """With penalties this holds only if exits and target count the drafted tokens before each position alike."""
    draft, common = tiny_model(TinySpec(), (6,)), {"sampling": sampling, "max_new_tokens": 23, "eos_token_id": None}
    generation = generate(TARGET, draft, [1, 2], policy=fixed((6,), 4), **common)
    assert generation.tokens == generate(TARGET, None, [1, 2], policy=None, **common).tokens
    # 4 rounds of 4 + bonus make 20. Three more tokens are allowed, so two are drafted.
    assert generation.blocks == ((4, 4), (4, 4), (4, 4), (4, 4), (2, 2))
    first_segment = [(p.rows, p.num_passes) for p in generation.rounds.passes if p.kind == "segment"]
    assert first_segment == [(1, 4 + 3 * 3 + 1), (2, 4)]  # after a fully accepted round the draft has one more token to process


def test_a_draft_that_never_agrees_gives_one_token_per_round() -> None:
    draft = contrary(tiny_model(TinySpec(), (6,)))
    generation = generate(TARGET, draft, [1, 2], policy=fixed((6,), 3), sampling=GREEDY, max_new_tokens=10, eos_token_id=None)
    assert generation.blocks == ((3, 0),) * 7 + ((2, 0), (1, 0), (0, 0))
    assert generation.rounds.tokens_per_round == 1


def test_the_heuristic_length_grows_by_two_or_shrinks_by_one() -> None:
    policy = Policy(exits=(6,), tokens=5, stop=HeuristicLength(start=2))
    common = {"sampling": GREEDY, "max_new_tokens": 24, "eos_token_id": None}
    agreeing = tiny_model(TinySpec(), (6,))
    assert [b[0] for b in generate(TARGET, agreeing, [1], policy=policy, **common).blocks] == [2, 4, 5, 5, 3]
    drafted = [b[0] for b in generate(TARGET, contrary(agreeing), [1], policy=policy, **common).blocks]
    assert drafted == [2, *(1 for _ in range(22)), 0]


def test_a_block_ends_at_a_drafted_end_of_text() -> None:
    draft = tiny_model(TinySpec(), (6,))
    plain = generate(TARGET, None, [1, 2], policy=None, sampling=GREEDY, max_new_tokens=30, eos_token_id=None)
    eos = plain.tokens[6]
    end = plain.tokens.index(eos)
    generation = generate(TARGET, draft, [1, 2], policy=fixed((6,), 8), sampling=GREEDY, max_new_tokens=30, eos_token_id=eos)
    assert generation.tokens == plain.tokens[: end + 1]
    assert (
        generation.blocks[-1][0] == generation.blocks[-1][1]
    )  # the end of text was drafted last and accepted, without a bonus
    assert sum(generation.rounds.exits_taken) == generation.rounds.num_drafted == end + 1 - (len(generation.blocks) - 1)


def test_laps_cover_the_decoding_time_and_name_every_pass() -> None:
    clock = Clock()
    draft = DRAFTS["separate"]
    common = {"sampling": GREEDY, "max_new_tokens": 20, "eos_token_id": None}
    generation = generate(TARGET, draft, [1, 2, 3], policy=fixed((1, 4), 3), clock=clock, **common)
    kinds = set(generation.samples.kind)
    assert kinds == {"draft_prefill", "target_prefill", "segment", "exit", "verify", "round"}
    assert generation.prefill_s + generation.decode_s == pytest.approx(sum(generation.samples.seconds))
    assert generation.samples.kind.count("verify") == generation.samples.kind.count("round") == generation.rounds.num_rounds
    assert generation.samples.cached_tokens[generation.samples.kind.index("verify")] == 2
    assert {p.kind for p in generation.rounds.passes} == kinds - set(PREFILL_KINDS)
    num_prefills = sum(kind in PREFILL_KINDS for kind in generation.samples.kind)
    assert sum(p.num_passes for p in generation.rounds.passes) == len(generation.samples) - num_prefills


def prefills(generation: Generation) -> list[tuple[PassKind, int, int, int]]:
    """Kind, stage, rows and lap index of each pass over the prompt."""
    laps = enumerate(generation.samples)
    return [(lap.kind, lap.stage, lap.rows, index) for index, lap in laps if lap.kind in PREFILL_KINDS]


def test_a_segment_runs_the_prompt_before_its_first_pass_and_only_if_it_has_one() -> None:
    session = Session(TARGET, DRAFTS["separate"], 60)
    common = {"sampling": GREEDY, "max_new_tokens": 30, "eos_token_id": None}

    def run(policy: Policy | None) -> Generation:
        return session.generate([1, 2, 3, 4, 5], Settings(policy=policy, **common))

    target_prefill = ("target_prefill", 0, 4, 0)
    assert prefills(run(None)) == [target_prefill]
    shallow = run(replace(fixed((1, 4), 3), thresholds=(0.0,)))
    assert prefills(shallow) == [target_prefill, ("draft_prefill", 0, 4, 1)]
    rarely = replace(fixed((1, 4), 3), thresholds=(0.6,))
    generation = run(rarely)
    places = {stage: place for kind, stage, _, place in prefills(generation) if kind == "draft_prefill"}
    assert sorted(places) == [0, 1, 2]  # exits 2 and 4 end the second and the third segment
    assert places[1] > 2  # not before the first token of the first round has left
    kinds = [(lap.kind, lap.stage, lap.cached_tokens) for lap in generation.samples]
    for stage in (0, 1, 2):
        assert kinds[places[stage] + 1] == ("segment", stage, 4)
        assert ("segment", stage) not in [lap[:2] for lap in kinds[: places[stage]]]


def test_a_clock_excludes_only_the_callers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2d.decoding.clock.perf_counter", iter([0.0, 1.0, 3.0, 7.0, 8.0]).__next__)
    clock = Clock()
    clock.lap("verify", 0, 1, 0)
    clock.lap("round", 0, 0, 0)
    clock.skip()
    clock.lap("verify", 0, 1, 1)
    assert clock.samples().kind == ("verify", "round", "verify")
    assert clock.samples().seconds == (1.0, 2.0, 1.0)


def test_passes_launched_as_one_share_a_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2d.decoding.clock.perf_counter", iter([0.0, 1.0, 5.0]).__next__)
    clock = Clock()
    clock.lap("exit", 0, 1, 0)
    clock.shared_lap([("segment", 1, 2, 9), ("segment", 2, 2, 9)], [0.25, 0.75])
    samples = clock.samples()
    assert (samples.kind, samples.stage, samples.seconds) == (("exit", "segment", "segment"), (0, 1, 2), (1.0, 1.0, 3.0))


def test_a_session_writes_the_same_again_after_another_text() -> None:
    session = Session(TARGET, DRAFTS["separate"], 60)
    speculating = Settings(policy=fixed((1, 4), 5), sampling=GREEDY, max_new_tokens=30, eos_token_id=None)
    first = session.generate([1, 2, 3], speculating)
    session.generate([7] * 20, speculating)
    again = session.generate([1, 2, 3], speculating)
    assert (again.tokens, again.blocks, again.rounds) == (first.tokens, first.blocks, first.rounds)


def test_the_same_seed_repeats_a_ratio_test_run_and_another_does_not() -> None:
    def run(seed: int) -> tuple[int, ...]:
        sampling = Sampling(rule="ratio", temperature=1.0, top_k=None, top_p=None, seed=seed)
        return generate(
            TARGET, DRAFTS["separate"], [1], policy=fixed((1, 4), 3), sampling=sampling, max_new_tokens=40, eos_token_id=None
        ).tokens

    assert run(1) == run(1) != run(2)


def test_each_penalty_changes_the_output() -> None:
    common = {"policy": fixed((1, 4), 3), "max_new_tokens": 60, "eos_token_id": None}
    changes = ({}, {"repetition_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.5})
    samplings = [replace(GREEDY, **change) for change in changes]
    texts = [generate(TARGET, DRAFTS["separate"], [1], sampling=sampling, **common).tokens for sampling in samplings]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": []}, "prompt is empty"),
        ({"prompt_ids": [1] * 150, "max_new_tokens": 11}, "do not fit a context of 160 tokens"),
        ({"max_new_tokens": 0}, "expected at least 1"),
        ({"policy": fixed((1, 5), 3)}, "exit 5 is deeper than the draft"),
        ({"policy": fixed((3,), 3)}, "exit 3 is not an exit of the draft"),
    ],
)
def test_bad_requests_are_refused_and_state_what_was_expected(change: dict, message: str) -> None:
    request = {"prompt_ids": [1], "policy": fixed((1,), 3), "sampling": GREEDY, "max_new_tokens": 5} | change
    with pytest.raises(UserInputError, match=message):
        generate(TARGET, DRAFTS["separate"], eos_token_id=None, **request)


def test_a_draft_with_another_vocabulary_or_without_exits_is_refused() -> None:
    with pytest.raises(Mismatch, match="vocabulary of 19 tokens"):
        Session(TARGET, tiny_model(TinySpec(vocab_size=19), (2,)), 20)
    with pytest.raises(BadPolicy, match="without exits"):
        Session(TARGET, tiny_model(TinySpec(num_layers=4)), 20)
    with pytest.raises(BadPolicy, match="no early exits"):
        generate(tiny_model(TinySpec()), None, [1], policy=fixed((1,), 3), sampling=GREEDY, max_new_tokens=5, eos_token_id=None)
