"""Device labels, unwritten memory, mixed devices, pinned memory and memory counters."""

import copy
import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from perfmodel.hardware.find_hardware import find_hardware
from tests.gpu_simulator import DeviceMismatch, Simulator, UnwrittenMemory, simulated_gpu


@pytest.fixture(autouse=True)
def simulator() -> Iterator[Simulator]:
    with simulated_gpu(num_devices=2) as active:
        yield active


def on_device(*values: float) -> Tensor:
    return torch.tensor(values, device="cuda")


def test_tensors_report_the_device_on_which_they_were_created() -> None:
    x = torch.ones(2, device="cuda")
    for tensor in (x, x + 1, x[:1], x.new_zeros(3), torch.zeros_like(x), x.to(torch.float16), x.clone(), copy.deepcopy(x)):
        assert tensor.device == torch.device("cuda", 0)
        assert tensor.is_cuda
    for tensor in (torch.ones(2), x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), x.new_zeros(3, device="cpu")):
        assert tensor.device == torch.device("cpu")
    for tensor in (
        torch.ones(2).to("cuda:1"),
        torch.arange(3, device=1),
        torch.ones(2).cuda(1),
        torch.as_tensor(x, device="cuda:1"),
    ):
        assert tensor.device == torch.device("cuda", 1)
    assert torch.as_tensor(x, device="cuda") is x
    assert torch.ones(2).to(x).device == x.device
    with torch.device("cuda"):
        assert torch.empty(3).is_cuda


def test_modules_and_their_parameters_move() -> None:
    module = torch.nn.Linear(3, 2).to("cuda")
    assert {parameter.device.type for parameter in module.parameters()} == {"cuda"}
    assert module(torch.ones(1, 3, device="cuda")).is_cuda
    assert copy.deepcopy(module).weight.is_cuda
    assert not module.to("cpu").weight.is_cuda


def test_cuda_without_an_index_is_the_current_device() -> None:
    with torch.cuda.device(1):
        assert torch.ones(1, device="cuda").device.index == torch.cuda.current_device() == 1
    torch.cuda.set_device(1)
    assert torch.ones(1, device="cuda").device.index == 1
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(1, device="cuda:2")


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, host: x + host,
        lambda x, host: torch.cat((x, host)),
        lambda x, host: host.add_(x),
        lambda x, host: torch.equal(x, host),
        lambda x, host: x + x.to("cuda:1"),
        lambda x, host: torch.mm(x[None], host[:, None]),
        lambda x, host: torch.randn(3, device="cuda", generator=torch.Generator()),
    ],
)
def test_host_and_device_tensors_do_not_mix(mix: Callable[[Tensor, Tensor], object], simulator: Simulator) -> None:
    with torch.inference_mode(), pytest.raises(DeviceMismatch):
        mix(torch.ones(3, device="cuda"), torch.ones(3))
    assert simulator.problems


def test_numbers_and_copies_may_cross() -> None:
    x, host = on_device(1.0, 2.0), torch.zeros(2)
    host.copy_(x)
    x[0] = 5.0
    assert (x * torch.tensor(2.0)).tolist() == [10.0, 4.0]
    assert host.tolist() == [1.0, 2.0]
    generator = torch.Generator(device="cuda").manual_seed(3)
    assert generator.device == torch.device("cuda", 0)
    assert torch.rand(3, device="cuda", generator=generator).is_cuda


def test_a_device_tensor_cannot_become_a_numpy_array() -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        on_device(1.0).numpy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize(
    "read", [lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x[1].item(), lambda x: float(x[2]), lambda x: torch.equal(x, x)]
)
def test_the_host_cannot_read_unwritten_memory(read, dtype: torch.dtype, simulator: Simulator) -> None:
    x = torch.empty(3, dtype=dtype, device="cuda")
    x[0] = 1
    with pytest.raises(UnwrittenMemory, match="was not written"):
        read(x)
    assert len(simulator.problems) == 1


def test_a_computed_nan_can_be_read_and_poison_is_detected_after_arithmetic() -> None:
    zero = torch.zeros(2, device="cuda")
    assert (zero / zero).isnan().tolist() == [True, True]
    assert str((zero / zero).tolist()) == "[nan, nan]"
    unwritten = torch.empty(2, device="cuda") * 2 + 1
    with pytest.raises(UnwrittenMemory):
        unwritten.tolist()


def test_waits_are_counted_by_location(simulator: Simulator) -> None:
    x = torch.ones(2, device="cuda")
    assert not simulator.counters["waits"]
    _ = (x.sum().item(), x.tolist(), x.cpu(), on_device(1.0), x.nonzero(), bool(x[0] > 0))
    torch.cuda.synchronize()
    assert simulator.counters["waits"] == 7
    assert any(location.startswith("item() at test_memory.py:") for location in simulator.wait_locations)


