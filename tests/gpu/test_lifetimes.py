"""What graphs, caches and workspaces of a GPU live and die with."""

import gc

import pytest
import torch

from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Session
from s2d.model.choose_tokens import ExitPredictor
from tests.gpu.conftest import Evidence, used_bytes, without_collections
from tests.gpu.sessions import DEEPEST, GATED, MAX_TOKENS, draft_on, target_on, texts_of, texts_on_the_cpu
from tests.gpu_simulator import Simulator, simulated_gpu

WORKSPACE_STREAMS = 3
"""The target's, the draft's, and the default one."""


@pytest.mark.gpu
def test_a_whole_profile_holds_few_workspaces(evidence: Evidence) -> None:
    if evidence.most_workspaces is None:
        pytest.skip("the simulator alone counts them")
    assert evidence.most_workspaces <= WORKSPACE_STREAMS


@pytest.mark.gpu
def test_a_whole_profile_leaves_no_memory_behind(evidence: Evidence) -> None:
    assert evidence.left_bytes == 0  # without a collection: nothing that holds weights or caches is in a cycle


@pytest.mark.gpu
def test_a_session_leaves_no_memory_behind_and_exit_checks_live_on() -> None:
    target, draft, expected = target_on(), draft_on(), texts_on_the_cpu()
    with without_collections():
        assert texts_of(Session(target, draft, MAX_TOKENS), GATED) == expected  # exit checks and scratch stay with decoders
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
def test_passes_are_captured_again_after_all_graphs_of_a_decoder_have_died() -> None:
    target, expected = target_on(), texts_on_the_cpu()
    for _ in range(3):  # plain decoding asks no exit: every graph dies with its session
        assert texts_of(Session(target, None, MAX_TOKENS), None) == expected
        gc.collect()


@pytest.mark.gpu
@pytest.mark.parametrize("failing", [(1,), (2, 3, 5), tuple(range(1, 40))], ids=["one", "some", "all"])
def test_a_capture_without_memory_leaves_a_warning_and_the_right_text(
    gpu: Simulator | None, failing: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if gpu is None:
        pytest.skip("a real GPU does not run out of memory when asked to")
    expected, session = texts_on_the_cpu(), Session(target_on(), None, MAX_TOKENS)
    gpu.fail_captures(*failing)
    assert texts_of(session, None) == expected
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: no memory to capture ")
    assert warning.endswith(" launched kernel by kernel, which is slower")


@pytest.mark.gpu
@torch.inference_mode()
def test_an_exit_check_without_memory_for_its_capture_answers_all_the_same(
    gpu: Simulator | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if gpu is None:
        pytest.skip("a real GPU does not run out of memory when asked to")
    target, draft = target_on(), draft_on()
    choice = ExitPredictor(sampling=GREEDY, confidence="max-prob")
    gpu.fail_captures(1)
    draft.decoder.predict(draft.decoder.embed([1]), choice, None)()
    assert "no memory to capture exit checks" in capsys.readouterr().err
    assert texts_of(Session(target, draft, MAX_TOKENS), GATED) == texts_on_the_cpu()
    assert not capsys.readouterr().err


def test_a_decoder_captures_on_one_stream_and_no_graph_leaves_a_workspace_in_its_pool() -> None:
    with simulated_gpu() as simulator:
        session = Session(target_on(), draft_on(), MAX_TOKENS)
        texts_of(session, GATED)
        assert simulator.counters["captures"] > WORKSPACE_STREAMS
        assert len(simulator.workspaces.streams_ever) <= WORKSPACE_STREAMS
        assert [one for one in simulator.workspaces.live.values() if one.owner is not None] == []
    assert not simulator.problems


def test_a_session_runs_on_the_second_of_two_gpus_while_the_first_is_the_current_one() -> None:
    expected = texts_on_the_cpu()
    with simulated_gpu(num_devices=2) as simulator:
        session = Session(target_on("cuda:1"), draft_on("cuda:1"), MAX_TOKENS)
        assert texts_of(session, GATED) == texts_of(session, DEEPEST) == texts_of(session, None) == expected
        assert torch.cuda.current_device() == 0
        assert torch.cuda.memory_allocated(0) == 0
        assert {device for device, _ in simulator.timeline.streams} == {1}
        assert simulator.counters["captures"]
    assert not simulator.problems
