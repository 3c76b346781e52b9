"""Copies to a device arrive unchanged, and no buffer is overwritten before its last copy is done."""

import pytest
import torch

from s2d.model.host_copies import HostTokens, PinnedRing, Uniforms

CPU = torch.device("cpu")


@pytest.mark.parametrize("token_ids", [[], [7], (3, 1, 2**40)])
def test_host_tokens_arrive_as_int64(token_ids: list[int]) -> None:
    sent = HostTokens(CPU)(token_ids)
    assert (sent.dtype, sent.tolist()) == (torch.int64, list(token_ids))


class RecordedFence:
    """Records when it is marked and waited for."""

    def __init__(self, buffer: int, events: list[tuple[str, int]]) -> None:
        self._buffer, self._events = buffer, events

    def mark(self) -> None:
        self._events.append(("mark", self._buffer))

    def wait(self) -> None:
        self._events.append(("wait", self._buffer))


def ring_on_cpu(events: list[tuple[str, int]], sizes: list[int]) -> PinnedRing:
    def new_buffer(num_items: int) -> torch.Tensor:
        sizes.append(num_items)
        return torch.empty(num_items, dtype=torch.int64)

    buffers = iter(range(2))
    return PinnedRing(
        CPU, torch.int64, num_buffers=2, new_buffer=new_buffer, new_fence=lambda: RecordedFence(next(buffers), events)
    )


def test_a_pinned_buffer_is_waited_for_before_it_is_reused() -> None:
    events: list[tuple[str, int]] = []
    ring = ring_on_cpu(events, [])
    for _ in range(3):
        ring(torch.tensor([1, 2]))
    assert events == [("wait", 0), ("mark", 0), ("wait", 1), ("mark", 1), ("wait", 0), ("mark", 0)]


def test_a_pinned_buffer_grows_when_needed_and_earlier_copies_do_not_change() -> None:
    sizes: list[int] = []
    ring = ring_on_cpu([], sizes)
    sent = [torch.arange(size) + size for size in (3, 64, 0, 129, 40)]
    copies = [ring(host) for host in sent]
    assert all(torch.equal(copy, host) for copy, host in zip(copies, sent, strict=True))
    assert sizes == [64, 128, 258]  # buffer 0 for 3 items, buffer 1 for 64, buffer 1 again for 129


def test_uniform_numbers_depend_on_the_seed_and_on_the_numbers_taken_before() -> None:
    uniforms, same_seed, other_seed = (Uniforms(CPU, seed, block=4) for seed in (1, 1, 2))
    sizes = (1, 2, 3, 9, 1)  # 3 exceeds the rest of a block, and 9 a whole block
    first = [uniforms.take(size) for size in sizes]
    assert [len(numbers) for numbers in first] == list(sizes)
    assert all(map(torch.equal, first, map(same_seed.take, sizes)))
    assert not torch.equal(first[3], [*map(other_seed.take, sizes)][3])
    uniforms.restart(1)
    assert all(map(torch.equal, first, map(uniforms.take, sizes)))
    assert len(set(torch.cat(first).tolist())) == sum(sizes)  # no number is taken twice


def test_uniform_numbers_are_generated_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    num_generated: list[int] = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda count, **options: (num_generated.append(count), rand(count, **options))[1])
    uniforms = Uniforms(CPU, 0, block=100)
    for _ in range(250):
        uniforms.take(1)
    assert num_generated == [100] * 3


@pytest.mark.gpu
def test_copies_to_a_gpu_arrive_unchanged_however_many_are_in_progress(gpu: object) -> None:
    device = torch.device("cuda")
    tokens, uniforms, expected = HostTokens(device), Uniforms(device, 5, block=8), Uniforms(CPU, 5, block=8)
    size = 4096 if gpu is None else 16  # on the simulated GPU copies arrive late in any case
    busy = torch.randn(size, size, device=device)
    for _ in range(50):
        busy = (busy @ busy).clamp(-1, 1)  # copies must wait in the queue
    lists = [[number, number + 1] * (number % 7) for number in range(200)]
    sent = [tokens(token_ids) for token_ids in lists]
    assert [copy.tolist() for copy in sent] == lists
    assert torch.equal(torch.cat([uniforms.take(3) for _ in range(90)]).cpu(), torch.cat([expected.take(3) for _ in range(90)]))
