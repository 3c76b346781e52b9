"""Provenance of a file: time, version, command, machine and inputs.

It names no person, machine or folder: the host is described by its kind, and paths are reduced to file names.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOL_VERSION = "0.1.0"
"""The version of this project. `pyproject.toml` reads it from this line."""

_GIT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The facts that a reader needs to trust a file or to make it again."""

    utc_time: str
    """ISO 8601, `2026-01-31T12:00:00Z`."""
    tool_version: str
    git_commit: str | None
    """Commit of the checkout that ran, with `-dirty` if it had changes; None outside a checkout."""
    command: str
    host: str
    """Kind of machine, never its name: `x86_64, 2 cores, Linux`."""
    device: str | None
    driver: str | None
    libraries: dict[str, str]
    """Version of each library that can change the numbers, and of `python`."""
    seed: int | None
    inputs: dict[str, str]
    """SHA-256 of the body of each input file, by role: `profile`, `trace` …"""


def make_provenance(
    *,
    argv: Sequence[str] | None = None,
    device: str | None = None,
    driver: str | None = None,
    libraries: Iterable[str] = (),
    seed: int | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Provenance:
    """The provenance of a file about to be written.

    Args:
        argv: the command line, the program first; None takes `sys.argv`.
        device: the device that was measured or used.
        driver: its driver version.
        libraries: distributions (`torch`, `transformers`) whose installed versions to record.
        seed: of random numbers.
        inputs: SHA-256 of the body of each input file, by role.
    """
    return Provenance(
        utc_time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        tool_version=TOOL_VERSION,
        git_commit=_git_commit(Path(__file__).resolve().parents[2]),
        command=command_text(sys.argv if argv is None else argv),
        host=host_text(),
        device=device,
        driver=driver,
        libraries=library_versions(libraries),
        seed=seed,
        inputs=dict(inputs or {}),
    )


def command_text(argv: Sequence[str]) -> str:
    """The command line, quoted for a shell, with every path reduced to its file name."""
    import shlex

    return shlex.join(_without_folders(argument) for argument in argv)


def host_text() -> str:
    """The kind of this machine, without its name."""
    import platform

    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed version of each distribution and of Python. Distributions that are not installed are left out."""
    import platform

    versions = {"python": platform.python_version()}
    for name in names:
        version = _installed_version(name)
        if version is not None:
            versions[name] = version
    return versions


def _installed_version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _without_folders(argument: str) -> str:
    """`--out=/a/b.json` becomes `--out=b.json`. Prose that contains a slash stays unchanged."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    is_path = value.startswith(("/", "~")) or not any(map(str.isspace, value))
    return f"{option}{equals}{value.rstrip('/').rpartition('/')[2] if is_path else value}"


def _git_commit(root: Path) -> str | None:
    """The commit of the checkout that this package runs from; None without a checkout or without git."""
    if not (root / ".git").exists():
        return None
    import subprocess

    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
