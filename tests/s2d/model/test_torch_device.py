"""Which device torch is told to use, and which are refused."""

import pytest
import torch

from perfmodel.core.errors import UserInputError
from s2d.model.torch_device import use_device


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with two GPUs; the ones that were made torch's own."""
    numbers: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", numbers.append)
    return numbers


def test_a_gpu_that_is_named_is_the_one_that_events_and_streams_belong_to(chosen: list[int]) -> None:
    for name in ("cpu", "cuda", "cuda:1"):
        use_device(name)
    assert chosen == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "--device cuda:2: this machine has 2 CUDA devices. Give a number below that"),
        ("cuda:-1", "--device cuda:-1: expected cpu, cuda, or cuda:N"),
        ("mps", "--device mps: expected cpu, cuda, or cuda:N for one of several GPUs"),
    ],
)
def test_any_other_is_refused(chosen: list[int], name: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        use_device(name)
    assert not chosen
