"""Commands on several devices: torchrun starts one process for each, and tells every process how many there are."""

import os
from collections.abc import Sequence


def num_processes() -> int:
    """Processes that torchrun started together, this one included; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched(command: Sequence[str], num_devices: int) -> tuple[str, ...]:
    """A command of ours as it has to be typed to use so many devices of one machine."""
    launcher = ("torchrun", "--nproc-per-node", str(num_devices), "--no-python") if num_devices > 1 else ()
    return (*launcher, *command)
