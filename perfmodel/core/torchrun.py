"""Commands on several devices: torchrun starts one process per device."""

import os
from collections.abc import Sequence

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""torchrun sets all of them. Cluster schedulers set WORLD_SIZE alone, for programs of their own."""


def num_processes() -> int:
    """Number of processes that torchrun started together, including this one; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TORCHRUN_VARIABLES) else 1


def torchrun_command(command: Sequence[str], num_devices: int) -> tuple[str, ...]:
    """The command line that runs one of our commands on this number of devices of one machine."""
    launcher = ("torchrun", "--nproc-per-node", str(num_devices), "--no-python") if num_devices > 1 else ()
    return (*launcher, *command)
