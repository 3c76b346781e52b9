"""Lifetimes of graphs, caches and cuBLAS workspaces on a GPU."""

import gc

import pytest
import torch

from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Session
from s2d.model.choose_tokens import ExitPredictor
from tests.gpu.conftest import Evidence, used_bytes, without_garbage_collection
from tests.gpu.sessions import DEEPEST, GATED, MAX_TOKENS, draft_on, target_on, texts_of, texts_on_the_cpu
from tests.gpu_simulator import Simulator, simulated_gpu

pytestmark = pytest.mark.e2e

WORKSPACE_STREAMS = 3
"""The streams of the target and of the draft, and the default stream."""


@pytest.mark.gpu
def test_a_complete_profile_uses_few_workspaces(evidence: Evidence) -> None:
    if evidence.max_workspaces is None:
        pytest.skip("only the simulator counts them")
    assert evidence.max_workspaces <= WORKSPACE_STREAMS


@pytest.mark.gpu
def test_a_complete_profile_leaks_no_memory(evidence: Evidence) -> None:
    assert evidence.leaked_bytes == 0  # without garbage collection: no cycle contains weights or caches


@pytest.mark.gpu
def test_a_session_leaks_no_memory_and_exit_checks_survive_it() -> None:
    target, draft, expected = target_on(), draft_on(), texts_on_the_cpu()
    with without_garbage_collection():
        assert texts_of(Session(target, draft, MAX_TOKENS), GATED) == expected  # decoders keep exit checks and buffers
        before = used_bytes()
        for draft_of_session in (draft, None):  # None: the target's own layers
            session = Session(target, draft_of_session, MAX_TOKENS)
            assert texts_of(session, GATED) == expected
            if draft_of_session is not None:
                assert used_bytes() > before
            del session
            if draft_of_session is not None:
                assert used_bytes() == before
        assert texts_of(Session(target, draft, MAX_TOKENS), GATED) == expected


@pytest.mark.gpu
def test_passes_are_captured_again_after_all_graphs_of_a_decoder_were_destroyed() -> None:
    target, expected = target_on(), texts_on_the_cpu()
    for _ in range(3):  # plain decoding evaluates no exit: every graph dies with its session
        assert texts_of(Session(target, None, MAX_TOKENS), None) == expected
        gc.collect()


@pytest.mark.gpu
@pytest.mark.parametrize("failing", [(1,), (2, 3, 5), tuple(range(1, 40))], ids=["first", "some", "all"])
def test_a_capture_without_memory_prints_a_warning_and_the_text_is_correct(
    gpu: Simulator | None, failing: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if gpu is None:
        pytest.skip("a real GPU does not run out of memory on request")
    expected, session = texts_on_the_cpu(), Session(target_on(), None, MAX_TOKENS)
    gpu.fail_captures(*failing)
    assert texts_of(session, None) == expected
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: not enough memory to capture ")
    assert warning.endswith(": launching them kernel by kernel, which is slower")


@pytest.mark.gpu
@torch.inference_mode()
def test_an_exit_check_without_memory_for_its_capture_still_works(
    gpu: Simulator | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if gpu is None:
        pytest.skip("a real GPU does not run out of memory on request")
    target, draft = target_on(), draft_on()
    predictor = ExitPredictor(sampling=GREEDY, confidence="max-prob")
    gpu.fail_captures(1)
    draft.decoder.predict(draft.decoder.embed([1]), predictor, None)()
    assert "not enough memory to capture exit checks" in capsys.readouterr().err
    assert texts_of(Session(target, draft, MAX_TOKENS), GATED) == texts_on_the_cpu()
    assert not capsys.readouterr().err


def test_a_decoder_captures_on_a_single_stream_and_no_pool_keeps_a_workspace() -> None:
    with simulated_gpu() as simulator:
        session = Session(target_on(), draft_on(), MAX_TOKENS)
        texts_of(session, GATED)
        assert simulator.counters["captures"] > WORKSPACE_STREAMS
        assert len(simulator.workspaces.streams_with_products) <= WORKSPACE_STREAMS
        assert all(workspace.owner is None for workspace in simulator.workspaces.live.values())
    assert not simulator.problems


def test_a_session_runs_on_the_second_gpu_while_the_first_one_is_current() -> None:
    expected = texts_on_the_cpu()
    with simulated_gpu(num_devices=2) as simulator:
        session = Session(target_on("cuda:1"), draft_on("cuda:1"), MAX_TOKENS)
        assert texts_of(session, GATED) == texts_of(session, DEEPEST) == texts_of(session, None) == expected
        assert torch.cuda.current_device() == 0
        assert torch.cuda.memory_allocated(0) == 0
        assert {device for device, _ in simulator.timeline.streams} == {1}
        assert simulator.counters["captures"]
    assert not simulator.problems
