"""The environment variables of an engine's processes."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_DROPPED_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def clean_variables() -> dict[str, str]:
    """The variables of this process without those that show another Python interpreter our packages."""
    return {name: value for name, value in os.environ.items() if name not in _DROPPED_VARIABLES}


def engine_variables(engine: str, num_threads: int | None) -> dict[str, str]:
    """Environment variables of an engine: clean, offline, and with its threads."""
    variables = clean_variables() | _OFFLINE
    if num_threads is not None:
        variables["OMP_NUM_THREADS"] = str(num_threads)
    if engine == "s2d":
        variables["PYTHONPATH"] = str(_ROOT)
    return variables
