"""Which device names torch uses, and which are refused."""

import pytest
import torch

from perfmodel.core.errors import UserInputError
from s2d.model.torch_device import use_device


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with two GPUs; the indices that were made torch's current device."""
    indices: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", indices.append)
    return indices


def test_a_gpu_named_by_index_becomes_the_current_device(chosen: list[int]) -> None:
    for name in ("cpu", "cuda", "cuda:1"):
        use_device(name)
    assert chosen == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "--device cuda:2: this machine has 2 CUDA devices, expected an index below 2."),
        ("cuda:-1", "--device cuda:-1: expected cpu, cuda, or cuda:N"),
        ("mps", "--device mps: expected cpu, cuda, or cuda:N for one of several GPUs"),
    ],
)
def test_any_other_device_is_refused(chosen: list[int], name: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        use_device(name)
    assert not chosen
