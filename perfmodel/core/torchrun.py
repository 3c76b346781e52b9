"""Commands on several devices: torchrun starts one process for each, and tells every process how many there are."""

import os
from collections.abc import Sequence

_TOLD_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""All of them: schedulers of clusters set a size alone, for programs of their own."""


def num_processes() -> int:
    """Processes that torchrun started together, this one included; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TOLD_BY_TORCHRUN) else 1


def torchrun_command(command: Sequence[str], num_devices: int) -> tuple[str, ...]:
    """A command of ours as it has to be typed to use so many devices of one machine."""
    launcher = ("torchrun", "--nproc-per-node", str(num_devices), "--no-python") if num_devices > 1 else ()
    return (*launcher, *command)
