"""The active simulator: classes of `torch.cuda` are created without a reference to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.gpu_simulator.simulator import Simulator

_active: list[Simulator] = []


def simulator() -> Simulator:
    """The active simulator.

    Raises:
        RuntimeError: no simulator is active.
    """
    if not _active:
        raise RuntimeError("no simulated GPU: use this object inside `with simulated_gpu()`.")
    return _active[-1]


def start(started: Simulator) -> None:
    """Make a simulator the active one.

    Raises:
        RuntimeError: another simulator is active.
    """
    if _active:
        raise RuntimeError("a GPU is already simulated: simulated_gpu() cannot be nested.")
    _active.append(started)


def stop() -> None:
    """End the active simulator."""
    _active.clear()
