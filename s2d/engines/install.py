"""Installs an engine into a virtual environment of its own, with the user's Python and pip.

Every command is printed before it runs. The marker file is written last; after a failure, the folder is removed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from perfmodel.core.disk import translate_write_errors
from perfmodel.core.errors import BadFile, UserInputError
from perfmodel.core.lock import locked_folder
from perfmodel.core.provenance import make_provenance
from s2d.engines.environments import (
    ENVIRONMENT_FILE,
    MARKER,
    EngineEnvironment,
    engine_folder,
    find_recipe,
)
from s2d.engines.processes.child_process import run_guarded
from s2d.engines.processes.process_variables import clean_variables
from s2d.engines.recipes import Recipe, SourceBuild

Command: TypeAlias = tuple[str, ...]
STARTED = "s2d-engine.unfinished"
"""A file that marks an installation in progress. A folder that has it may be removed and made again."""
_MAX_ERROR_LINES = 12
_STDERR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    """An engine to install."""

    engine: str
    folder: Path | None = None
    """The folder of all engines; None: `engines_folder()`."""
    from_source: bool = False
    """Whether to build its programs for this processor too."""

    @property
    def environment(self) -> Path:
        """The folder of its environment."""
        return engine_folder(self.engine, self.folder)


def install_commands(request: InstallRequest) -> tuple[Command, ...]:
    """The commands that install an engine, in order.

    Raises:
        UnknownName: there is no such engine.
        UserInputError: the engine cannot be installed by us, or has no build from source.
    """
    recipe = find_recipe(request.engine)
    folder = request.environment
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "install")
    commands: list[Command] = [(sys.executable, "-m", "venv", str(folder)), (*pip, *recipe.needs)]
    if recipe.without_dependencies:
        commands.append((*pip, "--no-deps", *recipe.without_dependencies))
    if request.from_source:
        commands += _build_commands(_source_build(request, recipe), folder)
    return (*commands, (python, "-c", _version_check(recipe)))


def install_text(request: InstallRequest) -> str:
    """The commands for a shell, one per line."""
    return "\n".join(shlex.join(command) for command in install_commands(request))


def install_engine(request: InstallRequest, report: Callable[[str], None]) -> Path:
    """Install an engine, completely or not at all. Returns the folder of its environment.

    Args:
        request: what to install.
        report: receives each command before it runs, for the user to read.

    Raises:
        UserInputError: the engine cannot be installed by us, is installed already, or a command failed.
        BadFile: the folder holds something else, or cannot be written.
    """
    commands = install_commands(request)
    folder = request.environment
    with _unfinished(folder):
        for command in commands[:-1]:
            _run(command, report)
        version = _run(commands[-1], report, is_quiet=True).strip().splitlines()[-1]
        _write_marker(request, version)
    return folder


def _write_marker(request: InstallRequest, version: str) -> None:
    recipe = find_recipe(request.engine)
    environment = EngineEnvironment(
        engine=request.environment.name,
        packages=recipe.packages,
        programs=_source_build(request, recipe).programs if request.from_source else (),
        version=version,
    )
    ENVIRONMENT_FILE.write(request.environment / MARKER, environment, make_provenance())


def _source_build(request: InstallRequest, recipe: Recipe) -> SourceBuild:
    if recipe.source is None:
        raise UserInputError(f"--from-source: {request.engine} has no build from source here. Leave the option out.")
    return recipe.source


def _build_commands(build: SourceBuild, folder: Path) -> list[Command]:
    """Fetch the source, build the programs, copy them into `bin`, and remove the rest."""
    python, binaries = str(folder / "bin" / "python"), folder / "bin"
    source = folder / "source"
    name, _, version = build.sdist.partition("==")
    unpacked = source / f"{name.replace('-', '_')}-{version}"
    made = source / "build"
    pip = (python, "-m", "pip")
    definitions = tuple(f"-D{definition}" for definition in (*build.definitions, f"CMAKE_MAKE_PROGRAM={binaries / 'ninja'}"))
    return [
        (*pip, "install", *build.tools),
        (*pip, "download", "--no-deps", "--no-binary", name, "--dest", str(source), build.sdist),
        (python, "-m", "tarfile", "-e", f"{unpacked}.tar.gz", str(source)),
        (str(binaries / "cmake"), "-S", str(unpacked / build.project), "-B", str(made), "-G", "Ninja", *definitions),
        (str(binaries / "ninja"), "-C", str(made), *build.programs),
        ("cp", *(str(made / "bin" / program) for program in build.programs), str(binaries)),
        ("rm", "-r", str(source)),
    ]


def _version_check(recipe: Recipe) -> str:
    """Python code that imports the engine and prints the version of its package."""
    package = recipe.package.partition("==")[0]
    return f"import importlib.metadata, {recipe.module}; print(importlib.metadata.version({package!r}))"


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[None]:
    """Make the environment's folder, locked; remove it after an error."""
    with translate_write_errors(folder):
        _check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder), translate_write_errors(folder):
        try:
            _empty(folder)
            (folder / STARTED).touch()
            yield
            (folder / STARTED).unlink()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _check_free(folder: Path) -> None:
    """Refuse a folder with a whole environment, or with files of others.

    Raises:
        UserInputError: it has a whole environment.
        BadFile: it is not empty, and not the rest of an interrupted installation.
    """
    if folder.is_symlink() or (folder / MARKER).is_file():
        kind = "a link to an environment" if folder.is_symlink() else "a whole installation"
        raise UserInputError(f"{os.fspath(folder)!r} is {kind} already. Remove it to install the engine anew.")
    is_ours = (folder / STARTED).is_file()
    if folder.exists() and not is_ours and (not folder.is_dir() or any(folder.iterdir())):
        problem = "this exists and is no environment that s2d-engines made"
        raise BadFile(folder, problem, "Move it away, or give another folder with --folder")


def _empty(folder: Path) -> None:
    """Remove what an interrupted installation left."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _run(command: Command, report: Callable[[str], None], *, is_quiet: bool = False) -> str:
    """Run one command, its output on our stderr. Returns its output if it is quiet."""
    report(shlex.join(command))
    if shutil.which(command[0]) is None:
        raise UserInputError(f"cannot run {command[0]!r}: there is no such program. Install it, then repeat the command.")
    done = run_guarded(
        command,
        environment=clean_variables(),
        stdout=subprocess.PIPE if is_quiet else _STDERR,
        stderr=subprocess.PIPE if is_quiet else None,
    )
    if done.returncode:
        ending = "\n".join(done.stderr.splitlines()[-_MAX_ERROR_LINES:])
        error = UserInputError(
            f"the command ended with code {done.returncode}, expected 0: {shlex.join(command)}. Its output above has the "
            "reason. Nothing was installed."
        )
        if ending:
            error.add_note(ending)
        raise error
    return done.stdout
