"""Captures and replays: each rule of the simulator has a test that fails without it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.gpu_simulator import CaptureError, PoolError, Simulator, UseAfterFree, simulated_gpu


@pytest.fixture(autouse=True)
def simulator() -> Iterator[Simulator]:
    with simulated_gpu() as active, torch.inference_mode():
        yield active


def captured(compute: Callable[[], object], **options: object) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        compute()
    return graph


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, device="cuda")


def test_a_replay_reads_tensors_again_but_not_python_numbers(simulator: Simulator) -> None:
    x, y, number = ones(4), ones(4), 3.0
    graph = captured(lambda: y.copy_(x * number))
    number = 5.0
    x.fill_(2)
    graph.replay()
    assert y.tolist() == [6.0] * 4
    assert simulator.counters["graph_launches"] == simulator.counters["captures"] == 1
    assert simulator.counters["graph_nodes_launched"] == 2


def test_a_replay_runs_no_python_of_the_captured_function() -> None:
    calls: list[int] = []
    graph = captured(lambda: calls.append(1))
    graph.replay()
    assert calls == [1]


def test_a_capture_computes_nothing() -> None:
    x, kept = torch.zeros(4, device="cuda"), []

    def compute() -> None:
        x.add_(1)
        kept.append(x * 2)

    graph = captured(compute)
    assert x.tolist() == [0.0] * 4
    graph.replay()
    assert (x.tolist(), kept[0].tolist()) == ([1.0] * 4, [2.0] * 4)


def test_a_replay_writes_results_in_a_list_and_their_views_again() -> None:
    x, parts = ones(6), []
    graph = captured(lambda: parts.extend((x * 2).clone().split(2)))
    graph.replay()
    x.fill_(5)
    graph.replay()
    assert [part.tolist() for part in parts] == [[10.0, 10.0]] * 3


def test_a_host_number_is_captured_by_value() -> None:
    x, y, host = ones(2), ones(2), torch.tensor(3.0)
    graph = captured(lambda: y.copy_(x * host))
    host.fill_(7)
    graph.replay()
    assert y.tolist() == [3.0] * 2


def test_a_replay_that_uses_memory_freed_by_the_program_is_an_error(simulator: Simulator) -> None:
    x, others = ones(4), [ones(4)]
    graph = captured(lambda: x.copy_(others[0] + 1))
    graph.replay()
    others.clear()
    with pytest.raises(UseAfterFree, match=r"test_capture.py:\d+, uses a float32 \[4\]"):
        graph.replay()
    assert len(simulator.problems) == 1


def test_memory_with_a_view_is_alive() -> None:
    x, whole = ones(2), ones(4)
    view = whole[1:3]
    graph = captured(lambda: x.copy_(view * 2))
    del whole
    graph.replay()
    assert x.tolist() == [2.0, 2.0]


def test_the_memory_of_a_graph_is_unwritten_before_every_replay() -> None:
    total, indices = torch.zeros(4, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")

    def compute() -> None:
        total.add_(torch.empty(4, device="cuda"))  # would read results of an earlier replay
        indices.copy_(torch.empty(1, dtype=torch.int64, device="cuda"))

    captured(compute).replay()
    assert bool(total.isnan().all())
    assert bool((indices == 0x5A5A5A5A5A5A5A5A).all())


def test_replaying_an_earlier_graph_of_a_pool_overwrites_the_results_of_a_later_one() -> None:
    x, y, kept = ones(4), ones(4), []
    early = captured(lambda: y.copy_(x + 1))
    late = captured(lambda: kept.append(x * 2), pool=early.pool())
    late.replay()
    assert kept[0].tolist() == [2.0] * 4
    early.replay()
    assert bool(kept[0].isnan().all())


def test_replaying_a_later_graph_of_a_pool_keeps_the_results_of_an_earlier_one() -> None:
    x, y, kept = ones(4), ones(4), []
    early = captured(lambda: kept.append(x * 2))
    late = captured(lambda: y.copy_(x + 1), pool=early.pool())
    early.replay()
    late.replay()
    assert kept[0].tolist() == [2.0] * 4


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: x.index_select(0, torch.tensor([1]).to("cuda")),
    ],
)
def test_waiting_for_the_device_inside_a_capture_is_an_error(read: Callable[[Tensor], object], simulator: Simulator) -> None:
    x = ones(4)
    with pytest.raises(CaptureError, match="inside a capture"):
        captured(lambda: read(x))
    assert simulator.problems
    captured(lambda: x + 1).replay()  # the simulator continues


def test_captures_on_the_default_stream_or_inside_another_capture_are_errors() -> None:
    with pytest.raises(CaptureError, match="non-default stream"):
        torch.cuda.CUDAGraph().capture_begin()
    with pytest.raises(CaptureError, match="inside a capture"):
        captured(lambda: captured(lambda: None))
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        torch.cuda.CUDAGraph().replay()


def test_a_selected_capture_runs_out_of_memory(simulator: Simulator) -> None:
    x = ones(2)
    simulator.fail_captures(2)
    captured(lambda: x.add_(1))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        captured(lambda: x.add_(1))
    captured(lambda: x.add_(1)).replay()
    assert x.tolist() == [2.0, 2.0]
    assert not simulator.problems


def product(matrix: Tensor, *, clears: bool = False, **options: object) -> torch.cuda.CUDAGraph:
    """A captured matrix product, which takes a cuBLAS workspace."""

    def compute() -> None:
        if clears:
            torch._C._cuda_clearCublasWorkspaces()
        torch.mm(matrix, matrix)
        if clears:
            torch._C._cuda_clearCublasWorkspaces()

    return captured(compute, **options)


@pytest.mark.parametrize("shares_pool", [False, True])
def test_a_graph_whose_workspace_was_freed_with_another_graph_is_an_error(shares_pool: bool) -> None:
    pool, matrix = torch.cuda.graph_pool_handle() if shares_pool else None, ones(4, 4)
    first, second = product(matrix, pool=pool), product(matrix, pool=pool)
    second.replay()
    del first
    with pytest.raises(UseAfterFree, match="193402"):
        second.replay()


def test_graphs_are_independent_if_workspaces_are_cleared_before_and_after_the_capture(simulator: Simulator) -> None:
    matrix, options = ones(4, 4), {"pool": torch.cuda.graph_pool_handle(), "clears": True}
    first, second = product(matrix, **options), product(matrix, **options)
    del first
    second.replay()
    del second
    product(matrix, **options).replay()
    assert not simulator.problems
    assert simulator.num_workspaces == simulator.workspace_bytes == 0


def test_clearing_workspaces_later_breaks_graphs_that_use_them() -> None:
    matrix, side = ones(4, 4), torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.mm(matrix, matrix)
    graph = product(matrix, stream=side)
    torch._C._cuda_clearCublasWorkspaces()
    with pytest.raises(UseAfterFree):
        graph.replay()


def test_a_pool_that_keeps_a_workspace_cannot_be_captured_into_after_its_last_graph() -> None:
    matrix, pool = ones(4, 4), torch.cuda.graph_pool_handle()
    product(matrix, pool=pool)  # destroyed at once
    with pytest.raises(PoolError, match="175276"):
        product(matrix, pool=pool)


def test_every_stream_with_a_product_has_a_workspace_and_there_are_32_streams(simulator: Simulator) -> None:
    matrix = ones(4, 4)
    streams = [torch.cuda.Stream() for _ in range(40)]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.mm(matrix, matrix)
    assert simulator.num_workspaces == len(set(streams)) == 32
    assert simulator.workspace_bytes == 32 * 32 * 2**20
    torch.mm(matrix, matrix)
    assert simulator.num_workspace_streams == 33


def test_a_reset_graph_cannot_be_replayed() -> None:
    x = ones(2)
    graph = captured(lambda: x.add_(1))
    graph.reset()
    with pytest.raises(RuntimeError, match="without a preceding"):
        graph.replay()


def test_all_options_of_torch_are_accepted() -> None:
    x, pool = ones(2), torch.cuda.graph_pool_handle()
    options = {"pool": pool, "stream": torch.cuda.Stream(), "capture_error_mode": "thread_local", "check_input_liveness": True}
    graph = captured(lambda: x.add_(1), **options)
    assert graph.pool() == pool
    assert not torch.cuda.is_current_stream_capturing()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert torch.cuda.is_current_stream_capturing()


def test_a_graph_still_works_after_the_program_frees_its_results() -> None:
    x, y, kept = ones(4), ones(4), []

    def compute() -> None:
        kept.append(x * 2)
        y.copy_(kept[0] + 1)

    graph = captured(compute)
    graph.replay()
    kept.clear()  # the memory returns to the pool, which the graph keeps
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [11.0] * 4


def test_an_error_inside_a_capture_undoes_its_writes() -> None:
    x = torch.zeros(4, device="cuda")

    def compute() -> None:
        x.add_(1)
        raise KeyError("of the program")

    with pytest.raises(KeyError, match="of the program"):
        captured(compute)
    assert x.tolist() == [0.0] * 4
    assert not torch.cuda.is_current_stream_capturing()


def test_problems_can_be_listed_without_raising(simulator: Simulator) -> None:
    simulator.raises = False
    x, y = ones(2), ones(2)
    captured(lambda: y.copy_(x * x.sum().item())).replay()
    assert "item() inside a capture" in simulator.problems[0]
