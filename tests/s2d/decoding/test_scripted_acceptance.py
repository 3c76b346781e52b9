"""A scripted run is what replay counts, whole: blocks, exits taken, every pass, beyond a block's first mismatch too."""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import block_lengths, replay_prompts
from s2d.decoding.generate import Generation, Session, Settings
from s2d.decoding.scripted_acceptance import ScriptedAcceptance, scripts_of
from s2d.decoding.verify import ExactJudge
from s2d.loading.load_model import random_model
from tests.strategies import TraceSpec, make_trace, policies, tiny_geometry, traces

MAX_TOKENS = 96
EXITS = (1, 2, 4, 6)
POLICY = Policy(exits=(1, 6), thresholds=(0.5,), tokens=4)


@functools.cache
def session_of(kind: str, exit_layers: tuple[int, ...]) -> Session:
    """Random models of the shapes that the made-up traces name."""
    if kind == "self":
        return Session(random_model(tiny_geometry(16), exit_layers, "fp32", seed=0), None, MAX_TOKENS)
    draft = random_model(tiny_geometry(exit_layers[-1]), exit_layers, "fp32", seed=1)
    return Session(random_model(tiny_geometry(16), (), "fp32", seed=0), draft, MAX_TOKENS)


def run_all(trace: Trace, policy: Policy | None, seed: int = 0) -> list[Generation]:
    """Every prompt of a trace by its script, after random tokens of its length."""
    header, generator = trace.header, torch.Generator().manual_seed(seed)
    session = session_of(header.draft.kind, header.draft.exit_layers)
    return [
        session.generate(
            torch.randint(0, 8, (script.prompt_tokens,), generator=generator).tolist(),
            settings_of(trace, policy, script),
        )
        for script in scripts_of(trace)
    ]


def settings_of(trace: Trace, policy: Policy | None, script: ScriptedAcceptance) -> Settings:
    return Settings(
        policy=policy,
        sampling=trace.header.sampling,
        max_new_tokens=trace.header.max_new_tokens,
        eos_token_id=trace.header.eos_token_id,
        script=script,
    )


def is_exact(trace: Trace) -> bool:
    return trace.header.sampling.rule != "ratio"


@settings(max_examples=80, derandomize=True)
@given(data=st.data(), trace=traces().filter(is_exact), seed=st.integers(0, 2))
def test_a_scripted_run_is_the_replayed_one_in_every_pass(data: st.DataObject, trace: Trace, seed: int) -> None:
    policy = data.draw(st.none() | policies(trace.header.draft.exit_layers))
    ran = run_all(trace, policy, seed)
    assert tuple(one.blocks for one in ran) == block_lengths(trace, policy)
    assert tuple(one.rounds for one in ran) == replay_prompts(trace, policy)
    assert [token for one in ran for token in one.tokens] == trace.target_token.tolist()


def test_a_script_can_be_entered_anywhere_in_its_text() -> None:
    trace = make_trace(TraceSpec(num_positions=[40], max_new_tokens=40))
    [script] = scripts_of(trace)
    text = [3] * script.prompt_tokens + trace.target_token.tolist()
    late = replace(settings_of(trace, POLICY, script), max_new_tokens=10)
    ran = session_of("separate", EXITS).generate(text[:-10], late)
    assert list(ran.tokens) == text[-10:]


def test_the_logits_are_read_though_they_are_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def spied(name: str) -> None:
        method = getattr(ExactJudge, name)

        def spy(self: ExactJudge, *args: object) -> object:
            asked.append(name)
            return method(self, *args)

        monkeypatch.setattr(ExactJudge, name, spy)

    spied("ask")
    spied("verdict")
    [ran] = run_all(make_trace(TraceSpec(num_positions=[30], max_new_tokens=30)), POLICY)
    number = {kind: sum(one.num_passes for one in ran.rounds.passes if one.kind == kind) for kind in ("exit", "verify")}
    assert (asked.count("ask"), asked.count("verdict")) == (number["exit"], number["verify"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_new_tokens": 31}, r"made for tokens 1 to 31, not for 31 new tokens after 1"),
        ({"eos_token_id": None}, r"made for end-of-text token 0, not for None"),
    ],
)
def test_a_run_that_replay_would_not_count_is_refused(change: dict[str, object], said: str) -> None:
    trace = make_trace(TraceSpec(num_positions=[30], max_new_tokens=30, eos_token_id=0))
    [script] = scripts_of(trace)
    with pytest.raises(Mismatch, match=said):
        session_of("separate", EXITS).generate([1], replace(settings_of(trace, POLICY, script), **change))  # type: ignore[arg-type]


def test_other_exits_than_the_traced_are_refused() -> None:
    trace = make_trace(TraceSpec(num_positions=[30], max_new_tokens=30))
    [script] = scripts_of(trace)
    with pytest.raises(Mismatch, match=r"made for exits \(1, 2, 4, 6\), not for exits \(2, 6\)"):
        session_of("separate", (2, 6)).generate([1], settings_of(trace, None, script))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (TraceSpec(num_positions=[8], max_new_tokens=8, rule="ratio"), "holds chances, not tokens"),
        (TraceSpec(num_positions=[8], max_new_tokens=9), "stops after 8 of 9 tokens"),
    ],
)
def test_a_trace_that_no_run_could_follow_is_refused(spec: TraceSpec, said: str) -> None:
    with pytest.raises(UserInputError, match=said):
        scripts_of(make_trace(spec))
