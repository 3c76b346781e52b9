"""The interpreter and programs with which an engine runs, and its environment variables."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from perfmodel.core.errors import UserInputError
from s2d.engines.environments import engine_python, engines_folder

_ROOT = Path(__file__).parents[3]
_DROPPED_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def engine_interpreter(engine: str) -> str:
    """The Python interpreter of an engine. An environment of the user's own may be linked as `$S2D_ENGINES/NAME`.

    Raises:
        UserInputError: the engine is not installed.
    """
    own = engines_folder() / engine
    return str(own / "bin" / "python" if own.is_symlink() else engine_python(engine))


def installed_program(engine: str, name: str) -> str | None:
    """A program in the environment of an engine, such as `llama-server`; None if there is none."""
    program = engines_folder() / engine / "bin" / name
    return str(program) if program.exists() else None


def find_program(engine: str, name: str) -> str:
    """A program of an engine, in its environment or on the search path.

    Raises:
        UserInputError: it is in neither.
    """
    program = installed_program(engine, name) or shutil.which(name)
    if program is None:
        folder = engines_folder() / engine
        raise UserInputError(
            f"engine {engine!r}: there is no program {name!r}, expected it on the search path or in {str(folder / 'bin')!r}. "
            f"Install the engine, or link its environment as {str(folder)!r}."
        )
    return program


def engine_variables(engine: str, num_threads: int | None) -> dict[str, str]:
    """Environment variables of an engine: those of this process without its Python paths, offline, and with its threads."""
    variables = {name: value for name, value in os.environ.items() if name not in _DROPPED_VARIABLES} | _OFFLINE
    if num_threads is not None:
        variables["OMP_NUM_THREADS"] = str(num_threads)
    if engine == "s2d":
        variables["PYTHONPATH"] = str(_ROOT)
    return variables
