"""Bugs that only a GPU shows, introduced into the captured passes one by one: the simulated GPU catches each."""

import contextlib
from collections.abc import Callable

import pytest
import torch

import perfmodel.passes.passes
import s2d.model.cuda_graphs
from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Session, Settings
from s2d.model.choose_tokens import ExitPredictor
from s2d.model.cuda_graphs import GraphDecoder, Launch
from tests.gpu_simulator import PoolError, UseAfterFree, simulated_gpu
from tests.s2d.decoding.test_generate import TARGET, fixed
from tests.s2d.model.test_cuda_graphs import graphed
from tests.stubs import TinySpec, loaded, tiny_llama

pytestmark = pytest.mark.e2e

PROMPT = [1, 2, 3, 4, 5]
SETTINGS = Settings(policy=fixed((1, 4), 3), sampling=GREEDY, max_new_tokens=20, eos_token_id=None)
PREDICTOR = ExitPredictor(sampling=GREEDY, confidence="max-prob")


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer captures: even those of a tiny model take time."""
    for module in (s2d.model.cuda_graphs, perfmodel.passes.passes):
        monkeypatch.setattr(module, "GRAPH_ROW_WIDTHS", (1, 4))


def text_on_the_simulated_gpu() -> tuple[int, ...]:
    model = graphed(loaded(tiny_llama(TinySpec()), (1, 2, 4), "fp32", "cuda"))
    return Session(model, None, 40).generate(PROMPT, SETTINGS).tokens


@pytest.fixture
def expected() -> tuple[int, ...]:
    """The text of eager passes on the CPU."""
    return Session(TARGET, None, 40).generate(PROMPT, SETTINGS).tokens


def decoder_on(device: str) -> GraphDecoder:
    return graphed(loaded(tiny_llama(TinySpec()), device=device)).decoder


def with_closure_buffer(capture: Callable[[GraphDecoder, Launch], Launch]) -> Callable[[GraphDecoder, Launch], Launch]:
    """A capture that reads a buffer owned by the captured function alone."""

    def capture_with_buffer(decoder: GraphDecoder, compute: Launch) -> Launch:
        buffer = torch.zeros(4, device=decoder.device)

        def compute_with_buffer() -> None:
            buffer.add_(1)
            compute()

        return capture(decoder, compute_with_buffer)

    return capture_with_buffer


@torch.inference_mode()
def predict(decoder: GraphDecoder) -> tuple[int, float]:
    return decoder.predict(decoder.embed([7]), PREDICTOR, None)()


def test_without_a_bug_the_simulated_gpu_generates_the_text(expected: tuple[int, ...]) -> None:
    with simulated_gpu() as simulator:
        assert text_on_the_simulated_gpu() == expected
    assert not simulator.problems


def test_a_position_captured_as_a_python_number_changes_the_text(
    monkeypatch: pytest.MonkeyPatch, expected: tuple[int, ...]
) -> None:
    run_at_positions = GraphDecoder.run_at_positions

    def run_at_fixed_positions(self: GraphDecoder, positions: torch.Tensor, *args: object) -> None:
        begin = 0  # the value of a Python number during the capture
        run_at_positions(self, torch.arange(begin, begin + len(positions), device=self.device), *args)

    monkeypatch.setattr(GraphDecoder, "run_at_positions", run_at_fixed_positions)
    with simulated_gpu():
        assert text_on_the_simulated_gpu() != expected


def test_a_prediction_read_without_waiting_for_its_event_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_gpu() as simulator:
        monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda self: None)
        with contextlib.suppress(ValueError):  # int() of NaN
            predict(decoder_on("cuda"))
        assert "before the copy to it has arrived" in simulator.problems[0]


def test_a_buffer_owned_by_the_captured_function_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphDecoder, "capture", with_closure_buffer(GraphDecoder.capture))
    with simulated_gpu(), pytest.raises(UseAfterFree, match="has been freed since"):
        predict(decoder_on("cuda"))


@pytest.fixture
def keeps_workspaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures without `_cuda_clearCublasWorkspaces`, on torch's default capture stream."""

    def capture(decoder: GraphDecoder, compute: Launch) -> Launch:
        graph, pools = torch.cuda.CUDAGraph(), decoder.__dict__
        with torch.cuda.graph(graph, pool=pools.setdefault("pool_of_the_mutation", torch.cuda.graph_pool_handle())):
            compute()
        return lambda: graph.replay()

    monkeypatch.setattr(GraphDecoder, "capture", capture)


@pytest.mark.usefixtures("keeps_workspaces")
@torch.inference_mode()
def test_a_workspace_freed_with_another_graph_of_its_pool_is_caught() -> None:
    with simulated_gpu():
        decoder = decoder_on("cuda")
        matrix = torch.ones(4, 4, device="cuda")
        first = decoder.capture(lambda: torch.mm(matrix, matrix))
        second = decoder.capture(lambda: torch.mm(matrix, matrix))
        second()
        del first
        with pytest.raises(UseAfterFree, match="193402"):
            second()


@pytest.mark.usefixtures("keeps_workspaces")
@torch.inference_mode()
def test_a_pool_that_keeps_a_workspace_after_its_last_graph_is_caught() -> None:
    with simulated_gpu():
        decoder = decoder_on("cuda")
        matrix = torch.ones(4, 4, device="cuda")
        decoder.capture(lambda: torch.mm(matrix, matrix))
        with pytest.raises(PoolError, match="175276"):
            decoder.capture(lambda: torch.mm(matrix, matrix))
