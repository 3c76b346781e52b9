"""The simulator that is running, if one is: `torch.cuda`'s classes are made without naming it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.gpu_simulator.simulator import Simulator

_running: list[Simulator] = []


def simulator() -> Simulator:
    """The running simulator.

    Raises:
        RuntimeError: none is running.
    """
    if not _running:
        raise RuntimeError("no simulated GPU: use this object inside `with simulated_gpu()`.")
    return _running[-1]


def start(started: Simulator) -> None:
    """Make a simulator the running one.

    Raises:
        RuntimeError: another one is running.
    """
    if _running:
        raise RuntimeError("a GPU is simulated already: simulated_gpu() cannot be nested.")
    _running.append(started)


def stop() -> None:
    """End the running simulator."""
    _running.clear()
