"""A round launches only captured passes, and the host waits only for predictions and verdicts.

The simulator counts launches, captures and waits. On a real GPU only the texts are compared with those of the CPU.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.clock import Clock
from s2d.decoding.generate import Generation, Session
from s2d.model.cuda_graphs import padded_cache_tokens, padded_context
from s2d.model.host_copies import CudaFence
from tests.gpu.sessions import DEEPEST, GATED, MAX_TOKENS, PROMPTS, draft_on, settings_of, target_on, texts_on_the_cpu
from tests.gpu_simulator import Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.gpu]
PENALISED = replace(GREEDY, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2)
NOISE = Sampling(rule="shared-noise", temperature=0.8, top_k=None, top_p=0.95, seed=3)
RATIO = replace(NOISE, rule="ratio")
SAMPLINGS = [GREEDY, PENALISED, NOISE, replace(PENALISED, rule="shared-noise", temperature=0.8, seed=3)]
AHEAD = replace(GATED, runs_ahead=True)
AT_ONCE = replace(GATED, catches_up_at_once=True)
DRAFTING = [*product((GATED,), (*SAMPLINGS, RATIO)), *product((AHEAD, AT_ONCE, DEEPEST), (GREEDY, SAMPLINGS[-1]))]


def session_on_gpu() -> Session:
    return Session(target_on(), draft_on(), MAX_TOKENS)


def counted_rounds(
    session: Session, policy: Policy | None, sampling: Sampling, simulator: Simulator
) -> tuple[Generation, list[Counter[str]]]:
    """A text generated for the second time, and the simulator's counts in each of its rounds except the first."""
    prompt, settings = PROMPTS[0], settings_of(policy, sampling)
    session.generate(prompt, settings)
    counts: list[Counter[str]] = []
    generation = session.generate(prompt, settings, on_tokens=lambda tokens: counts.append(simulator.counters.copy()))
    return generation, [after - before for before, after in pairwise(counts)]


@pytest.fixture
def fences_are_free(gpu: Simulator | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count no waits at fences: the simulator checks that a pinned buffer is free before it is reused."""
    if gpu is None:
        pytest.skip("only the simulator counts")

    def wait(fence: CudaFence) -> None:
        assert gpu.timeline.is_complete(fence._event.vector)

    monkeypatch.setattr(CudaFence, "wait", wait)


@pytest.mark.usefixtures("fences_are_free")
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda case: case.label)
def test_a_plain_round_waits_once(gpu: Simulator, sampling: Sampling) -> None:
    generation, rounds = counted_rounds(session_on_gpu(), None, sampling, gpu)
    assert generation.tokens == texts_on_the_cpu(None, sampling)[0]
    assert len(rounds) == len(generation.tokens) - 1
    for counted in rounds:
        assert (counted["waits"], counted["event_waits"]) == (1, 0), gpu.wait_locations


@pytest.mark.usefixtures("fences_are_free")
@pytest.mark.parametrize(("policy", "sampling"), DRAFTING, ids=lambda case: case.label)
def test_a_drafting_round_waits_for_each_exit_check_and_for_the_verdict(
    gpu: Simulator, policy: Policy, sampling: Sampling
) -> None:
    generation, rounds = counted_rounds(session_on_gpu(), policy, sampling, gpu)
    if sampling is not RATIO:
        assert generation.tokens == texts_on_the_cpu(None, sampling)[0]
    for counted, num_checks in zip(rounds, checks_by_round(generation)[1:], strict=True):
        assert (counted["waits"], counted["event_waits"]) == (1, num_checks), gpu.wait_locations


def checks_by_round(generation: Generation) -> list[int]:
    """Exit checks in each round."""
    checks = [0]
    for kind in generation.samples.kind:
        checks[-1] += kind in ("exit", "ahead")
        if kind == "round":
            checks.append(0)
    return checks[:-1]


@pytest.mark.usefixtures("fences_are_free")
def test_drafting_with_the_deepest_exit_alone_takes_two_launches_per_token(gpu: Simulator) -> None:
    generation, rounds = counted_rounds(session_on_gpu(), DEEPEST, GREEDY, gpu)
    assert any(accepted < drafted for drafted, accepted in generation.blocks)
    assert any(accepted == drafted > 0 for drafted, accepted in generation.blocks)
    for counted, (num_drafted, _) in zip(rounds, generation.blocks[1:], strict=True):
        assert counted["graph_launches"] == 2 * num_drafted + 1  # one for the verification
    segments = Counter(sample.stage for sample in generation.samples if sample.kind == "segment")
    assert segments == dict.fromkeys(range(3), generation.rounds.num_drafted)  # each segment has its part of a launch


def test_cache_capacities_and_contexts_are_aligned() -> None:
    assert all(padded_cache_tokens(tokens) % 64 == 0 for tokens in range(1, 600))
    assert all(padded_context(end) % 64 == 0 for end in range(1, 20_000, 7))
    session = session_on_gpu()
    session.generate(PROMPTS[0], settings_of(GATED))
    for role, ends in (("target", (6,)), ("draft", (1, 2, 4))):
        cache = session.cache(role, ends)
        assert cache.max_tokens % 64 == 0
        assert cache.prepared
        assert all(context % 64 == 0 for *_, context in cache.prepared)


@pytest.mark.parametrize("sampling", [GREEDY, NOISE], ids=lambda case: case.label)
def test_all_passes_are_captured_and_launched_once_before_the_clock_starts(
    gpu: Simulator | None, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[object] = []
    launched: set[int] = set()
    before_rounds: list[int] = []

    class Graph(torch.cuda.CUDAGraph):
        def capture_end(self) -> None:
            super().capture_end()
            captured.append(self)

        def replay(self) -> None:
            launched.add(id(self))
            super().replay()

    def start(clock: Clock) -> None:
        begin(clock)
        before_rounds.append(len(captured))
        assert {id(graph) for graph in captured} <= launched

    session, begin = session_on_gpu(), Clock.start
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(Clock, "start", start)
    for policy in (None, GATED, DEEPEST, AHEAD, AT_ONCE):
        session.generate(PROMPTS[0], settings_of(policy, sampling))
        assert len(captured) == before_rounds[-1] > 0
    assert before_rounds[0] < before_rounds[-1]
