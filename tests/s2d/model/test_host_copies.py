"""Copies to a device: what arrives, and that no buffer is overwritten before its last copy is done."""

import pytest
import torch

from s2d.model.host_copies import HostTokens, PinnedRing, Uniforms

CPU = torch.device("cpu")


@pytest.mark.parametrize("token_ids", [[], [7], (3, 1, 2**40)])
def test_host_tokens_arrive_as_int64(token_ids: list[int]) -> None:
    sent = HostTokens(CPU)(token_ids)
    assert (sent.dtype, sent.tolist()) == (torch.int64, list(token_ids))


class RecordedFence:
    """Writes down when it is marked and waited for."""

    def __init__(self, number: int, events: list[tuple[str, int]]) -> None:
        self._number, self._events = number, events

    def mark(self) -> None:
        self._events.append(("mark", self._number))

    def wait(self) -> None:
        self._events.append(("wait", self._number))


def ring_on_cpu(events: list[tuple[str, int]], sizes: list[int]) -> PinnedRing:
    def new_buffer(num_items: int) -> torch.Tensor:
        sizes.append(num_items)
        return torch.empty(num_items, dtype=torch.int64)

    numbers = iter(range(2))
    fence = lambda: RecordedFence(next(numbers), events)  # noqa: E731
    return PinnedRing(CPU, torch.int64, num_buffers=2, new_buffer=new_buffer, new_fence=fence)


def test_a_pinned_buffer_is_waited_for_before_it_is_filled_again() -> None:
    events: list[tuple[str, int]] = []
    ring = ring_on_cpu(events, [])
    for _ in range(3):
        ring(torch.tensor([1, 2]))
    assert events == [("wait", 0), ("mark", 0), ("wait", 1), ("mark", 1), ("wait", 0), ("mark", 0)]


def test_a_pinned_buffer_grows_when_needed_and_earlier_copies_stay_as_they_are() -> None:
    sizes: list[int] = []
    ring = ring_on_cpu([], sizes)
    sent = [torch.arange(size) + size for size in (3, 64, 0, 129, 40)]
    copies = [ring(host) for host in sent]
    assert all(torch.equal(copy, host) for copy, host in zip(copies, sent, strict=True))
    assert sizes == [64, 128, 258]  # buffer 0 for 3 items, buffer 1 for 64, buffer 1 again for 129


def test_uniform_numbers_depend_on_the_seed_and_on_what_was_taken() -> None:
    one, same, other = (Uniforms(CPU, seed, block=4) for seed in (1, 1, 2))
    sizes = (1, 2, 3, 9, 1)  # 3 does not fit what is left of a block, and 9 not a block
    first = [one.take(size) for size in sizes]
    assert [len(found) for found in first] == list(sizes)
    assert all(map(torch.equal, first, map(same.take, sizes)))
    assert not torch.equal(first[3], [*map(other.take, sizes)][3])
    one.restart(1)
    assert all(map(torch.equal, first, map(one.take, sizes)))
    assert len(set(torch.cat(first).tolist())) == sum(sizes)  # none is taken twice


def test_uniform_numbers_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    num_drawn: list[int] = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda number, **options: (num_drawn.append(number), rand(number, **options))[1])
    uniforms = Uniforms(CPU, 0, block=100)
    for _ in range(250):
        uniforms.take(1)
    assert num_drawn == [100] * 3


@pytest.mark.gpu
def test_copies_to_a_gpu_are_what_was_sent_however_many_are_under_way(gpu: object) -> None:
    device = torch.device("cuda")
    tokens, uniforms, expected = HostTokens(device), Uniforms(device, 5, block=8), Uniforms(CPU, 5, block=8)
    size = 4096 if gpu is None else 16  # on the simulated GPU copies arrive late whatever it computes
    busy = torch.randn(size, size, device=device)
    for _ in range(50):
        busy = (busy @ busy).clamp(-1, 1)  # so that copies wait in the queue
    lists = [[number, number + 1] * (number % 7) for number in range(200)]
    sent = [tokens(token_ids) for token_ids in lists]
    assert [copy.tolist() for copy in sent] == lists
    assert torch.equal(torch.cat([uniforms.take(3) for _ in range(90)]).cpu(), torch.cat([expected.take(3) for _ in range(90)]))
