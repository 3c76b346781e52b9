"""Where engines are installed: one folder for all, and in it one virtual environment per engine.

An engine has an environment of its own because engines need contradictory versions of the same packages, and ours too.
A marker file, written last, tells a whole environment from the rest of an interrupted installation. An environment of the
user's own needs no marker: it is linked as `$S2D_ENGINES/NAME`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
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
"""The runtime of this project, which runs in the current interpreter."""
_CURRENT_MODULES = {_BUNDLED: "s2d", "transformers": "transformers", "sglang": "sglang"}
"""Engines that the current interpreter runs if it has their module: inside SGLang's container, for example."""


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
        raise _not_installed_here(name)
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
    return _python(find_engine(engine).name) is not None


def engine_python(engine: str) -> Path:
    """The interpreter that runs an engine: of its environment, else the current one if it has the engine.

    Raises:
        UserInputError: the engine is not installed; the message names the command that installs it.
        UnknownName: there is no such engine.
    """
    name = find_engine(engine).name
    python = _python(name)
    if python is not None:
        return python
    folder = engine_folder(name)
    if _is_whole(folder):
        raise UserInputError(
            f"engine {name!r}: its environment {os.fspath(folder)!r} has no interpreter, expected bin/python. Remove the "
            "folder and install the engine again."
        )
    if name in NOT_INSTALLED_HERE:
        raise _not_installed_here(name)
    raise UserInputError(
        f"engine {name!r} is not installed in {os.fspath(folder)!r}: run s2d-engines install {name}, or set "
        f"{ENGINES_VARIABLE} to the folder in which it is."
    )


def engine_program(engine: str, name: str) -> Path | None:
    """A program in an engine's environment, such as `llama-server`; None if it has none of that name.

    Raises:
        UnknownName: there is no such engine.
    """
    folder = engine_folder(engine)
    program = folder / "bin" / name
    return program if _is_whole(folder) and program.is_file() else None


def find_program(engine: str, name: str) -> Path:
    """A program of an engine, in its environment or on the search path.

    Raises:
        UserInputError: it is in neither.
        UnknownName: there is no such engine.
    """
    program = engine_program(engine, name) or shutil.which(name)
    if program is None:
        folder = os.fspath(engine_folder(engine))
        raise UserInputError(
            f"engine {engine!r}: there is no program {name!r}, expected it on the search path or in the environment "
            f"{folder!r}. Install the engine, or link its environment there."
        )
    return Path(program)


def _not_installed_here(name: str) -> UserInputError:
    return UserInputError(
        f"engine {name!r} is not installed by s2d-engines: {NOT_INSTALLED_HERE[name]}. Follow the installation page of its "
        f"documentation and link its environment as {os.fspath(engine_folder(name))!r}, or run the files that s2d-plan export "
        f"--engine {name} writes."
    )


def _python(name: str) -> Path | None:
    """The interpreter of an engine; None if it is not installed."""
    folder = engine_folder(name)
    python = folder / "bin" / "python"
    if _is_whole(folder) and python.exists():
        return python
    module = _CURRENT_MODULES.get(name)
    return Path(sys.executable) if module is not None and importlib.util.find_spec(module) is not None else None


def _is_whole(folder: Path) -> bool:
    """Whether a folder is an environment of ours that was completed, or a link to one of the user's own."""
    return folder.is_symlink() or (folder / MARKER).is_file()
