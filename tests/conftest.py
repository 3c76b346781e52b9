"""Shared by all tests: hypothesis without time limits, and a GPU for tests marked `gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.gpu_simulator import Simulator

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator | None]:
    """The device of a test marked `gpu`: None for a real GPU, otherwise the simulator. Its list of problems must stay empty."""
    if request.node.get_closest_marker("gpu") is None:
        yield None
        return
    import torch

    if torch.cuda.is_available():
        import s2d.model.cuda_graphs

        monkeypatch.setattr(s2d.model.cuda_graphs, "CAPTURE_OPTIONS", s2d.model.cuda_graphs.liveness_options())
        yield None
        return
    from tests.gpu_simulator import simulated_gpu

    with simulated_gpu() as simulator:
        yield simulator
    assert not simulator.problems
