"""A scripted run equals replay in blocks, exits and passes, also after the first mistake of a block."""

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
from s2d.decoding.scripted_acceptance import ScriptedAcceptance, scripts_from_trace
from s2d.decoding.verify import ExactVerifier
from s2d.loading.load_model import random_model
from tests.strategies import TraceSpec, make_trace, policies, tiny_geometry, traces

pytestmark = pytest.mark.e2e

MAX_TOKENS = 96
EXITS = (1, 2, 4, 6)
POLICY = Policy(exits=(1, 6), thresholds=(0.5,), tokens=4)


@functools.cache
def session_for(kind: str, exit_layers: tuple[int, ...]) -> Session:
    """Random models of the shapes that the synthetic traces name."""
    if kind == "self":
        return Session(random_model(tiny_geometry(16), exit_layers, "fp32", seed=0), None, MAX_TOKENS)
    draft = random_model(tiny_geometry(exit_layers[-1]), exit_layers, "fp32", seed=1)
    return Session(random_model(tiny_geometry(16), (), "fp32", seed=0), draft, MAX_TOKENS)


def run_all(trace: Trace, policy: Policy | None, seed: int = 0) -> list[Generation]:
    """Run every prompt of a trace by its script, after a random prompt of the same length."""
    header, generator = trace.header, torch.Generator().manual_seed(seed)
    session = session_for(header.draft_kind, header.exit_layers)
    return [
        session.generate(
            torch.randint(0, 8, (script.prompt_tokens,), generator=generator).tolist(),
            settings_for(trace, policy, script),
        )
        for script in scripts_from_trace(trace)
    ]


def settings_for(trace: Trace, policy: Policy | None, script: ScriptedAcceptance) -> Settings:
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
def test_a_scripted_run_equals_replay_in_every_pass(data: st.DataObject, trace: Trace, seed: int) -> None:
    policy = data.draw(st.none() | policies(trace.header.exit_layers))
    runs = run_all(trace, policy, seed)
    assert tuple(run.blocks for run in runs) == block_lengths(trace, policy)
    assert tuple(run.rounds for run in runs) == replay_prompts(trace, policy)
    assert [token for run in runs for token in run.tokens] == trace.target_token.tolist()


def test_a_scripted_run_may_start_anywhere_in_the_traced_text() -> None:
    trace = make_trace(TraceSpec(num_positions=[40], max_new_tokens=40))
    [script] = scripts_from_trace(trace)
    text = [3] * script.prompt_tokens + trace.target_token.tolist()
    late = replace(settings_for(trace, POLICY, script), max_new_tokens=10)
    ran = session_for("separate", EXITS).generate(text[:-10], late)
    assert list(ran.tokens) == text[-10:]


def test_the_logits_are_read_although_the_script_replaces_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def spied(name: str) -> None:
        method = getattr(ExactVerifier, name)

        def spy(self: ExactVerifier, *args: object) -> object:
            calls.append(name)
            return method(self, *args)

        monkeypatch.setattr(ExactVerifier, name, spy)

    spied("check_exit")
    spied("verify")
    [run] = run_all(make_trace(TraceSpec(num_positions=[30], max_new_tokens=30)), POLICY)
    number = {kind: sum(count.num_passes for count in run.rounds.passes if count.kind == kind) for kind in ("exit", "verify")}
    assert (calls.count("check_exit"), calls.count("verify")) == (number["exit"], number["verify"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 31}, r"made for tokens 1 to 31, not for 31 new tokens after 1"),
        ({"eos_token_id": None}, r"made for end-of-text token 0, not for None"),
    ],
)
def test_a_run_that_could_differ_from_replay_is_refused(change: dict[str, object], message: str) -> None:
    trace = make_trace(TraceSpec(num_positions=[30], max_new_tokens=30, eos_token_id=0))
    [script] = scripts_from_trace(trace)
    with pytest.raises(Mismatch, match=message):
        session_for("separate", EXITS).generate([1], replace(settings_for(trace, POLICY, script), **change))  # type: ignore[arg-type]


def test_exits_other_than_the_traced_ones_are_refused() -> None:
    trace = make_trace(TraceSpec(num_positions=[30], max_new_tokens=30))
    [script] = scripts_from_trace(trace)
    with pytest.raises(Mismatch, match=r"made for exits \(1, 2, 4, 6\), not for exits \(2, 6\)"):
        session_for("separate", (2, 6)).generate([1], settings_for(trace, None, script))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TraceSpec(num_positions=[8], max_new_tokens=8, rule="ratio"), "holds probabilities, not tokens"),
        (TraceSpec(num_positions=[8], max_new_tokens=9), "stops after 8 of 9 tokens"),
    ],
)
def test_a_trace_that_no_run_can_follow_is_refused(spec: TraceSpec, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        scripts_from_trace(make_trace(spec))
