"""Where engines are installed: one folder for all, and in it one virtual environment per engine.

An engine has an environment of its own because engines need contradictory versions of the same packages, and ours too.
A marker file, written last, tells a whole environment from the rest of an interrupted installation.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.errors import UserInputError
from perfmodel.core.files import FileFormat
from perfmodel.engines.find_engine import find_engine
from s2d.engines.recipes import NOT_INSTALLED_HERE, RECIPES, Recipe

ENGINES_VARIABLE = "S2D_ENGINES"
"""The environment variable with the folder of all engines."""
MARKER = "s2d-engine.json"
_BUNDLED = "s2d"
"""The runtime of this project: an engine whose interpreter is the current one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnvironment:
    """The marker of a whole environment."""

    engine: str
    packages: tuple[str, ...]
    """The packages of the recipe, as pip was given them."""
    programs: tuple[str, ...]
    """Programs built from source, in `bin`."""
    version: str
    """Version of the engine's package, as the environment reports it."""


ENVIRONMENT_FILE = FileFormat(record=EngineEnvironment, schema="s2d/engine-environment", made_with="s2d-engines install NAME")


def engines_folder() -> Path:
    """The folder of all engines: `$S2D_ENGINES`, else `~/.cache/s2d/engines`. It need not exist."""
    given = os.environ.get(ENGINES_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "s2d" / "engines"


def engine_folder(engine: str, folder: Path | None = None) -> Path:
    """The folder of an engine's environment. It need not exist.

    Args:
        engine: name or alias of an engine.
        folder: the folder of all engines; None: `engines_folder()`.

    Raises:
        UnknownName: there is no such engine.
    """
    return (folder or engines_folder()).absolute() / find_engine(engine).name


def find_recipe(engine: str) -> Recipe:
    """The recipe of an engine.

    Raises:
        UnknownName: there is no such engine.
        UserInputError: the engine cannot be installed by us; the message says what to do.
    """
    name = find_engine(engine).name
    if name in NOT_INSTALLED_HERE:
        raise UserInputError(f"{name} is not installed by s2d-engines: {NOT_INSTALLED_HERE[name]}.")
    if name == _BUNDLED:
        raise UserInputError(f"engine {name!r} is the runtime of this project: it needs no environment of its own.")
    return RECIPES[name]


def engine_environment(engine: str) -> EngineEnvironment | None:
    """What is installed for an engine; None if nothing is.

    Raises:
        UnknownName: there is no such engine.
        BadFile: the marker of its environment cannot be read.
    """
    marker = engine_folder(engine) / MARKER
    return ENVIRONMENT_FILE.read(marker).record if marker.is_file() else None


def is_installed(engine: str) -> bool:
    """Whether `engine_python` has an interpreter for an engine.

    Raises:
        UnknownName: there is no such engine.
    """
    return (engine_folder(engine) / MARKER).is_file() or _runs_here(engine)


def engine_python(engine: str) -> Path:
    """The interpreter of an engine's environment. For `transformers` it may be the current one, for `s2d` it always is.

    Raises:
        UserInputError: the engine is not installed; the message names the command that installs it.
        UnknownName: there is no such engine.
    """
    folder = engine_folder(engine)
    python = folder / "bin" / "python"
    if (folder / MARKER).is_file() and python.exists():
        return python
    if _runs_here(engine):
        return Path(sys.executable)
    find_recipe(engine)
    raise UserInputError(
        f"engine {folder.name!r} is not installed in {os.fspath(folder)!r}: run s2d-engines install {folder.name}, or set "
        f"{ENGINES_VARIABLE} to the folder in which it is."
    )


def engine_program(engine: str, name: str) -> Path | None:
    """A program that an engine's environment was built with, such as `llama-server`; None if it has none of that name.

    Raises:
        UnknownName: there is no such engine.
        BadFile: the marker of its environment cannot be read.
    """
    environment = engine_environment(engine)
    if environment is None or name not in environment.programs:
        return None
    return engine_folder(engine) / "bin" / name


def _runs_here(engine: str) -> bool:
    """Whether the current interpreter has the engine: our runtime, or transformers if it is installed."""
    name = find_engine(engine).name
    return name == _BUNDLED or (name == "transformers" and importlib.util.find_spec("transformers") is not None)