def test_a_copy_to_pinned_memory_arrives_when_its_event_is_waited_for(simulator: Simulator) -> None:
    x, pinned, early, late = on_device(1.0, 2.0), torch.zeros(2, pin_memory=True), torch.cuda.Event(), torch.cuda.Event()
    early.record()
    pinned.copy_(x, non_blocking=True)
    late.record()
    x.fill_(9)
    early.synchronize()
    assert str(pinned.tolist()) == "[nan, nan]"  # listed, not raised: a GPU would not detect this
    assert "tolist() reads pinned memory before the copy to it has arrived" in simulator.problems[0]
    late.synchronize()
    assert pinned.tolist() == [1.0, 2.0]
    assert simulator.counters["waits"] == 1  # on_device
    assert simulator.counters["event_waits"] == 2


@pytest.mark.parametrize("wait", [lambda: torch.cuda.synchronize(), lambda: torch.cuda.current_stream().synchronize()])
def test_other_waits_deliver_copies_too(wait: Callable[[], None]) -> None:
    pinned = torch.zeros(1).pin_memory()
    assert pinned.is_pinned()
    pinned.copy_(on_device(3.0), non_blocking=True)
    wait()
    assert pinned.tolist() == [3.0]


def test_an_event_of_another_stream_delivers_only_if_that_stream_waited() -> None:
    x, pinned, side = on_device(1.0), torch.zeros(1, pin_memory=True), torch.cuda.Stream()
    pinned.copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record(side)
    event.synchronize()
    assert str(pinned.tolist()) == "[nan]"
    side.wait_stream(torch.cuda.current_stream())
    event.record(side)
    event.synchronize()
    assert pinned.tolist() == [1.0]


def test_host_arithmetic_on_memory_that_has_not_arrived_is_a_problem(simulator: Simulator) -> None:
    pinned = torch.zeros(2, pin_memory=True)
    pinned.copy_(on_device(1.0, 2.0), non_blocking=True)
    _ = pinned + 1
    assert "before the copy to it has arrived" in simulator.problems[0]


def test_writing_pinned_memory_while_a_copy_reads_it_is_a_problem(simulator: Simulator) -> None:
    pinned, x, event = torch.ones(2, pin_memory=True), torch.zeros(2, device="cuda"), torch.cuda.Event()
    x.copy_(pinned, non_blocking=True)
    event.record()
    event.synchronize()
    pinned.fill_(2)
    assert not simulator.problems
    x.copy_(pinned, non_blocking=True)
    pinned.fill_(3)
    assert "writes pinned memory before a copy from it is complete" in simulator.problems[0]


def test_captured_copies_read_and_write_pinned_memory_at_every_replay() -> None:
    source, result, x = torch.ones(2, pin_memory=True), torch.zeros(2, pin_memory=True), torch.zeros(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.copy_(source, non_blocking=True)
        result.copy_(x * 2, non_blocking=True)
    for value in (1.0, 4.0):
        source.fill_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert result.tolist() == [2 * value] * 2


def test_events_measure_time_after_the_host_has_waited_for_them() -> None:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    end.record()
    with pytest.raises(RuntimeError, match="not ready"):
        begin.elapsed_time(end)
    assert not end.query()
    assert end.query()
    assert begin.elapsed_time(end) >= 0
    with pytest.raises(ValueError, match="enable_timing"):
        begin.elapsed_time(torch.cuda.Event())


def test_memory_is_counted_while_the_program_holds_it(simulator: Simulator) -> None:
    free, total = torch.cuda.mem_get_info()
    assert total == find_hardware("NVIDIA H200").memory_bytes
    x = torch.zeros(1000, device="cuda")
    view = x[10:]
    del x
    assert torch.cuda.memory_allocated() == 4000
    assert torch.cuda.mem_get_info()[0] == free - 4000
    del view
    gc.collect()
    assert torch.cuda.memory_allocated() == torch.cuda.memory_allocated(1) == 0
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_stats()["allocated_bytes.all.peak"] == 4000
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == 0
    assert torch.cuda.memory_reserved() == 4000
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 0


def test_a_full_device_is_out_of_memory(simulator: Simulator) -> None:
    simulator.memory.total_bytes = 1000
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        torch.zeros(1000, device="cuda")


@pytest.mark.parametrize(
    ("name", "capability", "workspace_mib"), [("NVIDIA A100-SXM4-80GB", (8, 0), 8.125), ("Tesla T4", (7, 5), 8.125)]
)
def test_other_gpus_of_the_table_have_their_properties(name: str, capability: tuple[int, int], workspace_mib: float) -> None:
    # The active simulator has another GPU: only properties are read here.
    from tests.gpu_simulator.hardware import device_properties

    properties = device_properties(name)
    assert (properties.name, properties.capability) == (name, capability)
    assert properties.workspace_bytes == workspace_mib * 2**20
    with pytest.raises(ValueError, match="expected an NVIDIA GPU"):
        device_properties("AMD Instinct MI300X")


def test_torch_reports_the_simulated_machine() -> None:
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 2
    assert torch.cuda.get_device_name() == torch.cuda.get_device_properties(1).name == "NVIDIA H200"
    assert torch.cuda.get_device_capability("cuda:1") == (9, 0)
    assert torch.cuda.is_bf16_supported()
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="cannot be nested"), simulated_gpu():
        pass
