"""Runs a model converter with the interpreter of an engine's environment, without access to a model hub."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from perfmodel.core.errors import UserInputError
from s2d.engines.environments import engine_python
from s2d.engines.processes.child_process import run_guarded
from s2d.engines.processes.process_variables import engine_variables

_MAX_ERROR_LINES = 12


def run_converter(engine: str, arguments: Sequence[str]) -> None:
    """Run the interpreter of an engine's environment, and wait for it.

    Args:
        engine: name of the engine.
        arguments: of the interpreter: `-m`, a module, and its arguments.

    Raises:
        UserInputError: the engine is not installed, or the converter failed; a note has the end of its output.
    """
    run_tool([str(engine_python(engine)), *arguments], engine_variables(engine, None))


def run_tool(command: Sequence[str], variables: Mapping[str, str] = os.environ) -> None:
    """Run a command, and wait for it.

    Args:
        command: the program and its arguments.
        variables: its environment variables.

    Raises:
        UserInputError: it failed; a note has the end of its output.
    """
    done = run_guarded(command, environment=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        error = UserInputError(
            f"the converter ended with code {done.returncode}, expected 0: {shlex.join(command)}. Nothing was written. Its "
            "last lines follow."
        )
        error.add_note("\n".join(done.stdout.splitlines()[-_MAX_ERROR_LINES:]))
        raise error
